package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/owner"
)

// served is a store that a server has: with keys old and young, of which the copy that
// is returned knows old alone.
func served(t *testing.T) (s *Store, path, copied string) {
	t.Helper()
	s, path = newStore(t)
	if _, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false); err != nil {
		t.Fatal(err)
	}
	copied = filepath.Join(t.TempDir(), "copy.db")
	mustInsert(t, s, "old", "01")
	if _, err := Backup(t.Context(), path, copied); err != nil {
		t.Fatal(err)
	}
	mustInsert(t, s, "young", "02")
	return s, path, copied
}

func mustInsert(t *testing.T, s *Store, name, id string) {
	t.Helper()
	if err := s.Insert(t.Context(), testKey(name, id)); err != nil {
		t.Fatal(err)
	}
}

// folded waits until the file alone holds everything.
func folded(t *testing.T, path string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if st, err := os.Stat(path + "-wal"); err == nil && st.Size() == 0 {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal("the -wal is not moved into the file")
		}
	}
}

// overwrite is cp: the file keeps its inode.
func overwrite(t *testing.T, from, to string) {
	t.Helper()
	if err := copyFile(from, to); err != nil {
		t.Fatal(err)
	}
}

// noticed waits until the store itself, which nobody asks meanwhile, has noticed.
func noticed(t *testing.T, s *Store, texts ...string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		seen, ok := s.LastWrite()
		if ok && claviger.AnswerOf(seen.Err) != "" {
			for _, text := range texts {
				if !strings.Contains(seen.Err.Error(), text) {
					t.Errorf("%q is not in %v", text, seen.Err)
				}
			}
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal("the store does not notice")
		}
	}
}

func wantRefused(t *testing.T, what string, err error) {
	t.Helper()
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(claviger.AnswerOf(err), "nothing is changed") ||
		!strings.Contains(err.Error(), "claviger metastore verify") {
		t.Errorf("%s: %v", what, err)
	}
}

// wantKeys wants a file to be whole and to know these keys, by its own and what lies
// beside it, as the next start would see it.
func wantKeys(t *testing.T, path string, names ...string) {
	t.Helper()
	to := filepath.Join(t.TempDir(), "look.db")
	for _, end := range []string{"", "-wal"} {
		if err := copyFile(path+end, to+end); err != nil && (end == "" || !errors.Is(err, fs.ErrNotExist)) {
			t.Fatal(err)
		}
	}
	s, err := Open(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := s.Names(t.Context()); err != nil || strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("%s knows %q, %v; want %q", path, got, err, names)
	}
}

