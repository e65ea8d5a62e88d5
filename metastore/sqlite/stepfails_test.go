package sqlite

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"claviger/durable"
	"claviger/internal/faultsql"
	"claviger/sqlitedb"
)

var errStep = errors.New("injected fault of the disk")

// stepDisk is a disk of which one step of package durable fails.
type stepDisk struct {
	durable.OS
	steps int
	fail  int // the number of the step that fails, from 1
}

func (d *stepDisk) step() error {
	if d.steps++; d.steps == d.fail {
		return errStep
	}
	return nil
}

func (d *stepDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	return d.OS.OpenFile(name, flag, mode)
}

func (d *stepDisk) Link(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.OS.Link(from, to)
}

func (d *stepDisk) Rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.OS.Rename(from, to)
}

func (d *stepDisk) Remove(name string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.OS.Remove(name)
}

func (d *stepDisk) SyncFolder(name string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.OS.SyncFolder(name)
}

// TestEachStepOnTheDiskFails makes the steps that make the files durable fail, one after the other. The function must
// return the error, and the store must be complete: the old store, or the new one.
func TestEachStepOnTheDiskFails(t *testing.T) {
	_, killed := replaceFolders(t)
	for name, do := range map[string]func(dir string) error{
		"Backup": func(dir string) error {
			_, err := Backup(t.Context(), filepath.Join(dir, "store.db"), filepath.Join(dir, "copy"))
			return err
		},
		"Replace": restoreIn,
		"Replace with a -wal that cannot be moved": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "store.db-shm"), 0o700), restoreIn(dir))
		},
	} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			if err := copyFolder(killed)(dir); err != nil {
				t.Fatal(err)
			}
			disk := &stepDisk{fail: n}
			unmount := durable.Mount(dir, disk)
			err := do(dir)
			unmount()
			if disk.steps < n {
				if err != nil || n == 1 {
					t.Errorf("%s without a fault, after %d steps: %v", name, disk.steps, err)
				}
				break
			}
			if !errors.Is(err, errStep) {
				t.Errorf("%s with a fault in step %d: %v", name, n, err)
			}
			if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
				t.Errorf("%s with a fault in step %d leaves %q, %v", name, n, left, err)
			}
		}
	}
}

// TestReplaceDamagedFiles checks that Replace fails, and keeps the store, if a file cannot be put aside.
func TestReplaceDamagedFiles(t *testing.T) {
	_, killed := replaceFolders(t)
	for name, damage := range map[string]func(store string) error{
		"the store is a link to a missing file": func(store string) error {
			return errors.Join(os.Remove(store), os.Symlink("missing", store))
		},
		"the -wal is a link to a missing file": func(store string) error {
			return errors.Join(os.Remove(store+"-wal"), os.Symlink("missing", store+"-wal"))
		},
		"the -shm is a folder with a file": func(store string) error { return os.MkdirAll(store+"-shm/x", 0o700) },
	} {
		dir := t.TempDir()
		store := filepath.Join(dir, "store.db")
		if err := errors.Join(copyFolder(killed)(dir), damage(store)); err != nil {
			t.Fatal(err)
		}
		before, err := os.Lstat(store)
		if err != nil {
			t.Fatal(err)
		}
		if err := restoreIn(dir); err == nil {
			t.Errorf("%s: no error", name)
		}
		if after, err := os.Lstat(store); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: the store was replaced (%v)", name, err)
		}
	}
}

// TestReplaceWithoutCopy checks that Replace does not touch the store if the copy is gone.
func TestReplaceWithoutCopy(t *testing.T) {
	stopped, _ := replaceFolders(t)
	store := filepath.Join(stopped, "store.db")
	staged, err := Stage(t.Context(), filepath.Join(stopped, "backup"), store, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(staged.work.Path); err != nil {
		t.Fatal(err)
	}
	if aside, err := staged.Replace(t.Context()); !errors.Is(err, fs.ErrNotExist) || aside != "" {
		t.Errorf("%q, %v", aside, err)
	}
	if err := staged.Discard(); err != nil {
		t.Error(err)
	}
	if names := namesIn(t, stopped); !slices.Equal(names, []string{"backup", "store.db"}) {
		t.Errorf("the folder has %q", names)
	}
}

// openFiles returns the number of descriptors that this process has open on a file.
func openFiles(t *testing.T, path string) (n int) {
	t.Helper()
	state, err := stateOf(path)
	if err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		if s, err := stateOf(filepath.Join("/proc/self/fd", fd.Name())); err == nil && s.sameFile(state) {
			n++
		}
	}
	return n
}

