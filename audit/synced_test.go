package audit

import (
	"context"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"claviger/durable"
)

// unsyncedDisk records whether its files have unsynced writes. While fails is true, each sync fails.
type unsyncedDisk struct {
	durable.OS
	dirty, fails atomic.Bool
	failed       atomic.Int32
}

func (d *unsyncedDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := d.OS.OpenFile(name, flag, mode)
	return &unsyncedFile{f, d}, err
}

type unsyncedFile struct {
	durable.File
	disk *unsyncedDisk
}

func (f *unsyncedFile) Write(b []byte) (int, error) {
	f.disk.dirty.Store(true)
	return f.File.Write(b)
}

func (f *unsyncedFile) Sync() error {
	if f.disk.fails.Load() {
		f.disk.failed.Add(1)
		return syscall.EIO
	}
	f.disk.dirty.Store(false)
	return f.File.Sync()
}

// syncedHeads stores heads in memory. It counts the heads that were stored while syncs failed, and those whose records
// were not synced.
type syncedHeads struct {
	disk            *unsyncedDisk
	seq             atomic.Uint64
	early, unsynced atomic.Int32
}

func (h *syncedHeads) Name() string                                   { return "a place" }
func (h *syncedHeads) Load(context.Context) (_ Head, _ bool, _ error) { return Head{}, false, nil }

func (h *syncedHeads) Save(_ context.Context, head Head) error {
	if h.disk.fails.Load() {
		h.early.Add(1)
	}
	if h.disk.dirty.Load() {
		h.unsynced.Add(1)
	}
	h.seq.Store(head.Seq)
	return nil
}

// TestHeadFollowsTheDisk: a head is stored only after its records are on the disk. Otherwise a power cut could leave a
// head without its records, and the log would look as if it had been cut off.
func TestHeadFollowsTheDisk(t *testing.T) {
	dir := t.TempDir()
	disk := &unsyncedDisk{}
	defer durable.Mount(dir, disk)()
	heads := &syncedHeads{disk: disk}
	c := chainAt(t, filepath.Join(dir, "audit.json"), func(cfg *ChainConfig) {
		cfg.HeadEvery, cfg.Heads = time.Millisecond, []Heads{heads}
	})
	for range 5 { // no operation waits for these records
		was := heads.seq.Load()
		c.Log(t.Context(), event("k"))
		waitFor(t, func() bool { return heads.seq.Load() > was })
	}
	disk.fails.Store(true)
	was := heads.seq.Load()
	c.Log(t.Context(), event("k"))
	waitFor(t, func() bool { return disk.failed.Load() > 0 && c.Err() != nil })
	for tries := disk.failed.Load(); disk.failed.Load() < tries+3; { // of the flushes between, some do not sync
		c.Log(t.Context(), event("k"))
		if c.Err() == nil {
			t.Fatal("Err is nil while syncs fail")
		}
		time.Sleep(time.Millisecond / 4)
	}
	if heads.early.Load() > 0 || heads.seq.Load() != was {
		t.Errorf("%d heads were stored while syncs fail", heads.early.Load())
	}
	disk.fails.Store(false)
	waitFor(t, func() bool { return heads.seq.Load() > was })
	if n := heads.unsynced.Load(); n > 0 {
		t.Errorf("%d heads were stored before their records were synced", n)
	}
	closeChain(t, c)
}
