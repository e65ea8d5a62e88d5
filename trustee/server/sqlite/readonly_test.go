package sqlite

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pressly/goose/v3"

	"claviger"
	"claviger/sqlitedb"
)

// olderStore makes a store with schema 2 that holds an organization.
func olderStore(t *testing.T, path string) {
	t.Helper()
	s, err := Open(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"DROP TABLE goose_db_version", "DROP TABLE deposit", "DROP TABLE client",
		"DROP TABLE org", "DROP TABLE once", "DROP TABLE change", "DROP TABLE standing"} {
		if _, err := s.db.Writer.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.db.Writer, files, goose.WithLogger(goose.NopLogger()))
	if err == nil {
		_, err = p.UpTo(t.Context(), schemaVersion-1)
	}
	if err == nil {
		_, err = s.db.Writer.ExecContext(t.Context(), "INSERT INTO org (name, uuid, contacts, auth, created) VALUES "+
			"('ORG', 'u', '[]', 's', 1)")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestOpenReadOnly: no file is changed. A file that is not a store is refused. A store with an older schema can be
// read.
func TestOpenReadOnly(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	for name, text := range map[string]string{"empty": "", "text": strings.Repeat("no database ", 1000)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	olderStore(t, filepath.Join(dir, "older"))
	olderStore(t, filepath.Join(dir, "now"))
	s, err := Open(t.Context(), filepath.Join(dir, "now"), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"empty": "is empty", "text": "not a database", "missing": "no such file", "older": "", "now": "",
	} {
		file := filepath.Join(dir, name)
		before, _ := os.ReadFile(file) // one file does not exist
		s, release, err := OpenReadOnly(t.Context(), file)
		switch {
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v", name, err)
		case want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case err == nil:
			orgs, err := s.Orgs(t.Context())
			if err != nil || len(orgs) != 1 || orgs[0].Name != "ORG" {
				t.Errorf("%s: %+v, %v", name, orgs, err)
			}
			if err := s.SetAuth(t.Context(), "ORG", "other"); name == "now" && !claviger.Is(err, claviger.Unavailable) {
				t.Errorf("a change: %v", err)
			}
			if err := release(); err != nil {
				t.Error(err)
			}
		}
		if after, _ := os.ReadFile(file); !bytes.Equal(after, before) {
			t.Errorf("%s was changed", name)
		}
	}
	if list, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	if list, err := filepath.Glob(filepath.Join(dir, "*-wal")); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

// exec changes the file of a store that no process has open.
func exec(t *testing.T, path, query string) {
	t.Helper()
	db, err := sqlitedb.Connect(path, 0)
	check(t, err)
	_, err = db.ExecContext(t.Context(), query)
	check(t, errors.Join(err, db.Close()))
}

// damage overwrites the beginning of a table in the file of a store that no process has open.
func damage(t *testing.T, path, table string) {
	t.Helper()
	db, err := sqlitedb.Connect(path, 0)
	check(t, err)
	var root int64
	err = db.QueryRowContext(t.Context(), `SELECT rootpage FROM sqlite_schema WHERE name = ?`, table).Scan(&root)
	check(t, errors.Join(err, db.Close()))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("\xff\xff\xff\xff"), (root-1)*4096)
	check(t, errors.Join(err, f.Close()))
}

// TestOpenReadOnlyFails: if a store cannot be read or copied, no file is left open, and no temporary file is left.
func TestOpenReadOnlyFails(t *testing.T) {
	run := func(query string) func(*testing.T, string) {
		return func(t *testing.T, path string) { t.Helper(); exec(t, path, query) }
	}
	for what, tt := range map[string]struct {
		change func(t *testing.T, path string)
		kind   claviger.Kind
		want   string
	}{
		"no version": {run("DROP TABLE goose_db_version"), claviger.Invalid,
			"is not a trustee's store, or an unfinished copy"},
		"another program": {run("PRAGMA application_id = 7"), claviger.Invalid, "database of another program"},
		"no temporary folder": {func(t *testing.T, path string) { t.Setenv("TMPDIR", path+".none") },
			claviger.Unavailable, "no such file"},
		"a damaged page": {func(t *testing.T, path string) { damage(t, path, "org") }, claviger.Unavailable,
			"is damaged"},
		"a schema that cannot be upgraded": {run("CREATE TABLE change (x)"), claviger.Internal, "already exists"},
	} {
		t.Run(what, func(t *testing.T) {
			dir, tmp := t.TempDir(), t.TempDir()
			t.Setenv("TMPDIR", tmp)
			path := filepath.Join(dir, "store")
			olderStore(t, path)
			tt.change(t, path)
			s, release, err := OpenReadOnly(t.Context(), path)
			if s != nil || release != nil || !claviger.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want kind %v, %q", err, tt.kind, tt.want)
			}
			if open := append(openFiles(t, dir), openFiles(t, tmp)...); len(open) > 0 {
				t.Errorf("open are %s", open)
			}
			if list, err := os.ReadDir(tmp); err != nil || len(list) > 0 {
				t.Errorf("left behind: %v, %v", list, err)
			}
		})
	}
}

// TestRelease: the store that OpenReadOnly returns is closed by release, which returns the error of the close.
func TestRelease(t *testing.T) {
	dir, tmp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	path := filepath.Join(dir, "store")
	olderStore(t, path)
	for _, want := range []error{nil, errUnclosed} {
		s, release, err := OpenReadOnly(t.Context(), path)
		check(t, err)
		check(t, s.Check(t.Context()))
		if want != nil {
			addUnclosable(t, s)
		}
		if err := release(); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		if open := append(openFiles(t, dir), openFiles(t, tmp)...); len(open) > 0 {
			t.Errorf("open are %s", open)
		}
	}
}
