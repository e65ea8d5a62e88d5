package recovery

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"claviger/hadoopconf"
	"claviger/metastore/sqlite"
)

// Times is what Clock found, and what it set.
type Times struct {
	// Apart says that this host's clock is behind the newest time in the store; "" if it is not.
	Apart string    `json:"apart,omitempty"`
	Set   int64     `json:"set"`          // how many times that had not come yet were set
	Now   time.Time `json:"now,omitzero"` // to this time
}

// Clock compares this host's clock with the newest time in the configured SQLite store. With right, the clock
// is right, and Clock sets each time in the store that has not come yet to now; it refuses while a process
// uses the store.
func Clock(ctx context.Context, conf *hadoopconf.Conf, right bool, log *slog.Logger) (t Times, err error) {
	if _, err := sqliteLocation(conf, "which has a clock of its own"); err != nil {
		return t, err
	}
	store, err := openStore(ctx, conf, "claviger metastore clock", right, true, log)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	clocks, err := store.Clocks(ctx)
	if err != nil {
		return t, err
	}
	if file, ok := store.(*sqlite.Store); ok && right {
		t.Set, err = file.ResetFutureTimes(ctx)
		t.Now = time.Now().UTC()
		return t, err
	}
	if apart := clocks.Apart(); apart != nil {
		t.Apart = apart.Error()
	}
	return t, nil
}
