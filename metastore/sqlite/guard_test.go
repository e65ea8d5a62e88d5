package sqlite

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/owner"
)

// served returns a store that is claimed as by a server, with the keys old and young. copied is the path of a backup
// that has only the key old.
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

// waitCheckpoint waits until a checkpoint has moved all changes into the file.
func waitCheckpoint(t *testing.T, path string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if st, err := os.Stat(path + "-wal"); err == nil && st.Size() == 0 {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal("no checkpoint has moved the -wal into the file")
		}
	}
}

// overwrite copies a file like cp: the file to keeps its inode.
func overwrite(t *testing.T, from, to string) {
	t.Helper()
	if err := copyFile(from, to); err != nil {
		t.Fatal(err)
	}
}

// waitDetected waits until the regular checks have found a fault of the file. The error must contain the texts.
func waitDetected(t *testing.T, s *Store, texts ...string) {
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
			t.Fatal("the checks have not detected the loss")
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

// wantKeys demands that a file is a complete store with these keys. It reads a copy of the file and its -wal, like the
// next start of the server.
func wantKeys(t *testing.T, path string, names ...string) {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy.db")
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
		t.Errorf("%s has the keys %q, %v; want %q", path, got, err, names)
	}
}

// TestWrittenOver copies a file over the store of a running server. The server must detect this, must not read the file
// as its own, and must not change the file, also not when it ends.
func TestWrittenOver(t *testing.T) {
	for _, tt := range []struct {
		name            string
		data            []byte // nil: the backup of served
		afterCheckpoint bool
	}{
		{name: "an old copy", afterCheckpoint: true},
		{name: "an old copy, right after a change"},
		{name: "a file that is not a database", data: bytes.Repeat([]byte("any"), 10000), afterCheckpoint: true},
		{name: "an empty file", data: []byte{}, afterCheckpoint: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, path, with := served(t)
			if tt.data != nil {
				if err := os.WriteFile(with, tt.data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.afterCheckpoint {
				waitCheckpoint(t, path)
				waitSum(t, s)
			} else {
				mustInsert(t, s, "youngest", "03")
			}
			overwrite(t, with, path)
			_, err := s.Names(t.Context())
			wantRefused(t, "reading", err)
			waitDetected(t, s, path, "was written over in place")
			for what, err := range map[string]error{
				"insert":                s.Insert(t.Context(), testKey("lost", "04")),
				"delete":                s.SoftDelete(t.Context(), "old"),
				"readiness":             s.Check(t.Context()),
				"readiness for changes": s.CheckWrites(t.Context()),
			} {
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
				t.Errorf("the server changed the file that was copied there (%v)", err)
			}
			if st, err := os.Stat(path + "-wal"); err == nil && st.Size() > 0 {
				t.Error("there is a -wal, which the next start would apply to the copied file")
			}
			if tt.data == nil {
				wantKeys(t, path, "old")
			}
		})
	}
}

// TestWrittenOverBeforeClose copies a file over the store right before the server ends. Close must not change the file.
func TestWrittenOverBeforeClose(t *testing.T) {
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
		t.Errorf("the server changed the file that was copied there (%v)", err)
	}
	wantKeys(t, path, "old")
}

// TestWrittenOverWithWAL copies an older -wal and -shm over the files of a running server. The count of changes is then
// lower than before.
func TestWrittenOverWithWAL(t *testing.T) {
	s, path, _ := served(t)
	waitCheckpoint(t, path)
	reader, err := s.db.Reader.BeginTx(t.Context(), nil) // a reader prevents checkpoints
	if err != nil {
		t.Fatal(err)
	}
	// nolint:rowserrcheck,sqlclosecheck // the query only begins the transaction
	if _, err := reader.QueryContext(t.Context(), "SELECT name FROM ez_key"); err != nil {
		t.Fatal(err)
	}
	mustInsert(t, s, "third", "03")
	dir := t.TempDir()
	for _, end := range []string{"", "-wal", "-shm"} {
		overwrite(t, path+end, filepath.Join(dir, "c"+end))
	}
	mustInsert(t, s, "fourth", "04")
	for _, end := range []string{"-wal", "-shm"} { // no checkpoint has changed the file itself
		overwrite(t, filepath.Join(dir, "c"+end), path+end)
	}
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	waitDetected(t, s, "was replaced by an older copy")
	wantRefused(t, "insert", s.Insert(t.Context(), testKey("lost", "05")))
}

// TestTakenAway moves the file of a running server, or replaces it by another file. The moved file must get the last
// changes, and the server must continue to read it, but not write to it. After the file is moved back, writes work
// again.
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
			waitDetected(t, s, "is no longer the file that this process has open")
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
				t.Errorf("the server changed the file that was copied there (%v)", err)
			}
			wantKeys(t, path, "old")
			wantKeys(t, path+".moved", "old", "young")
		})
	}
	t.Run("-wal removed", func(t *testing.T) {
		s, path, _ := served(t)
		if err := os.Remove(path + "-wal"); err != nil {
			t.Fatal(err)
		}
		waitDetected(t, s, "-wal or -shm")
		wantRefused(t, "insert", s.Insert(t.Context(), testKey("lost", "04")))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wantKeys(t, path, "old", "young")
	})
}