// TestWrittenOver: a file that is copied over the store of a running server is noticed,
// is not read as the server's own, and stays as it was copied, after the end too.
func TestWrittenOver(t *testing.T) {
	for name, at := range map[string]struct {
		late bool // after the -wal was moved into the file
		with func(t *testing.T, copied string) string
	}{
		"an old copy": {late: true, with: func(_ *testing.T,
			copied string) string {
			return copied
		}},
		"an old copy, just after change": {with: func(_ *testing.T, copied string) string { return copied }},
		"any file": {late: true, with: func(t *testing.T, _ string) string {
			path := filepath.Join(t.TempDir(), "any")
			if err := os.WriteFile(path, bytes.Repeat([]byte("any"), 10000), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}},
		"nothing": {late: true, with: func(t *testing.T, _ string) string {
			path := filepath.Join(t.TempDir(), "empty")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s, path, copied := served(t)
			with := at.with(t, copied)
			if at.late {
				folded(t, path)
				summed(t, s) // and how it stands then is noted
			} else {
				mustInsert(t, s, "youngest", "03")
			}
			overwrite(t, with, path)
			_, err := s.Names(t.Context())
			wantRefused(t, "reading", err)
			noticed(t, s, path, "was written over in place")
			for what, err := range map[string]error{"insert": s.Insert(t.Context(), testKey("lost", "04")),
				"delete": s.Shelve(t.Context(),
					"old"), "readiness": s.Check(t.Context()), "readiness for changes": s.CheckWrites(t.Context())} {
				wantRefused(t, what, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			want, err := os.ReadFile(with)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file that was put there was changed (%v)", err)
			}
			if st, err := os.Stat(path + "-wal"); err == nil && st.Size() > 0 {
				t.Error("the next start would play the -wal into the file")
			}
			if with == copied {
				wantKeys(t, path, "old")
			}
		})
	}
}

// TestWrittenOverAtTheEnd: a file that is copied over the store right before the server
// ends stays as it was copied.
func TestWrittenOverAtTheEnd(t *testing.T) {
	s, path, copied := served(t)
	want, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	mustInsert(t, s, "youngest", "03")
	overwrite(t, copied, path)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file that was put there was changed (%v)", err)
	}
	wantKeys(t, path, "old")
}

// TestWrittenOverWithWAL: copies of all of SQLite's files, whose store counts fewer
// changes, over those of a running server.
func TestWrittenOverWithWAL(t *testing.T) {
	s, path, _ := served(t)
	folded(t, path)
	reader, err := s.db.Reader.BeginTx(t.Context(), nil) // keeps the -wal as it is
	if err != nil {
		t.Fatal(err)
	}
	// nolint:rowserrcheck,sqlclosecheck // to have begun
	if _, err := reader.QueryContext(t.Context(), "SELECT name FROM ez_key"); err != nil {
		t.Fatal(err)
	}
	mustInsert(t, s, "third", "03")
	dir := t.TempDir()
	for _, end := range []string{"", "-wal", "-shm"} {
		overwrite(t, path+end, filepath.Join(dir, "c"+end))
	}
	mustInsert(t, s, "fourth", "04")
	for _, end := range []string{"-wal", "-shm"} { // the file itself was not changed
		overwrite(t, filepath.Join(dir, "c"+end), path+end)
	}
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	noticed(t, s, "was replaced by an older copy")
	wantRefused(t, "insert", s.Insert(t.Context(), testKey("lost", "05")))
}

// TestTakenAway: a store that is moved, removed or replaced by another file gets the last
// changes, is read on, and takes no more. Back in its place it goes on.
func TestTakenAway(t *testing.T) {
	for name, put := range map[string]func(path, copied string) error{
		"moved":    func(string, string) error { return nil },
		"copied":   func(path, copied string) error { return copyFile(copied, path) },
		"replaced": func(path, copied string) error { return os.Rename(copied, path) },
	} {
		t.Run(name, func(t *testing.T) {
			s, path, copied := served(t)
			want, err := os.ReadFile(copied)
			if err == nil {
				err = os.Rename(path, path+".moved")
			}
			if err == nil {
				err = put(path, copied)
			}
			if err != nil {
				t.Fatal(err)
			}
			noticed(t, s, "is no longer the file that this process has open")
			wantRefused(t, "insert", s.Insert(t.Context(), testKey("lost", "04")))
			if names, err := s.Names(t.Context()); err != nil || len(names) != 2 {
				t.Errorf("reading: %q, %v", names, err)
			}
			if name == "moved" {
				if err := os.Rename(path+".moved", path); err != nil {
					t.Fatal(err)
				}
				mustInsert(t, s, "again", "05")
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				wantKeys(t, path, "again", "old", "young")
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file that was put there was changed (%v)", err)
			}
			wantKeys(t, path, "old")
			wantKeys(t, path+".moved", "old", "young")
		})
	}
	t.Run("its -wal", func(t *testing.T) {
		s, path, _ := served(t)
		if err := os.Remove(path + "-wal"); err != nil {
			t.Fatal(err)
		}
		noticed(t, s, "-wal or -shm")
		wantRefused(t, "insert", s.Insert(t.Context(), testKey("lost", "04")))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wantKeys(t, path, "old", "young")
	})
}

// TestTouched: a file whose time alone was changed is used as before, and SQLite's locks
// of it stay. One that is written over afterwards is found nevertheless.
func TestTouched(t *testing.T) {
	for name, touch := range map[string]func(t *testing.T, path string){
		"touch": func(*testing.T, string) {},
		"the same content, copied over it": func(t *testing.T, path string) {
			// Another process: what this one closes would end SQLite's locks.
			err := exec.CommandContext(t.Context(), "sh", "-c", `cp "$0" "$0.same" && cp "$0.same" "$0"`, path).Run()
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, path := newStore(t) // not served, which opens and closes the file
			if _, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false); err != nil {
				t.Fatal(err)
			}
			mustInsert(t, s, "old", "01")
			mustInsert(t, s, "young", "02")
			folded(t, path)
			summed(t, s)
			touch(t, path)
			locks := locksOf(t, path)
			if locks == "" {
				t.Fatal("SQLite has no locks of the file")
			}
			stamp := time.Now().Add(time.Hour)
			if err := os.Chtimes(path, stamp, stamp); err != nil {
				t.Fatal(err)
			}
			if names, err := s.Names(t.Context()); err != nil || len(names) != 2 {
				t.Errorf("reading: %q, %v", names, err)
			}
			mustInsert(t, s, "third", "03")
			folded(t, path)
			summed(t, s)
			if got := locksOf(t, path); got != locks {
				t.Errorf("SQLite's locks of the file were %s, and are %s", locks, got)
			}
			if seen, ok := s.LastWrite(); !ok || seen.Err != nil {
				t.Errorf("%+v", seen)
			}
			copied := filepath.Join(t.TempDir(), "copy.db")
			if _, err := Backup(t.Context(), path, copied); err != nil {
				t.Fatal(err)
			}
			overwrite(t, copied, path)
			noticed(t, s, "was written over in place")
			wantRefused(t, "insert", s.Insert(t.Context(), testKey("lost", "04")))
		})
	}
	t.Run("one byte differs", func(t *testing.T) {
		s, path, _ := served(t)
		folded(t, path)
		summed(t, s)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{0xff}, 5000); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = s.Names(t.Context())
		wantRefused(t, "reading", err)
	})
}

