package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"claviger/durable/durabletest"
	"claviger/metastore"
	"claviger/sqlitedb"
)

// insertKeys inserts keys named NAME<from>, NAME<from+1>, up to NAME<to-1>.
func insertKeys(ctx context.Context, s *Store, name string, from, to int) error {
	for i := from; i < to; i++ {
		k := testKey(fmt.Sprint(name, i), "0")
		k.List[0].Object = fmt.Sprintf("%s%015d", name[:1], i)
		if err := s.Insert(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// TestBackupWhileWriting checks that each copy has the content of one moment and none of the secrets, while another
// goroutine writes.
func TestBackupWhileWriting(t *testing.T) {
	ctx := t.Context()
	s, path := newStore(t)
	secret := []byte("a master key's 32 secret bytes!!")
	password := []byte("a token's password, 20 b")
	err := s.PutMasterKey(ctx, metastore.MasterKey{ID: 1, Expires: time.Now().Add(time.Hour), Key: secret})
	if err == nil {
		err = s.PutDelegation(ctx, metastore.Delegation{Sequence: 1, Identifier: []byte("id"), Password: password,
			Renew: time.Now().Add(time.Hour)})
	}
	if err == nil {
		err = s.SetSetting(ctx, "hsm.token.serial", "5e71a1")
	}
	if err != nil {
		t.Fatal(err)
	}
	ends := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-ends:
				return
			default:
			}
			if err := insertKeys(ctx, s, "k", i, i+1); err != nil {
				t.Error(err)
				return
			}
		}
	})
	last := 0
	for i := range 5 {
		to := filepath.Join(filepath.Dir(path), fmt.Sprint("copy", i))
		f, err := Backup(ctx, path, to)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, secret) || bytes.Contains(data, password) {
			t.Error("the copy holds secrets")
		}
		st, err := os.Stat(to)
		if err != nil || st.Mode() != 0o600 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
		got, err := Inspect(ctx, to)
		if err != nil || got != f || f.Keys != f.Versions || f.Keys < last || f.TokenSerial != "5e71a1" ||
			time.Since(f.Made) > time.Minute || f.Schema != SchemaVersion {
			t.Errorf("copy %d: %+v, inspected %+v, %v", i, f, got, err)
		}
		last = f.Keys
		if _, err := Backup(ctx, path, to); !errors.Is(err, fs.ErrExist) {
			t.Errorf("Backup overwrote a file: %v", err)
		}
	}
	close(ends)
	group.Wait()
	if keys, err := s.MasterKeys(ctx); err != nil || len(keys) != 1 {
		t.Errorf("the store itself has the master keys %v, %v", keys, err)
	}
	if names, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); err != nil || len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

// storeWithBackup returns the path of a store with 50 keys, which are in the -wal, and the content of a backup of it.
func storeWithBackup(t *testing.T) (s *Store, path string, backup []byte) {
	t.Helper()
	s, path = newStore(t)
	if err := insertKeys(t.Context(), s, "k", 0, 50); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "backup")
	if _, err := Backup(t.Context(), path, to); err != nil {
		t.Fatal(err)
	}
	return s, path, readFile(t, to)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// withSchema returns a backup as a program with another schema version would have written it.
func withSchema(t *testing.T, backup []byte, version int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", sqlitedb.URI(path, busyTimeout))
	if err == nil {
		_, err = db.ExecContext(t.Context(),
			"INSERT INTO goose_db_version (version_id, is_applied) VALUES (?, 1)", version)
	}
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return readFile(t, path)
}

