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

// fill makes keys named NAME0, NAME1 and so on.
func fill(ctx context.Context, s *Store, name string, from, to int) error {
	for i := from; i < to; i++ {
		k := testKey(fmt.Sprint(name, i), "0")
		k.List[0].Object = fmt.Sprintf("%s%015d", name[:1], i)
		if err := s.Insert(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// TestBackupWhileWriting: each copy is of one moment, and holds none of the secrets.
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
			if err := fill(ctx, s, "k", i, i+1); err != nil {
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
			t.Errorf("overwritten: %v", err)
		}
	}
	close(ends)
	group.Wait()
	if keys, err := s.MasterKeys(ctx); err != nil || len(keys) != 1 {
		t.Errorf("the store itself has %v, %v", keys, err)
	}
	if names, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); err != nil || len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

// TestNoBackup: what is no backup is refused with the file's name and a cure, and
// leaves nothing behind.
func TestNoBackup(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	store := filepath.Join(dir, "store.db")
	s, err := Open(ctx, store)
	if err == nil {
		err = fill(ctx, s, "k", 0, 50)
	}
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "good")
	if _, err := Backup(ctx, store, good); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	half, err := os.ReadFile(store) // its -wal has the keys
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(whole)
	for i := 5 * 4096; i < 6*4096; i++ {
		damaged[i] = 0xff
	}
	foreign := bytes.Clone(whole)
	binary.BigEndian.PutUint32(foreign[68:], 0x12345678)
	newer := filepath.Join(dir, "newer")
	if err := os.WriteFile(newer, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", sqlitedb.URI(newer, busyTimeout))
	if err == nil {
		_, err = db.ExecContext(ctx, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)")
	}
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	tooNew, err := os.ReadFile(newer)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":   {nil, "is no metastore"},
		"text":    {bytes.Repeat([]byte("text "), 100), "is no metastore"},
		"short":   {whole[:len(whole)-4096], "is cut short: it has"},
		"damaged": {damaged, "damaged"},
		"foreign": {foreign, "database of another program (application id 0x12345678"},
		"newer":   {tooNew, "has schema version 99, this program knows versions up to"},
		"half": {half, "was not written by claviger metastore backup: a copy of the file alone may lack what its " +
			"-wal held"},
	} {
		t.Run(name, func(t *testing.T) {
			place := t.TempDir()
			file := filepath.Join(place, "the backup")
			if err := os.WriteFile(file, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Stage(ctx, file, filepath.Join(place, "store.db"), false)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) ||
				strings.Contains(err.Error(), ".restore-") {
				t.Errorf("error %v, want %q and the file's name", err, c.want)
			}
			if entries, err := os.ReadDir(place); err != nil || len(entries) != 1 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
	// A plain copy with its -wal is taken where the operator says so.
	copied, err := Stage(ctx, store, filepath.Join(dir, "other.db"), true)
	if err != nil {
		t.Fatal(err)
	}
	if names, err := copied.Store.Names(ctx); err != nil || len(names) != 50 {
		t.Errorf("%d names, %v", len(names), err)
	}
	if err := copied.Discard(); err != nil {
		t.Error(err)
	}
}

// TestReplace: the store is the one of before or the restored one, wherever the
// power goes, and what it was is beside it.
func TestReplace(t *testing.T) {
	ctx := context.Background()
	// Of a server that was stopped, and of one that was killed, whose last keys are in
	// the -wal.
	stopped, killed := t.TempDir(), t.TempDir()
	s, path := newStore(t)
	err := fill(ctx, s, "k", 0, 3)
	if err == nil {
		_, err = Backup(ctx, path, filepath.Join(stopped, "backup"))
	}
	if err == nil {
		err = fill(ctx, s, "late", 0, 2)
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
	setup := func(from string) func(string) error {
		return func(dir string) error { return os.CopyFS(dir, os.DirFS(from)) }
	}
	look := func(path string) (string, error) {
		s, err := Open(ctx, path)
		if err != nil {
			return "", err
		}
		names, err := s.Names(ctx)
		return fmt.Sprint(names), errors.Join(err, s.Close())
	}
	c := durabletest.Case{
		Setup: setup(stopped),
		Do: func(dir string) error {
			path := filepath.Join(dir, "store.db")
			staged, err := Stage(ctx, filepath.Join(dir, "backup"), path, false)
			if err != nil {
				return err
			}
			_, err = staged.Replace(ctx)
			return errors.Join(err, staged.Discard())
		},
		Look: func(dir string) (string, error) {
			f, err := Inspect(ctx, filepath.Join(dir, "store.db"))
			return fmt.Sprint(f.Keys), err
		},
		NoRetry: true,
	}
	for _, fault := range durabletest.Faults(t, c) {
		t.Error(fault)
	}

	for name, from := range map[string]string{"stopped": stopped, "killed": killed} {
		dir := t.TempDir()
		if err := errors.Join(setup(from)(dir), c.Do(dir)); err != nil {
			t.Fatal(err)
		}
		aside, err := filepath.Glob(filepath.Join(dir, "store.db.replaced-*Z"))
		if err != nil || len(aside) != 1 {
			t.Fatalf("%s: kept beside it: %q, %v", name, aside, err)
		}
		if was, err := look(aside[0]); err != nil || was != "[k0 k1 k2 late0 late1]" {
			t.Errorf("%s: it holds %s, %v", name, was, err)
		}
		if is, err := look(filepath.Join(dir, "store.db")); err != nil || is != "[k0 k1 k2]" {
			t.Errorf("%s: restored: %s, %v", name, is, err)
		}
		if f, err := Inspect(ctx, filepath.Join(dir, "store.db")); err != nil || !f.Made.IsZero() {
			t.Errorf("%s: a store is marked as a backup: %+v, %v", name, f, err)
		}
	}

	// Where SQLite cannot move the -wal into the file, it is kept with that file, and is not
	// played into the restored one.
	dir := t.TempDir()
	store := filepath.Join(dir, "store.db")
	if err := errors.Join(setup(killed)(dir), os.Mkdir(store+"-shm", 0o700), c.Do(dir)); err != nil {
		t.Fatal(err)
	}
	if is, err := look(store); err != nil || is != "[k0 k1 k2]" {
		t.Errorf("restored beside a -wal: %s, %v", is, err)
	}
	aside, err := filepath.Glob(store + ".replaced-*Z")
	if err != nil || len(aside) != 1 {
		t.Fatalf("kept beside it: %q, %v", aside, err)
	}
	if was, err := look(aside[0]); err != nil || was != "[k0 k1 k2 late0 late1]" {
		t.Errorf("kept with its -wal: %s, %v", was, err)
	}
}

// TestNumbersAfterRestore: a number that was given after the backup is not given
// again.
func TestNumbersAfterRestore(t *testing.T) {
	ctx := t.Context()
	s, path := newStore(t)
	if err := fill(ctx, s, "k", 0, 1); err != nil {
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

// TestBackupOnAFullDisk: the backup's disk is full, not the store's, and the message
// names the backup.
func TestBackupOnAFullDisk(t *testing.T) {
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
