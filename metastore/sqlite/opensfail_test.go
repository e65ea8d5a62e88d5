package sqlite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"claviger/internal/faultsql"
	"claviger/owner"
)

// TestEachCallOfAnOpeningFails makes each call to SQLite fail, one after the other, of the functions that open files.
// The function must return an error, close its connections, and leave no file behind.
func TestEachCallOfAnOpeningFails(t *testing.T) {
	injectFaults(t)
	s, path := newStore(t)
	mustInsert(t, s, "k", "0")
	dir := t.TempDir()
	backup, target, to := filepath.Join(dir, "backup"), filepath.Join(dir, "store.db"), filepath.Join(dir, "copy")
	if _, err := Backup(t.Context(), path, backup); err != nil {
		t.Fatal(err)
	}
	if err := copyFile(backup, target); err != nil {
		t.Fatal(err)
	}
	type opened = func() error // ends what a function has opened
	closed := func(s *Store, err error) (opened, error) {
		if err != nil {
			return nil, err
		}
		return s.Close, nil
	}
	stage := func(ctx context.Context) (*Staged, error) { return Stage(ctx, backup, target, false) }
	for name, do := range map[string]func(ctx context.Context) (opened, error){
		"Open":         func(ctx context.Context) (opened, error) { return closed(Open(ctx, target)) },
		"OpenReadOnly": func(ctx context.Context) (opened, error) { return closed(OpenReadOnly(ctx, path)) },
		"Inspect":      func(ctx context.Context) (opened, error) { _, err := Inspect(ctx, backup); return nil, err },
		"Backup": func(ctx context.Context) (opened, error) {
			_, err := Backup(ctx, path, to)
			return func() error { return os.Remove(to) }, err
		},
		"Stage": func(ctx context.Context) (opened, error) {
			staged, err := stage(ctx)
			if err != nil {
				return nil, err
			}
			if err := staged.SkipNumbersOf(ctx, s); err != nil {
				return nil, errors.Join(err, staged.Discard())
			}
			return staged.Discard, nil
		},
		"Open and Close": func(ctx context.Context) (opened, error) {
			end, err := closed(Open(ctx, target))
			if err != nil {
				return nil, err
			}
			return nil, end()
		},
		"Stage and Discard": func(ctx context.Context) (opened, error) {
			staged, err := stage(ctx)
			if err != nil {
				return nil, err
			}
			return nil, staged.Discard()
		},
		"Stage and Replace": func(ctx context.Context) (opened, error) {
			staged, err := stage(ctx)
			if err != nil {
				return nil, err
			}
			aside, err := staged.Replace(ctx)
			if err != nil {
				return nil, errors.Join(err, staged.Discard())
			}
			return func() error { return errors.Join(os.Remove(aside), staged.Discard()) }, nil
		},
		"Claim": func(ctx context.Context) (opened, error) {
			release, err := s.Claim(ctx, owner.Self("claviger kms", ""), false)
			return func() error { release(); return nil }, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var want []string
			if name == "Stage and Replace" { // a damaged store, which cannot be opened, is replaced too
				want = []string{faultsql.Connect, faultsql.Close}
			}
			if got := eachCallFails(t, dir, do); !slices.Equal(got, want) {
				t.Errorf("the calls that may fail are %q, want %q", got, want)
			}
		})
	}
}

// eachCallFails runs do with one fault after the other. The files of dir must stay the same. It returns the calls that
// failed without an error of do, except checkpoints, which are repeated later.
func eachCallFails(t *testing.T, dir string, do func(ctx context.Context) (end func() error, err error)) (
	unnoticed []string) {
	t.Helper()
	files := namesIn(t, dir)
	conns, results := faults.Unclosed()
	rounds := 0
	var end func() error
	for fault, err := range faults.EachFails(func() (err error) { end, err = do(t.Context()); return err }) {
		rounds++
		switch {
		case fault.Number == 0 && err != nil:
			t.Errorf("without a fault: %v", err)
		case fault.Number == 0:
		case err == nil && !strings.HasPrefix(fault.Statement, "PRAGMA wal_checkpoint"):
			unnoticed = append(unnoticed, fault.Call)
		case err != nil && fault.Call != faultsql.Scan && !errors.Is(err, faultsql.ErrInjected):
			t.Errorf("%s: the error is %v", fault, err)
		}
		if err == nil && end != nil {
			if err := end(); err != nil {
				t.Error(err)
			}
		}
		if c, r := faults.Unclosed(); c > conns || r > results {
			t.Errorf("%s leaves %d connections and %d results open", fault, c-conns, r-results)
			conns, results = c, r
		}
		if got := namesIn(t, dir); !slices.Equal(got, files) {
			t.Fatalf("%s leaves the files %q", fault, got)
		}
	}
	if rounds < 2 {
		t.Error("no call can fail")
	}
	return unnoticed
}

// namesIn returns the names of the files in a folder, without SQLite's own files.
func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if own := filepath.Ext(e.Name()); own != ".db-wal" && own != ".db-shm" && own != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestOpenEmptyFails checks that OpenEmpty returns the error of a statement that cannot be prepared, and closes the
// database.
func TestOpenEmptyFails(t *testing.T) {
	injectFaults(t)
	conns, _ := faults.Unclosed()
	for _, statement := range []string{selectByName, selectByVersion} {
		err := faults.FailStatement(statement, func() error {
			_, err := OpenEmpty(t.Context(), filepath.Join(t.TempDir(), "x.db"))
			return err
		})
		if !errors.Is(err, faultsql.ErrInjected) {
			t.Error(err)
		}
		if n, _ := faults.Unclosed(); n != conns {
			t.Errorf("%d connections are open", n-conns)
		}
	}
}

// TestOpenInMissingFolder checks that the error says how to make the folder.
func TestOpenInMissingFolder(t *testing.T) {
	_, err := Open(t.Context(), filepath.Join(t.TempDir(), "missing", "x.db"))
	if err == nil || !strings.Contains(err.Error(), "make the folder, owned by the user") {
		t.Error(err)
	}
}

// TestOpenLink checks that a store knows the file to which its path links, because SQLite's own files are beside it.
func TestOpenLink(t *testing.T) {
	s, path := newStore(t)
	link := filepath.Join(t.TempDir(), "link.db")
	if err := errors.Join(s.Close(), os.Symlink(path, link)); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if s.guard.path != link || s.guard.real != path {
		t.Errorf("the guard checks %s and %s", s.guard.path, s.guard.real)
	}
}

// TestVersionCure checks the cure for a store with another schema.
func TestVersionCure(t *testing.T) {
	for version, want := range map[int64]string{SchemaVersion - 1: "start the server once",
		SchemaVersion + 1: "run the claviger that has written version"} {
		if got := versionCure(version); !strings.Contains(got, want) {
			t.Errorf("version %d: %s", version, got)
		}
	}
}
