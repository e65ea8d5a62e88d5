package recovery

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/owner"
)

// TestClock checks a store with a time in the future, which prevents purges. The error of the clocks names the command
// that corrects this. The command must change nothing while a server uses the store, or without --right.
func TestClock(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	file := filepath.Join(dir, "meta.db")
	conf := kmstest.Conf(t, map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"),
		hadoopconf.MetastoreURI: "sqlite://" + file,
	})
	store, err := sqlite.Open(ctx, file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }() // an error does not matter
	run := func(right bool) (Times, error) { return Clock(ctx, conf, right, slog.New(slog.DiscardHandler)) }
	if got, err := run(false); err != nil || got.Apart != "" {
		t.Errorf("a store without times in the future: %+v, %v", got, err)
	}
	use := metastore.LastUse{Version: "k@0", Last: time.Now().AddDate(1, 0, 0)}
	if err := store.RecordUses(ctx, []metastore.LastUse{use}); err != nil {
		t.Fatal(err)
	}
	behind := func() error {
		t.Helper()
		c, err := store.Clocks(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return c.Check()
	}
	if err := behind(); err == nil || !strings.Contains(err.Error(), "claviger metastore clock --conf DIR --right") {
		t.Errorf("the error of /readyz and of a refused purge is %v", err)
	}
	release, err := store.Claim(ctx, owner.Self("claviger kms", dir), false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run(true); err == nil || !strings.Contains(err.Error(), "stop that process first") {
		t.Errorf("while a server uses the store: %+v, %v", got, err)
	}
	release()
	if got, err := run(false); err != nil || !strings.Contains(got.Apart, "behind the newest time") {
		t.Errorf("the clock may be wrong: %+v, %v", got, err)
	}
	if behind() == nil {
		t.Error("the time was set, although the clock may be wrong")
	}
	if got, err := run(true); err != nil || got.Set != 1 || behind() != nil {
		t.Errorf("the clock is right: %+v, %v, %v", got, err, behind())
	}
}