// summed waits until the content is known as the file stands.
func summed(t *testing.T, s *Store) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		s.place.mu.Lock()
		known := s.place.content.of == *s.place.file.Load()
		s.place.mu.Unlock()
		if known {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal("the content is not summed")
		}
	}
}

// locksOf is the system's list of locks on a file.
func locksOf(t *testing.T, path string) string {
	t.Helper()
	is, err := markOf(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, line := range strings.Split(string(list), "\n") {
		if strings.Contains(line, fmt.Sprintf(":%d ", is.ino)) {
			_, lock, _ := strings.Cut(line, ":") // without the line's number
			out = append(out, lock)
		}
	}
	return strings.Join(out, "\n")
}

// TestOthersAreNoHarm: what other processes do to a store rightly is not taken for harm.
func TestOthersAreNoHarm(t *testing.T) {
	s, path, _ := served(t)
	other, err := Open(t.Context(), path) // as a migration that writes its journal
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("x"), 6<<20)
	for i, end := range []string{"a", "b", "c"} {
		if err := other.Put(t.Context(), "run", end, big); err != nil {
			t.Fatal(err)
		}
		mustInsert(t, s, end, "1"+string(rune('0'+i)))
	}
	folded(t, path)
	if err := other.Put(t.Context(), "run", "d", big); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	folded(t, path)
	if _, err := Backup(t.Context(), path, path+".copy"); err != nil {
		t.Fatal(err)
	}
	// nolint:gosec // it is what others do
	if err := errors.Join(os.Link(path, path+".link"), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(lookEvery + lookEvery/2) // the store checks its file meanwhile, and is to find nothing
	mustInsert(t, s, "last", "09")
	if seen, ok := s.LastWrite(); !ok || seen.Err != nil {
		t.Errorf("%+v", seen)
	}
	if err := s.Check(context.Background()); err != nil {
		t.Error(err)
	}
}
