package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/metastore/storetest"
)

func open(ctx context.Context, where string) (metastore.Store, error) { return sqlite.Open(ctx, where) }

func TestMain(m *testing.M) { os.Exit(storetest.Main(m, open)) }

func TestStore(t *testing.T) {
	storetest.Run(t, storetest.Backend{
		// The name has everything that a path in a URI could stumble over.
		New:  func(t *testing.T) string { return filepath.Join(t.TempDir(), "meta store?a=b#c%41.db") },
		Open: open,
	})
}

func TestDelegations(t *testing.T) {
	storetest.Delegations(t, func(t *testing.T) (a, b metastore.Delegations) {
		path := filepath.Join(t.TempDir(), "store.db")
		var two [2]*sqlite.Store
		for i := range two {
			s, err := sqlite.Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			two[i] = s
		}
		return two[0], two[1]
	})
}

// TestUpgraded opens a store of the time before versions had numbers.
func TestUpgraded(t *testing.T) {
	dump, err := os.ReadFile("testdata/schema3.sql")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "old.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{string(dump), "PRAGMA application_id = 0x434c4156"} { // .dump leaves the latter out
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	storetest.Upgraded(t, s)
	if f, err := sqlite.Inspect(t.Context(), path+".schema-3"); err != nil || f.Schema != 3 || f.Keys == 0 ||
		f.Pending != 2 {
		t.Errorf("the copy that is kept: %+v, %v", f, err)
	}

	// A server of then that was not stopped writes its steps as it did.
	beside, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = beside.Close() }()
	if _, err := beside.ExecContext(t.Context(),
		`INSERT INTO intent (key, op, ids, begun, payload)
			VALUES ('late', 'create', '["a1f1000000000009"]', 1, x'')`); err != nil {
		t.Fatal(err)
	}
	pending, err := s.Pending(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := metastore.Ref{ID: "a1f1000000000009", Object: "a1f1000000000009"}
	if last := pending[len(pending)-1]; last.Key != "late" || !slices.Equal(last.Refs, []metastore.Ref{want}) {
		t.Errorf("the step of the old server: %+v", last)
	}
}

// TestUpgradedAgain: after the way back, the next upgrade keeps a copy too, beside the
// first. One that was broken off after its copy leaves no second of the same content.
func TestUpgradedAgain(t *testing.T) {
	dump, err := os.ReadFile("testdata/schema3.sql")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "old.db")
	run := func(path string, queries ...string) {
		t.Helper()
		db, err := sql.Open("sqlite", path)
		for _, q := range queries {
			if err == nil {
				_, err = db.ExecContext(t.Context(), q)
			}
		}
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	upgrade := func() {
		t.Helper()
		s, err := sqlite.Open(t.Context(), path)
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	back := func() {
		t.Helper()
		text, err := os.ReadFile(path + ".schema-3")
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	copies := func(want ...string) {
		t.Helper()
		got, err := filepath.Glob(filepath.Join(filepath.Dir(path), "old.db.schema-*"))
		for i := range got {
			got[i] = filepath.Base(got[i])
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	run(path, string(dump), "PRAGMA application_id = 0x434c4156")
	upgrade()
	back()
	upgrade()
	copies("old.db.schema-3")
	back()
	run(path, `INSERT INTO setting (name, value) VALUES ('since', 'then')`)
	upgrade()
	copies("old.db.schema-3", "old.db.schema-3-2")
	db, err := sql.Open("sqlite", path+".schema-3-2")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var value string
	if err := db.QueryRowContext(t.Context(),
		`SELECT value FROM setting WHERE name = 'since'`).Scan(&value); err != nil || value != "then" {
		t.Errorf("the second copy holds %q, %v", value, err)
	}
}

// TestKilledAtTheFirstOpening: a process that is killed while it makes a store leaves a
// whole one of this schema, or none, and the next one removes what else is left.
func TestKilledAtTheFirstOpening(t *testing.T) {
	dir := t.TempDir()
	none := 0
	for i := range 40 {
		path := filepath.Join(dir, fmt.Sprint(i, ".db"))
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), "CLAVIGER_STORETEST_LOCATION="+path, "CLAVIGER_STORETEST_FIRST=0")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		begun := func() bool {
			left, _ := filepath.Glob(filepath.Join(dir, "*"+fmt.Sprint(i, ".db*")))
			return len(left) > 0
		}
		for began := time.Now(); !begun() && time.Since(began) < 10*time.Second; {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(i) * time.Millisecond) // each child is killed at another moment
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // it was killed
		s, err := sqlite.OpenReadOnly(t.Context(), path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			none++
		case err != nil:
			t.Errorf("killed after %d ms: %v", i, err)
		default:
			_ = s.Close()
		}
	}
	if none == 0 {
		t.Error("no child was killed before it had made its store: the test tells nothing")
	}
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "last.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
