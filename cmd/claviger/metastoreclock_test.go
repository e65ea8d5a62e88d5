package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/owner"
)

// TestMetastoreClock: a time that was written while the clock was ahead closes purges; the
// error names the command that ends it, which changes nothing while a server has the store or
// before the operator has said that the clock is right.
func TestMetastoreClock(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	file := filepath.Join(dir, "meta.db")
	writeSite(t, dir, map[string]string{
		hadoopconf.ProviderURI:  "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore"),
		hadoopconf.MetastoreURI: "sqlite://" + file,
	})
	store, err := sqlite.Open(ctx, file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }() // its end is no matter
	run := func(right bool) (string, error) {
		var out bytes.Buffer
		err := endFuture(ctx, &out, dir, right)
		return out.String(), err
	}
	if out, err := run(false); err != nil || !strings.Contains(out, "not behind") {
		t.Errorf("nothing is to come: %q, %v", out, err)
	}
	use := metastore.LastUse{Version: "k@0", Last: time.Now().AddDate(1, 0, 0)}
	if err := store.Touch(ctx, []metastore.LastUse{use}); err != nil {
		t.Fatal(err)
	}
	behind := func() error {
		t.Helper()
		c, err := store.Clocks(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return c.Apart()
	}
	if err := behind(); err == nil || !strings.Contains(err.Error(), "claviger metastore clock --conf DIR --right") {
		t.Errorf("the check of /readyz and a refused purge say %v", err)
	}
	release, err := store.Claim(ctx, owner.Self(kmsCommand, dir), false)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run(true); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("while a server has it: %q, %v", out, err)
	}
	release()
	var coded *exitError
	if out, err := run(false); !errors.As(err, &coded) || coded.code != exitRefused || !strings.Contains(out, "behind the newest time") {
		t.Errorf("without --right: %q, %v", out, err)
	}
	if behind() == nil {
		t.Error("it was set without --right")
	}
	if out, err := run(true); err != nil || !strings.HasPrefix(out, "1 times") || behind() != nil {
		t.Errorf("with --right: %q, %v, %v", out, err, behind())
	}
}
