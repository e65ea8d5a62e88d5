package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/sqlitedb"
	"claviger/trustee/server"
	"claviger/trustee/server/storetest"
)

// TestOpenRefuses: Open refuses a file that is not a trustee's store, and does not change the file.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	do := func(path string, queries ...string) {
		t.Helper()
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, q := range queries {
			if _, err := db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
	}
	do(file("other"), "CREATE TABLE t (x)")
	if err := os.WriteFile(file("text"), []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), file("newer"), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	do(file("newer"), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)")
	for name, c := range map[string]struct {
		kind claviger.Kind
		want string
	}{
		"other":   {claviger.Invalid, "database of another program"},
		"text":    {claviger.Unavailable, "not a database"},
		"newer":   {claviger.Unavailable, "newer claviger"},
		"missing": {claviger.Invalid, "claviger trustee init"},
	} {
		before, _ := os.ReadFile(file(name)) // one file does not exist
		s, err := Open(t.Context(), file(name), false)
		if !claviger.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), file(name)) {
			t.Errorf("%s: %v; want kind %v, %q", name, err, c.kind, c.want)
		}
		if err == nil {
			_ = s.Close()
		}
		if after, _ := os.ReadFile(file(name)); string(after) != string(before) {
			t.Errorf("%s was changed", name)
		}
	}
}

// TestSchemaVersion: schemaVersion is the number of the newest migration.
func TestSchemaVersion(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "trustee.db"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if v, err := s.db.Version(t.Context()); err != nil || v != schemaVersion {
		t.Errorf("version %d, %v", v, err)
	}
}

// TestUpgradeKeepsACopy: Open makes a copy of a store with an older schema before it upgrades the store.
func TestUpgradeKeepsACopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trustee.db")
	olderStore(t, path)
	s, err := Open(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	check(t, s.Close())
	kept, release, err := OpenReadOnly(t.Context(), path+fmt.Sprintf(".schema-%d", schemaVersion-1))
	if err != nil {
		t.Fatal(err)
	}
	if orgs, err := kept.Orgs(t.Context()); err != nil || len(orgs) != 1 {
		t.Errorf("%+v, %v", orgs, err)
	}
	check(t, release())
}

// TestDamagedStore: a store with a damaged page is not opened, and the error says what to do.
func TestDamagedStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trustee.db")
	s, err := Open(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	check(t, s.Close())
	damage(t, path, "deposit")
	if _, err := Open(t.Context(), path, false); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), path+" is damaged") || !strings.Contains(err.Error(), "from the other trustee") {
		t.Errorf("opened: %v", err)
	}
}

// TestTwoProcesses: orgtool works beside a running server.
func TestTwoProcesses(t *testing.T) {
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "trustee.db")
	running, err := Open(ctx, path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	for _, name := range []string{"A", "B"} {
		tool, err := Open(ctx, path, false)
		if err != nil {
			t.Fatal(err)
		}
		o := server.Org{Name: name, UUID: name, Contacts: []string{"a@b"}, Auth: "s", Created: time.UnixMilli(1)}
		if err := tool.AddOrg(ctx, o); err != nil {
			t.Fatal(err)
		}
		if err := tool.AddOrg(ctx, o); !claviger.Is(err, claviger.KeyExists) {
			t.Errorf("a second AddOrg: %v", err)
		}
		if err := tool.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := running.Org(ctx, name); err != nil || got.Auth != "s" || !got.Created.Equal(o.Created) ||
			len(got.Contacts) != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if all, err := running.Orgs(ctx); err != nil || len(all) != 2 || all[0].Name != "A" {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestFull: if the disk is full, the error about a deposit says so, and the store keeps its records. It accepts
// the deposit when there is room again.
func TestFull(t *testing.T) {
	ctx, s := t.Context(), newFilledStore(t)
	var pages int
	check(t, s.db.Writer.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages))
	limit := func(n int) {
		t.Helper()
		_, err := s.db.Writer.ExecContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", n))
		check(t, err)
	}
	limit(pages + 8) // SQLite fails as it does at ENOSPC: SQLITE_FULL
	put := func(i int) error {
		r := storetest.Row(i)
		r.Sealed.Content = make([]byte, 10<<10)
		return s.Put(ctx, r, "", storetest.Request(fmt.Sprint("f", i)))
	}
	var err error
	n := 100
	for ; err == nil && n < 200; n++ {
		err = put(n)
	}
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "full") ||
		!strings.Contains(err.Error(), s.db.Path()) {
		t.Fatalf("after %d deposits: %v", n-100, err)
	}
	if s.Failures() == 0 {
		t.Error("the failure is not counted")
	}
	for i := 100; i < n-1; i++ {
		if _, err := s.Get(ctx, fmt.Sprint("u", i)); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Get(ctx, fmt.Sprint("u", n-1)); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("a refused deposit: %v", err)
	}
	limit(pages + 100)
	check(t, put(n-1)) // the same request
}

// TestRemovedAtStart: a store whose file is removed while the store is opened is not opened, and keeps no file open.
func TestRemovedAtStart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "trustee.db")
	olderStore(t, path)
	c := config
	c.Schema.Before = func(context.Context, *sqlitedb.DB, int64) error { return os.Remove(path) }
	s, err := open(t.Context(), path, c)
	if s != nil || !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	if open := openFiles(t, dir); len(open) > 0 {
		t.Errorf("open files: %s", open)
	}
}

// unclosable is a connector, and a connection that cannot be closed.
type unclosable struct {
	driver.Connector
	driver.Conn
}

var errUnclosed = errors.New("it cannot be closed")

func (u unclosable) Connect(context.Context) (driver.Conn, error) { return u, nil }

func (unclosable) Close() error { return errUnclosed }

// addUnclosable replaces the reading connections of a store by one that cannot be closed.
func addUnclosable(t *testing.T, s *Store) {
	t.Helper()
	check(t, s.db.Reader.Close())
	s.db.Reader = sql.OpenDB(unclosable{})
	conn, err := s.db.Reader.Conn(t.Context())
	check(t, err)
	check(t, conn.Close()) // the pool keeps the connection
}

// TestClose: Close closes the files, and returns the error of a close.
func TestClose(t *testing.T) {
	for _, want := range []error{nil, errUnclosed} {
		dir := t.TempDir()
		s, err := Open(t.Context(), filepath.Join(dir, "trustee.db"), true)
		check(t, err)
		check(t, s.CheckWrites(t.Context()))
		if len(openFiles(t, dir)) == 0 {
			t.Error("an open store has no open file")
		}
		if want != nil {
			addUnclosable(t, s)
		}
		if err := s.Close(); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		if open := openFiles(t, dir); len(open) > 0 {
			t.Errorf("open files: %s", open)
		}
	}
}

// TestNoFolder: Open makes no store in a missing folder, and Save fails if the store's folder is missing.
func TestNoFolder(t *testing.T) {
	if s, err := Open(t.Context(), filepath.Join(t.TempDir(), "none", "trustee.db"), true); s != nil || err == nil ||
		!strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	a := newFilledStore(t)
	dir := filepath.Dir(a.db.Path())
	check(t, os.Rename(dir, dir+".away"))
	failures := a.Failures()
	if name, err := a.Save(t.Context(), "x"); name != "" || !claviger.Is(err, claviger.Unavailable) ||
		a.Failures() != failures+1 {
		t.Errorf("%q, %v, and %d failures", name, err, a.Failures()-failures)
	}
	check(t, os.Rename(dir+".away", dir))
}
