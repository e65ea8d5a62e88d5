package replica_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// smallDisk returns a folder on a disk of 16 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("only root can mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill fills a disk with a file.
func fill(t *testing.T, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 64<<10))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestFullDisk: the disk of one of two servers is full. The status of both reports the fault, no change is
// acknowledged, and reads succeed. When there is room again, changes succeed without an operator.
func TestFullDisk(t *testing.T) {
	for _, where := range []string{"disk of the active server", "disk of the passive server"} {
		t.Run(where, func(t *testing.T) {
			small, large := smallDisk(t), t.TempDir()
			folders := []string{small, large}
			if where == "disk of the passive server" {
				folders = []string{large, small}
			}
			a, b := newPairAt(t, folders...)
			c := startBoth(t, a, b)
			must(t, put(t, c, "before", "x"))
			full, other := a, b
			if where == "disk of the passive server" {
				full, other = b, a
			}
			file := fill(t, small)
			if err := full.store.CheckWrites(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), "no space left") {
				t.Errorf("the check: %v", err)
			}
			must(t, other.store.CheckWrites(t.Context()))
			full.await("its own fault", func(r replica.StatusReport) bool {
				return strings.Contains(r.Fault, "no space left")
			})
			other.await("the fault of the other", func(r replica.StatusReport) bool {
				return r.Fault == "" && r.Peer != nil && strings.Contains(r.Peer.Fault, "no space left") &&
					(r.Role == server.RolePassive || !r.Synced && strings.Contains(r.Why, "no space left"))
			})
			big := trustee.Deposit{Label: "big", Content: bytes.Repeat([]byte("x"), 400<<10)}
			if _, err := c.Put(t.Context(), big, ""); !claviger.Is(err, claviger.Unavailable) {
				t.Errorf("a change: %v", err)
			}
			if d, err := c.Find(t.Context(), "before"); err != nil || string(d.Content) != "x" {
				t.Errorf("a read: %+v, %v", d, err)
			}
			must(t, os.Remove(file))
			a.await("both servers being synchronized", func(r replica.StatusReport) bool {
				return synchronized(r) && r.Fault == "" && r.Peer.Fault == ""
			})
			if _, err := c.Put(t.Context(), trustee.Deposit{Label: "after", Content: []byte("y")}, ""); err != nil {
				t.Errorf("after there is room again: %v", err)
			}
		})
	}
}
