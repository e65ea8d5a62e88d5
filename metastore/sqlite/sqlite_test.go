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

func open(ctx context.Context, path string) (metastore.Store, error) { return sqlite.Open(ctx, path) }

func TestMain(m *testing.M) { os.Exit(storetest.Main(m, open)) }

// TestStore: a store passes the tests of each metastore.Store.
func TestStore(t *testing.T) {
	storetest.Run(t, storetest.Backend{
		// The name has all characters that have a meaning in a URI.
		New:  func(t *testing.T) string { return filepath.Join(t.TempDir(), "meta store?a=b#c%41.db") },
		Open: open,
	})
}

// TestDelegations: two stores on one file pass the tests of each metastore.Delegations.
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

// TestUpgraded opens a store of an older release, in which versions had no numbers.
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
	// .dump does not write the application id.
	for _, q := range []string{string(dump), "PRAGMA application_id = 0x434c4156"} {
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
		t.Errorf("the copy that the upgrade kept: %+v, %v", f, err)
	}

	// A server of the older release, which still runs, writes intents in the old format.
	old, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	if _, err := old.ExecContext(t.Context(),
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

// TestUpgradedAgain checks which copies the upgrades keep. After a return to the older release, the next upgrade keeps
// another copy beside the first, unless both have the same content.
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
	goBack := func() {
		t.Helper()
		text, err := os.ReadFile(path + ".schema-3")
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wantCopies := func(want ...string) {
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
	goBack()
	upgrade()
	wantCopies("old.db.schema-3")
	goBack()
	run(path, `INSERT INTO setting (name, value) VALUES ('example', 'changed')`)
	upgrade()
	wantCopies("old.db.schema-3", "old.db.schema-3-2")
	db, err := sql.Open("sqlite", path+".schema-3-2")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var value string
	if err := db.QueryRowContext(t.Context(),
		`SELECT value FROM setting WHERE name = 'example'`).Scan(&value); err != nil || value != "changed" {
		t.Errorf("the second copy holds %q, %v", value, err)
	}
}

// TestKilledDuringFirstOpen kills processes that make a store. Each store must be complete or missing, and the next
// Open removes the other files that a killed process left.
func TestKilledDuringFirstOpen(t *testing.T) {
	dir := t.TempDir()
	missing := 0
	for i := range 40 {
		path := filepath.Join(dir, fmt.Sprint(i, ".db"))
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), "CLAVIGER_STORETEST_LOCATION="+path, "CLAVIGER_STORETEST_FIRST=0")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		started := func() bool {
			files, _ := filepath.Glob(filepath.Join(dir, "*"+fmt.Sprint(i, ".db*")))
			return len(files) > 0
		}
		for began := time.Now(); !started() && time.Since(began) < 10*time.Second; {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(i) * time.Millisecond) // each child is killed at a different moment
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // the error says that it was killed
		s, err := sqlite.OpenReadOnly(t.Context(), path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing++
		case err != nil:
			t.Errorf("killed after %d ms: %v", i, err)
		default:
			_ = s.Close()
		}
	}
	if missing == 0 {
		t.Error("no child was killed before its store was complete, so this test has checked nothing")
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