// TestTouched changes the time of a store's file, but not its content. The store must continue to use the file, and
// must keep SQLite's locks. If the file is overwritten afterwards, the store must still detect that.
func TestTouched(t *testing.T) {
	for name, touch := range map[string]func(t *testing.T, path string){
		"touch": func(*testing.T, string) {},
		"the same content is copied over the file": func(t *testing.T, path string) {
			// Another process copies, because a close of the file by this process would end SQLite's locks.
			err := exec.CommandContext(t.Context(), "sh", "-c", `cp "$0" "$0.same" && cp "$0.same" "$0"`, path).Run()
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, path := newStore(t) // served would open and close the file, which ends SQLite's locks
			if _, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false); err != nil {
				t.Fatal(err)
			}
			mustInsert(t, s, "old", "01")
			mustInsert(t, s, "young", "02")
			waitCheckpoint(t, path)
			waitSum(t, s)
			touch(t, path)
			locks := locksOf(t, path)
			if locks == "" {
				t.Fatal("SQLite has no locks on the file")
			}
			stamp := time.Now().Add(time.Hour)
			if err := os.Chtimes(path, stamp, stamp); err != nil {
				t.Fatal(err)
			}
			if names, err := s.Names(t.Context()); err != nil || len(names) != 2 {
				t.Errorf("reading: %q, %v", names, err)
			}
			mustInsert(t, s, "third", "03")
			waitCheckpoint(t, path)
			waitSum(t, s)
			if got := locksOf(t, path); got != locks {
				t.Errorf("SQLite's locks on the file are now %s, before they were %s", got, locks)
			}
			if seen, ok := s.LastWrite(); !ok || seen.Err != nil {
				t.Errorf("LastWrite: %+v, %v", seen, ok)
			}
			copied := filepath.Join(t.TempDir(), "copy.db")
			if _, err := Backup(t.Context(), path, copied); err != nil {
				t.Fatal(err)
			}
			overwrite(t, copied, path)
			waitDetected(t, s, "was written over in place")
			wantRefused(t, "insert", s.Insert(t.Context(), testKey("lost", "04")))
		})
	}
	t.Run("one byte differs", func(t *testing.T) {
		s, path, _ := served(t)
		waitCheckpoint(t, path)
		waitSum(t, s)
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

// waitSum waits until the store has a checksum of the file in its current state.
func waitSum(t *testing.T, s *Store) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		s.guard.mu.Lock()
		known := s.guard.content.of == *s.guard.file.Load()
		s.guard.mu.Unlock()
		if known {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal("the store has no checksum of its file")
		}
	}
}

// locksOf returns the locks that this process holds on a file. It reads them from the file's descriptors, because
// /proc/locks lists the locks of all processes: its order changes, and a file of another disk can have the same inode.
func locksOf(t *testing.T, path string) string {
	t.Helper()
	state, err := stateOf(path)
	if err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var locks []string
	for _, fd := range open {
		if s, err := stateOf(filepath.Join("/proc/self/fd", fd.Name())); err != nil || !s.sameFile(state) {
			continue // another file, or a descriptor that was closed meanwhile
		}
		info, err := os.ReadFile(filepath.Join("/proc/self/fdinfo", fd.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			if lock, ok := strings.CutPrefix(line, "lock:"); ok {
				_, lock, _ = strings.Cut(lock, ":") // without the number in this list
				locks = append(locks, strings.TrimSpace(lock))
			}
		}
	}
	slices.Sort(locks)
	return strings.Join(locks, "\n")
}

// TestChangesByOtherProcesses checks that a store accepts what other processes may do: write through SQLite, make a
// backup, add a hard link and change the mode.
func TestChangesByOtherProcesses(t *testing.T) {
	s, path, _ := served(t)
	other, err := Open(t.Context(), path) // like a migration, which writes its journal
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
	waitCheckpoint(t, path)
	if err := other.Put(t.Context(), "run", "d", big); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	waitCheckpoint(t, path)
	if _, err := Backup(t.Context(), path, path+".copy"); err != nil {
		t.Fatal(err)
	}
	// nolint:gosec // the mode that an operator may set
	if err := errors.Join(os.Link(path, path+".link"), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(checkInterval + checkInterval/2) // at least one check runs, and must find no loss
	mustInsert(t, s, "last", "09")
	if seen, ok := s.LastWrite(); !ok || seen.Err != nil {
		t.Errorf("LastWrite: %+v, %v", seen, ok)
	}
	if err := s.Check(context.Background()); err != nil {
		t.Error(err)
	}
}
