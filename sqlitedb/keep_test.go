package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/owner"
)

// upgrade opens a file of the first schema with the program of the second schema, which keeps a copy.
func upgrade(t *testing.T, path string, k Copies) error {
	t.Helper()
	c := testConfig()
	c.Schema.Before = KeepCopy(k)
	d, err := Open(t.Context(), path, c)
	if err != nil {
		return err
	}
	return d.Close()
}

// older makes a file of the older (first) schema, with one row.
func older(t *testing.T, path, name string) {
	t.Helper()
	d := created(t, path, firstSchema(testConfig()))
	if err := errors.Join(insert(t.Context(), d, name, 1), d.Close()); err != nil {
		t.Fatal(err)
	}
}

// goBack replaces the file with its copy of the first schema.
func goBack(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path + ".schema-1")
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// namesIn returns the names of the files in a folder.
func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// TestKeepCopy checks that each upgrade keeps a copy which the older release can open, but no second copy with the same
// content.
func TestKeepCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	older(t, path, "first")
	made := 0
	k := Copies{Except: map[string]string{"thing": "name = 'mark'"}, Sanitize: func(ctx context.Context,
		copied string) error {
		made++
		db, err := Connect(copied, 0)
		if err == nil {
			_, err = db.ExecContext(ctx, "INSERT OR REPLACE INTO thing (name, size) VALUES ('mark', ?)", made)
			err = errors.Join(err, db.Close())
		}
		return err
	}}
	for round := range 3 {
		if err := upgrade(t, path, k); err != nil {
			t.Fatal(err)
		}
		want := []string{"s.db", "s.db.lock", "s.db.schema-1", "s.db.schema-1-2"}
		if names := namesIn(t, filepath.Dir(path)); !slices.Equal(names, want[:3+round/2]) {
			t.Errorf("round %d: %q", round, names)
		}
		goBack(t, path)
		if round == 1 {
			d := created(t, path, firstSchema(testConfig()))
			if err := errors.Join(insert(t.Context(), d, "second", 2), d.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for suffix, rows := range map[string]int{".schema-1": 2, ".schema-1-2": 3} { // one of the rows is the mark
		info, err := os.Stat(path + suffix)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", suffix, info, err)
		}
		if d := created(t, path+suffix, firstSchema(testConfig())); count(t, d) != rows {
			t.Errorf("%s has %d rows, want %d", suffix, count(t, d), rows)
		}
	}
}

// TestNoUpgradeWithoutCopy checks that a file is not upgraded while another process uses it, or if no good copy can be
// made.
func TestNoUpgradeWithoutCopy(t *testing.T) {
	for name, c := range map[string]struct {
		k     Copies
		claim bool
		want  string
	}{
		"in use": {claim: true, want: "in use by claviger kms"},
		"Sanitize fails": {want: "not sanitized", k: Copies{
			Sanitize: func(context.Context, string) error { return errors.New("not sanitized") }}},
		"a damaged copy":   {k: Copies{Sanitize: damage}, want: "it is damaged"},
		"a lost reference": {k: Copies{Sanitize: orphan}, want: "rows that are missing"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.db")
			older(t, path, "a")
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if c.claim {
				release, err := owner.Claim(path+".lock", path, owner.Self("claviger kms", ""))
				if err != nil {
					t.Fatal(err)
				}
				defer release()
			}
			err = upgrade(t, path, c.k)
			if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), c.want) ||
				!strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
				t.Errorf("the file was changed, or %v", err)
			}
			if names := namesIn(t, filepath.Dir(path)); !slices.Equal(names, []string{"s.db", "s.db.lock"}) {
				t.Errorf("left behind: %q", names)
			}
		})
	}
}

// damage overwrites the root page of the table.
func damage(_ context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte(strings.Repeat("\xff", 100)), 4096)
		err = errors.Join(err, f.Close())
	}
	return err
}

// orphan adds a row that refers to a row which does not exist.
func orphan(ctx context.Context, path string) error {
	db, err := Connect(path, 0)
	for _, q := range []string{"CREATE TABLE part (thing TEXT REFERENCES thing (name))",
		"INSERT INTO part VALUES ('none')"} {
		if err == nil {
			_, err = db.ExecContext(ctx, q)
		}
	}
	if err != nil {
		return fmt.Errorf("orphan: %w", err)
	}
	return db.Close()
}
