package sqlite

import (
	"database/sql"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/sqlitedb"
)

// change runs statements on the closed store in a file, without the checks of a store.
func change(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", sqlitedb.URI(path, busyTimeout, "_pragma=writable_schema(1)"))
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range statements {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestInspectDamage checks that Inspect detects damage that SQLite does not detect when it reads the rows.
func TestInspectDamage(t *testing.T) {
	for statement, want := range map[string]string{
		// The pages of an index that the schema does not have belong to nothing.
		`DELETE FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL`: "never used; if it is a store",
		`INSERT INTO key_version (key_id, seq, id, object, created, check_value)
			VALUES (999, 0, '1', '1', 0, x'00')`: "it is damaged: it has versions that belong to no key",
		`INSERT INTO setting (name, value) VALUES ('backup.made', 'yesterday')`: `parsing time "yesterday"`,
	} {
		stopped, _ := replaceFolders(t)
		path := filepath.Join(stopped, "store.db")
		if _, err := Inspect(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		change(t, path, statement)
		if _, err := Inspect(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("after %s: %v", statement, err)
		}
	}
}

// TestInspectOtherFiles checks the errors for a path that has no file.
func TestInspectOtherFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := Inspect(t.Context(), filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := Inspect(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a folder: %v", err)
	}
}

// TestBackupOfOtherFile checks that the error of a backup names the file that is not a metastore, and not the copy.
func TestBackupOfOtherFile(t *testing.T) {
	other, to := filepath.Join(t.TempDir(), "other.db"), filepath.Join(t.TempDir(), "copy")
	change(t, other, `CREATE TABLE t (x)`)
	_, err := Backup(t.Context(), other, to)
	if err == nil || !strings.Contains(err.Error(), other+" is not a metastore") {
		t.Error(err)
	}
}

// TestDamagedAttributes checks that attributes which are not texts are an error.
func TestDamagedAttributes(t *testing.T) {
	s, path := newStore(t)
	mustInsert(t, s, "deleted", "1")
	mustInsert(t, s, "k", "0")
	if err := s.SoftDelete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	change(t, path, `UPDATE ez_key SET attributes = '{"a": 1}'`, `UPDATE deleted_key SET attributes = '{"a": 1}'`)
	_, get := s.Get(t.Context(), "k")
	_, _, byVersion := s.ByVersion(t.Context(), "k@0")
	_, deleted := s.DeletedKeys(t.Context())
	for name, err := range map[string]error{"Get": get, "ByVersion": byVersion, "DeletedKeys": deleted} {
		if err == nil || !strings.Contains(err.Error(), "attributes of the key are damaged") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamagedIntent checks that a step is an error if its lists hold no texts, or have different lengths.
func TestDamagedIntent(t *testing.T) {
	for lists, want := range map[string]string{
		`'[1]', '["b"]'`:        "cannot unmarshal number",
		`'["a", "b"]', '["c"]'`: "2 ids, 1 objects",
	} {
		s, path := newStore(t)
		change(t, path, `INSERT INTO intent (key, op, ids, objects, begun, payload)
			VALUES ('k', 'create', `+lists+`, 1, x'')`)
		_, err := s.Pending(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `intent of key "k"`) {
			t.Errorf("%s: %v", lists, err)
		}
	}
}

// TestContentOfOldIntent checks that a step of an older release, which has no HSM objects, is read with its ids.
func TestContentOfOldIntent(t *testing.T) {
	s, path := newStore(t)
	change(t, path, `INSERT INTO intent (key, op, ids, begun, payload) VALUES ('k', 'create', '["a1"]', 1, x'')`)
	c, err := s.Content(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if row := c.Rows["intent"][0]; !slices.Equal(row[3:5], []any{`["a1"]`, `["a1"]`}) {
		t.Errorf("the row is %q", row)
	}
}