// TestNoDescriptorIsLeft checks that no file stays open. A later close would end SQLite's locks on the file.
func TestNoDescriptorIsLeft(t *testing.T) {
	stopped, _ := replaceFolders(t)
	store, backup := filepath.Join(stopped, "store.db"), filepath.Join(stopped, "backup")
	if _, err := Inspect(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := copyFile(backup, copied); err != nil {
		t.Fatal(err)
	}
	staged, err := Stage(t.Context(), backup, store, false)
	if err == nil {
		_, err = staged.Replace(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{backup, copied, store} {
		if n := openFiles(t, path); n != 0 {
			t.Errorf("%s is open %d times", filepath.Base(path), n)
		}
	}
}

// TestCopyFile checks that copyFile returns the error of a file that cannot be opened.
func TestCopyFile(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	if err := copyFile(missing, filepath.Join(dir, "copy")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a missing file: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyFile(file, filepath.Join(missing, "copy")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into a missing folder: %v", err)
	}
	if err := copyFile(dir, filepath.Join(dir, "copy")); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("of a folder: %v", err)
	}
}

// TestWorkingFolderGone checks that a relative path is refused if the working folder was removed.
func TestWorkingFolderGone(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(gone)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	for name, err := range openAll(t, "x.db") {
		if err == nil || !strings.Contains(err.Error(), "getwd") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDriverMissing checks that each function that opens a file returns the error of database/sql.
func TestDriverMissing(t *testing.T) {
	s, path := newStore(t)
	before := sqlitedb.Driver
	sqlitedb.Driver = "missing"
	t.Cleanup(func() { sqlitedb.Driver = before })
	all := openAll(t, path)
	all["sanitize"] = sanitize(t.Context(), path)
	_, all["copyInto"] = copyInto(t.Context(), path, path, path+".copy")
	_, all["startChecks"] = s.startChecks(t.Context())
	_, all["OpenEmpty"] = OpenEmpty(t.Context(), path)
	for name, err := range all {
		if err == nil || !strings.Contains(err.Error(), `unknown driver "missing"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// openAll calls the functions that open a store in a file, and returns their errors.
func openAll(t *testing.T, path string) map[string]error {
	t.Helper()
	ctx, errs := t.Context(), map[string]error{}
	_, errs["Open"] = Open(ctx, path)
	_, errs["OpenReadOnly"] = OpenReadOnly(ctx, path)
	_, errs["Inspect"] = Inspect(ctx, path)
	_, errs["Stage"] = Stage(ctx, path, filepath.Join(t.TempDir(), "store.db"), true)
	_, errs["Backup"] = Backup(ctx, path, filepath.Join(t.TempDir(), "copy"))
	return errs
}

// TestStageIntoMissingFolder checks that Stage fails if the folder of the store is missing.
func TestStageIntoMissingFolder(t *testing.T) {
	stopped, _ := replaceFolders(t)
	_, err := Stage(t.Context(), filepath.Join(stopped, "backup"), filepath.Join(stopped, "missing", "x.db"), false)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestStageUnreadableWAL checks that Stage fails if the -wal of a plain copy cannot be read, but not if there is none.
func TestStageUnreadableWAL(t *testing.T) {
	stopped, _ := replaceFolders(t)
	store, other := filepath.Join(stopped, "store.db"), filepath.Join(t.TempDir(), "x.db")
	staged, err := Stage(t.Context(), store, other, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := staged.Discard(); err != nil {
		t.Error(err)
	}
	injectFaults(t)
	damage := func() {
		if err := os.Mkdir(store+"-wal", 0o700); err != nil {
			t.Error(err)
		}
	}
	inspected := 0
	for call, err := range faults.BeforeEach(damage, func() (err error) {
		staged, err = Stage(t.Context(), store, other, true)
		return err
	}) {
		if call.Call == faultsql.Close && inspected == 0 { // Inspect closes its connection, then the files are copied
			inspected = call.Number
			if !errors.Is(err, syscall.EISDIR) {
				t.Errorf("the copy lacks a -wal that cannot be read: %v", err)
			}
		}
		if err == nil {
			_ = staged.Discard() // the result is not of interest
		}
		if err := os.RemoveAll(store + "-wal"); err != nil {
			t.Fatal(err)
		}
	}
	if inspected == 0 {
		t.Error("Stage closed no connection")
	}
}

// TestBackupsAtOnce checks that of several backups to the same path one succeeds, and the others fail.
func TestBackupsAtOnce(t *testing.T) {
	_, path := newStore(t)
	to := filepath.Join(t.TempDir(), "copy")
	var errs [4]error
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() { _, errs[i] = Backup(t.Context(), path, to) })
	}
	group.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d backups were made at %s", made, to)
	}
}