// TestNoBackup checks that Stage refuses a file that is not a good backup, with the file's name and a cure, and leaves
// no file behind.
func TestNoBackup(t *testing.T) {
	_, store, good := storeWithBackup(t)
	withoutWAL := readFile(t, store) // the keys are in the -wal
	damaged := bytes.Clone(good)
	for i := 5 * 4096; i < 6*4096; i++ {
		damaged[i] = 0xff
	}
	foreign := bytes.Clone(good)
	binary.BigEndian.PutUint32(foreign[68:], 0x12345678)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":   {nil, "is not a metastore: it is not an SQLite database"},
		"text":    {bytes.Repeat([]byte("text "), 100), "is not a metastore: it is not an SQLite database"},
		"short":   {good[:len(good)-4096], "is truncated: it has"},
		"damaged": {damaged, "damaged"},
		"another program": {foreign, "is not a metastore but the SQLite database of another program (application id " +
			"0x12345678"},
		"newer schema": {withSchema(t, good, 99), "has schema version 99, this program knows versions up to"},
		"copy without -wal": {withoutWAL, "was not written by claviger metastore backup: a copy of the file alone " +
			"may lack the changes in its -wal"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "the backup")
			if err := os.WriteFile(file, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Stage(t.Context(), file, filepath.Join(dir, "store.db"), false)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) ||
				strings.Contains(err.Error(), ".restore-") {
				t.Errorf("error %v, want %q and the file's name", err, c.want)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}

// TestPlainCopy checks that Stage accepts a plain copy with its -wal if plain is true.
func TestPlainCopy(t *testing.T) {
	s, store, _ := storeWithBackup(t)
	dir := t.TempDir()
	copied := filepath.Join(dir, "copy.db")
	err := errors.Join(copyFile(store, copied), copyFile(store+"-wal", copied+"-wal"), s.Close())
	if err != nil {
		t.Fatal(err)
	}
	staged, err := Stage(t.Context(), copied, filepath.Join(dir, "other.db"), true)
	if err != nil {
		t.Fatal(err)
	}
	if names, err := staged.Store.Names(t.Context()); err != nil || len(names) != 50 {
		t.Errorf("%d names, %v", len(names), err)
	}
	if err := staged.Discard(); err != nil {
		t.Error(err)
	}
}

// TestBackupNamesItsOutput checks that the error of a backup that cannot be written names the file that the operator
// gave, and not the hidden file in which Backup collects the copy.
func TestBackupNamesItsOutput(t *testing.T) {
	_, path := newStore(t)
	to := filepath.Join(t.TempDir(), "missing", "backup.db")
	_, err := Backup(t.Context(), path, to)
	if err == nil || !strings.Contains(err.Error(), to) || strings.Contains(err.Error(), "/.") {
		t.Errorf("error %v, want one that names %s", err, to)
	}
}

// replaceFolders returns two folders that have a store "store.db" and an older backup of it, "backup". In the folder
// stopped the server has closed the store; in killed it was killed, so the last keys are in the -wal.
func replaceFolders(t *testing.T) (stopped, killed string) {
	t.Helper()
	ctx := t.Context()
	stopped, killed = t.TempDir(), t.TempDir()
	s, path := newStore(t)
	err := insertKeys(ctx, s, "k", 0, 3)
	if err == nil {
		_, err = Backup(ctx, path, filepath.Join(stopped, "backup"))
	}
	if err == nil {
		err = insertKeys(ctx, s, "late", 0, 2)
	}
	for _, part := range []string{"", "-wal"} {
		if err == nil {
			err = copyFile(path+part, filepath.Join(killed, "store.db"+part))
		}
	}
	if err == nil {
		err = s.Close()
	}
	if err == nil {
		err = copyFile(path, filepath.Join(stopped, "store.db"))
	}
	if err == nil {
		err = copyFile(filepath.Join(stopped, "backup"), filepath.Join(killed, "backup"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return stopped, killed
}

func copyFolder(from string) func(string) error {
	return func(dir string) error { return os.CopyFS(dir, os.DirFS(from)) }
}

// restoreIn replaces the store in a folder of replaceFolders by the backup.
func restoreIn(dir string) error {
	ctx := context.Background()
	staged, err := Stage(ctx, filepath.Join(dir, "backup"), filepath.Join(dir, "store.db"), false)
	if err != nil {
		return err
	}
	_, err = staged.Replace(ctx)
	return errors.Join(err, staged.Discard())
}

// TestReplaceSurvivesPowerCuts checks that a power cut at any step of Replace leaves the old store or the restored one.
func TestReplaceSurvivesPowerCuts(t *testing.T) {
	stopped, _ := replaceFolders(t)
	for _, fault := range durabletest.Faults(t, durabletest.Case{
		Setup: copyFolder(stopped),
		Do:    restoreIn,
		State: func(dir string) (string, error) {
			f, err := Inspect(context.Background(), filepath.Join(dir, "store.db"))
			return fmt.Sprint(f.Keys), err
		},
		NoRetry: true,
	}) {
		t.Error(fault)
	}
}

// TestReplace checks that Replace keeps the old store beside the restored one, complete and with its -wal.
func TestReplace(t *testing.T) {
	stopped, killed := replaceFolders(t)
	for _, tt := range []struct {
		name, from string
		breakWAL   bool // SQLite cannot move the -wal into the file
	}{
		{"stopped server", stopped, false},
		{"killed server", killed, false},
		{"-wal that cannot be moved", killed, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			store := filepath.Join(dir, "store.db")
			err := copyFolder(tt.from)(dir)
			if tt.breakWAL {
				err = errors.Join(err, os.Mkdir(store+"-shm", 0o700))
			}
			if err = errors.Join(err, restoreIn(dir)); err != nil {
				t.Fatal(err)
			}
			aside, err := filepath.Glob(store + ".replaced-*Z")
			if err != nil || len(aside) != 1 {
				t.Fatalf("the old store is kept as %q, %v", aside, err)
			}
			if _, err := os.Lstat(aside[0] + "-wal"); (err == nil) != tt.breakWAL {
				t.Errorf("a -wal beside the old store: %v", err) // Replace moves it into the file if possible
			}
			wantNames(t, aside[0], "[k0 k1 k2 late0 late1]")
			wantNames(t, store, "[k0 k1 k2]")
			if f, err := Inspect(t.Context(), store); err != nil || !f.Made.IsZero() {
				t.Errorf("the restored store is marked as a backup: %+v, %v", f, err)
			}
		})
	}
}

// wantNames opens a store and demands the names of its keys.
func wantNames(t *testing.T, path, want string) {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	names, err := s.Names(t.Context())
	if err = errors.Join(err, s.Close()); err != nil || fmt.Sprint(names) != want {
		t.Errorf("%s has the keys %v, want %s (%v)", path, names, want, err)
	}
}

// TestNumbersAfterRestore checks that a number that was given after the backup is not given again after the restore.
func TestNumbersAfterRestore(t *testing.T) {
	ctx := t.Context()
	s, path := newStore(t)
	if err := insertKeys(ctx, s, "k", 0, 1); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if _, err := Backup(ctx, path, backup); err != nil {
		t.Fatal(err)
	}
	v := testKey("k0", "1").List[0]
	v.Object = "ff"
	if err := s.Append(ctx, "k0", v); err != nil {
		t.Fatal(err)
	}
	staged, err := Stage(ctx, backup, filepath.Join(t.TempDir(), "x.db"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = staged.Discard() }()
	if n, err := staged.Store.NextNumber(ctx, "k0"); err != nil || n != 1 {
		t.Fatalf("the backup's next number is %d, %v", n, err)
	}
	if err := staged.SkipNumbersOf(ctx, s); err != nil {
		t.Fatal(err)
	}
	if n, err := staged.Store.NextNumber(ctx, "k0"); err != nil || n != 2 {
		t.Errorf("the next number is %d, %v", n, err)
	}
}

// TestBackupToFullDisk checks that the error names the backup if the backup's disk is full, and not the store's.
func TestBackupToFullDisk(t *testing.T) {
	s, path := newStore(t)
	if err := s.Put(t.Context(), "run", "a", bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	small := t.TempDir()
	if err := syscall.Mount("none", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("only root can mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	to := filepath.Join(small, "backup.db")
	_, err := Backup(t.Context(), path, to)
	if err == nil || !strings.Contains(err.Error(), "the backup "+to+" cannot be written: its disk is full") ||
		strings.Contains(err.Error(), filepath.Dir(path)) {
		t.Errorf("the message is %v", err)
	}
	if left, err := os.ReadDir(small); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
