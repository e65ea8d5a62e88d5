package recovery

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"claviger/hadoopconf"
	"claviger/metastore/sqlite"
)

// Times is the result of Clock.
type Times struct {
	// Apart says that this host's clock is behind the newest time in the store; "" if it is not.
	Apart string    `json:"apart,omitempty"`
	Set   int64     `json:"set"`          // number of times in the future that were changed
	Now   time.Time `json:"now,omitzero"` // their new value
}

// Clock compares this host's clock with the newest time in the configured SQLite store. If right is true, the operator
// has said that the clock is right: then Clock sets each time in the future to the current time. It refuses this while
// a process uses the store.
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
	if apart := clocks.Check(); apart != nil {
		t.Apart = apart.Error()
	}
	return t, nil
}
