package sqlitedb

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
)

// TestMemory checks that a database in memory has the schema and locks, but no file.
func TestMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	d, err := OpenMemory(t.Context(), path, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := insert(t.Context(), d, "a", 1); err != nil || count(t, d) != 1 || !d.InMemory() {
		t.Errorf("%v, %d", err, count(t, d))
	}
	if free, ok, err := d.TryLock(t.Context(), "x"); err != nil || !ok {
		t.Errorf("%v, %v", ok, err)
	} else {
		free()
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestLocks checks that two holders of a named lock exclude each other, also within a process, and also if one of them
// opens the file through a link. Close frees the locks.
func TestLocks(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "s.db"), filepath.Join(t.TempDir(), "link.db")
	a := created(t, path, testConfig())
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	b := created(t, link, testConfig())
	free, ok, err := a.TryLock(t.Context(), "x")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, ok, err := b.TryLock(t.Context(), "x"); ok || err != nil {
		t.Errorf("a second holder: %v, %v", ok, err)
	}
	if other, ok, err := b.TryLock(t.Context(), "y"); !ok || err != nil {
		t.Errorf("another name: %v, %v", ok, err)
	} else {
		other()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockRetryInterval)
	defer cancel()
	_, err = b.Lock(ctx, "x")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `lock "x" of test store`) {
		t.Errorf("waiting: %v", err)
	}
	got := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		free, err := b.Lock(ctx, "x")
		if err == nil {
			free()
			free() // does nothing
		}
		got <- err
	}()
	free()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if _, err := a.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := b.TryLock(t.Context(), "x"); !ok || err != nil {
		t.Errorf("after Close: %v, %v", ok, err)
	}
	if _, _, err := a.TryLock(t.Context(), "x"); !claviger.Is(err, claviger.Closed) {
		t.Errorf("a lock of a closed store: %v", err)
	}
}
