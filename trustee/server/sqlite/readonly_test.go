package sqlite

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pressly/goose/v3"

	"claviger"
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

// TestOpenReadOnly: no file is changed. A file that is no store is refused. A store with an older schema can be
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
