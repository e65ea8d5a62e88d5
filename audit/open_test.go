package audit

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"claviger/durable"
)

// errDisk is a disk whose writes fail while err is set.
type errDisk struct {
	durable.OS
	err atomic.Pointer[error]
}

func (d *errDisk) set(err error) { d.err.Store(&err) }

func (d *errDisk) OpenFile(name string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := d.OS.OpenFile(name, flag, mode)
	return &errFile{f, d}, err
}

type errFile struct {
	durable.File
	disk *errDisk
}

func (f *errFile) Write(b []byte) (int, error) {
	if err := f.disk.err.Load(); err != nil && *err != nil {
		return 0, *err
	}
	return f.File.Write(b)
}

// fakeHeads stores no head: Load returns a fixed head, or the error err. saved counts the calls of Save.
type fakeHeads struct {
	head  Head
	err   error
	saved atomic.Int32
}

func (h *fakeHeads) Name() string { return "a place" }

func (h *fakeHeads) Load(context.Context) (Head, bool, error) { return h.head, h.head.Seq > 0, h.err }

func (h *fakeHeads) Save(context.Context, Head) error {
	h.saved.Add(1)
	return h.err
}

// onDisk opens a chain in a new folder on a disk. It stores its head only when it is closed.
func onDisk(t *testing.T, disk durable.FS, change func(*ChainConfig)) (*Chain, error) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(durable.Mount(dir, disk))
	f, err := OpenExclusiveFile(filepath.Join(dir, "audit.json"), Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := ChainConfig{Node: "kms1", File: f, HeadEvery: time.Hour, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	c, err := OpenChain(t.Context(), cfg)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, nil
}

// TestStartOnABadDisk: a chain starts on a disk that is full, and on no other bad disk.
func TestStartOnABadDisk(t *testing.T) {
	for err, starts := range map[error]bool{syscall.ENOSPC: true, syscall.EDQUOT: true, syscall.EFBIG: true,
		syscall.EIO: false, syscall.EROFS: false} {
		disk := &errDisk{}
		disk.set(err)
		c, got := onDisk(t, disk, nil)
		if !starts {
			if !errors.Is(got, err) {
				t.Errorf("%v: the start returns %v", err, got)
			}
			continue
		}
		if got != nil {
			t.Errorf("%v: the start returns %v", err, got)
			continue
		}
		if begin := c.Begin(t.Context(), Event{Op: CreateKey}); !errors.Is(begin, err) || !errors.Is(c.Stopped(), err) {
			t.Errorf("%v: Begin: %v, Stopped: %v", err, begin, c.Stopped())
		}
	}
}

// TestStartWithoutItsHead: a chain does not start if a head cannot be read.
func TestStartWithoutItsHead(t *testing.T) {
	down := errors.New("it is down")
	for name, test := range map[string]struct {
		head *fakeHeads
		want string
	}{
		"not read": {&fakeHeads{err: down}, "stored in a place, cannot be read: it is down; find out why"},
		"no hash":  {&fakeHeads{head: Head{Node: "kms1", Seq: 1, Hash: "0"}}, `cannot be read: "0" is not a hash`},
	} {
		if _, err := onDisk(t, durable.OS{}, func(cfg *ChainConfig) { cfg.Heads = []Heads{test.head} }); err == nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// TestLastRecordReplaced: if the last record is not the record that the head names, the start of the server records
// that one record is missing.
func TestLastRecordReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	closeChain(t, chainAt(t, path, nil))
	head := headOf(t, path)[0]
	text, _ := sealed(digest{}, Record{Seq: 1, Kind: BeginRecord, MAC: "sha256", User: "mallory"})
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	closeChain(t, chainAt(t, path, nil))
	r, err := ParseRecord([]byte(strings.TrimSuffix(readLines(t, path)[1], "\n")))
	if err != nil || r.Missing != 1 || r.Seq != 2 || r.Prev != head.Hash {
		t.Errorf("record %+v, %v", r, err)
	}
	verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path}, "record 2 does not follow the previous record")
}

// TestLoggedWithoutWaiting: a record is written soon after Log, also if no operation waits for it. Its time is the
// event's time or now.
func TestLoggedWithoutWaiting(t *testing.T) {
	c, err := onDisk(t, durable.OS{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := c.cfg.File.Path()
	then := time.Date(2026, 11, 23, 14, 3, 30, 0, time.UTC)
	began := time.Now()
	c.Log(t.Context(), Event{Op: GetKeys})
	waitFor(t, func() bool { return len(readLines(t, path)) == 2 })
	c.Log(t.Context(), Event{Op: GetKeys, Time: then})
	waitFor(t, func() bool { return len(readLines(t, path)) == 3 })
	for _, at := range []time.Time{{}, then} {
		if err := c.Begin(t.Context(), Event{Op: CreateKey, Time: at}); err != nil {
			t.Fatal(err)
		}
	}
	for i, line := range readLines(t, path)[1:] {
		r, err := ParseRecord([]byte(strings.TrimSuffix(line, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(timeOfRecord, r.Time)
		if now := i%2 == 0; err != nil || !now && !at.Equal(then) ||
			now && (at.Before(began.Add(-time.Second)) || at.After(time.Now())) {
			t.Errorf("record %d has the time %s, %v", i, r.Time, err)
		}
	}
}

// TestBeginIsRefused: Begin returns an error after Close, with a full queue, and when its context ends.
func TestBeginIsRefused(t *testing.T) {
	disk := &errDisk{}
	c, err := onDisk(t, disk, func(cfg *ChainConfig) { cfg.MaxQueue = 1 })
	if err != nil {
		t.Fatal(err)
	}
	begin := func(ctx context.Context, want string) {
		t.Helper()
		if err := c.Begin(ctx, Event{Op: CreateKey}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Begin: %v, want %q", err, want)
		}
	}
	disk.set(syscall.ENOSPC)
	begin(t.Context(), "no space left")
	disk.set(nil)
	begin(t.Context(), "1 records wait to be written") // and the queue is tried again
	waitFor(t, func() bool { return c.Err() == nil })

	// The goroutine that writes is busy, so only the context can end the wait.
	block := make(chan struct{})
	c.cfg.Streams = []Stream{&refusingStream{takes: func(string) bool { <-block; return true }}}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	begin(ended, "its record was not written in time: context canceled")
	close(block)
	closeChain(t, c)
	begin(t.Context(), errClosed.Error())
	if !errors.Is(c.Err(), errClosed) {
		t.Errorf("Err after Close: %v", c.Err())
	}
}

// TestErrorIsLoggedOnce: the same error is logged once, however often a write fails.
func TestErrorIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	disk := &errDisk{}
	c, err := onDisk(t, disk, func(cfg *ChainConfig) { cfg.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{nil, syscall.ENOSPC, syscall.ENOSPC, syscall.EIO, syscall.EIO, nil, syscall.EIO} {
		disk.set(err)
		if got := c.Begin(t.Context(), Event{Op: CreateKey}); !errors.Is(got, err) {
			t.Errorf("Begin: %v, want %v", got, err)
		}
	}
	disk.set(nil)
	closeChain(t, c)
	if n := strings.Count(log.String(), "the audit log cannot be written"); n != 3 {
		t.Errorf("%d errors are logged, want 3:\n%s", n, &log)
	}
}

// TestSyncFails: if the disk cannot be synced, Begin returns the disk's error.
func TestSyncFails(t *testing.T) {
	disk := &unsyncedDisk{}
	c, err := onDisk(t, disk, nil)
	if err != nil {
		t.Fatal(err)
	}
	disk.fails.Store(true)
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); !errors.Is(err, syscall.EIO) || c.Stopped() == nil ||
		c.Degraded() != nil {
		t.Errorf("Begin: %v, Stopped: %v, Degraded: %v", err, c.Stopped(), c.Degraded())
	}
	disk.fails.Store(false)
	closeChain(t, c)
	disk.fails.Store(true)
	if _, err := onDisk(t, disk, nil); !errors.Is(err, syscall.EIO) {
		t.Errorf("the start returns %v", err)
	}
}

// TestOldFileIsNotRemoved: if an old file cannot be removed, Degraded says so, but no operation is refused.
func TestOldFileIsNotRemoved(t *testing.T) {
	disk := &stepDisk{}
	c, err := onDisk(t, disk, func(cfg *ChainConfig) { cfg.File.rotation = Rotation{Size: 1, Keep: 1} })
	if err != nil {
		t.Fatal(err)
	}
	old := c.cfg.File.Path() + "." + time.Unix(1, 0).UTC().Format(rotatedLayout)
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "x"), nil, 0o600); err != nil { // so the folder cannot be removed
		t.Fatal(err)
	}
	c.cfg.File.mu.Lock()
	c.cfg.File.checked = time.Time{} // a second has passed
	c.cfg.File.mu.Unlock()
	if err := c.Begin(t.Context(), Event{Op: CreateKey}); err != nil {
		t.Errorf("Begin: %v", err)
	}
	if err := c.Degraded(); !errors.Is(err, syscall.ENOTEMPTY) || c.Stopped() != nil || c.Err() == nil {
		t.Errorf("Degraded: %v, Stopped: %v", err, c.Stopped())
	}
	closeChain(t, c)
}

// TestReopenBegins: after Reopen, the begin record is written to the new file, also without an event.
func TestReopenBegins(t *testing.T) {
	c, err := onDisk(t, durable.OS{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := c.cfg.File.Path()
	if err := os.Rename(path, path+"-1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Reopen(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return len(readLines(t, path)) == 1 })
	if line := readLines(t, path)[0]; !strings.Contains(line, `"reason":"file"`) {
		t.Errorf("the new file begins with %s", line)
	}
	closeChain(t, c)
}

// TestHeadIsStoredAgain: a head that could not be stored is stored again, and a head that was stored is not.
func TestHeadIsStoredAgain(t *testing.T) {
	head := &fakeHeads{}
	c, err := onDisk(t, durable.OS{}, func(cfg *ChainConfig) { cfg.Heads = []Heads{head} })
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		err   error
		event bool
		want  int32 // the number of stored heads
	}{
		{nil, false, 1}, {errors.New("it is down"), true, 2}, {errors.New("it is down"), false, 3}, {nil, false, 4},
		{nil, false, 4}, {nil, true, 5}, {nil, false, 5},
	} {
		head.err = step.err
		if step.event {
			c.queue = append(c.queue, encodeEvent(&Event{Op: GetKeys}, "kms1"))
		}
		// The goroutine of the chain waits for an hour, so the test may write.
		if err := c.flush(time.Now(), true); (err == nil) != (step.err == nil) || head.saved.Load() != step.want {
			t.Errorf("step %d: %v, %d heads are stored, want %d", i, err, head.saved.Load(), step.want)
		}
	}
	closeChain(t, c)
}

// TestBufferIsKept: the buffer of a write is used again, but not a very large buffer.
func TestBufferIsKept(t *testing.T) {
	c, err := onDisk(t, durable.OS{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		records int
		kept    bool
	}{{1, true}, {100, false}, {1, true}} {
		queue := make([][]byte, test.records)
		for i := range queue {
			queue[i] = bytes.Repeat([]byte{'x'}, maxBody)
		}
		if err := c.write(time.Now(), queue, 0, false); err != nil || (cap(c.buf) > 0) != test.kept {
			t.Errorf("%d records: %v, a buffer of %d bytes is kept", test.records, err, cap(c.buf))
		}
	}
	closeChain(t, c)
}
