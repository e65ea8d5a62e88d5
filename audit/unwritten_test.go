package audit

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/internal/logtest"
)

// copyOf copies the log and the files beside it to another folder, as a process that is killed now leaves them.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	for _, file := range []string{path, path + ".head", UnwrittenFileOf(path)} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, filepath.Base(path))
}

// TestUnwrittenAtTheEnd: a process that ends with a full disk, or is killed meanwhile, loses records. Verify says how
// many at once. The next process writes their number to the chain, once.
func TestUnwrittenAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	every := func(cfg *ChainConfig) { cfg.HeadEvery = time.Microsecond }
	c := chainAt(t, path, every)
	if err := c.Begin(t.Context(), event("k")); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	free := fullDisk(t, uint64(st.Size()))
	for range 24 {
		c.Log(t.Context(), event("k"))
	}
	if err := c.Begin(t.Context(), event("k")); err == nil { // it returns after the number was stored
		t.Fatal("written to a full disk")
	}
	killed := copyOf(t, path)
	if err := c.Close(); err == nil || !strings.Contains(err.Error(), "25 records of the audit log could not be "+
		"written; the next process that opens the log makes a record of their number") {
		t.Errorf("closed: %v", err)
	}
	free()
	for _, path := range []string{path, killed} {
		r := verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path})
		if r.Lost != 25 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0].What, "25 events at the end") {
			t.Errorf("before the next start: %+v", r)
		}
		for i := range 2 {
			log := new(logtest.Buffer)
			logged := func(cfg *ChainConfig) { cfg.Log = slog.New(slog.NewTextHandler(log, nil)) }
			closeChain(t, chainAt(t, path, logged))
			if got := strings.Contains(log.String(), "could not write some events"); got != (i == 0) {
				t.Errorf("start %d logs: %s", i+1, log)
			}
			r = verified(t, VerifyConfig{Heads: headOf(t, path)}, []string{path})
			if r.Lost != 25 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0].What, "25 events before this record") {
				t.Errorf("after it: %+v", r)
			}
		}
	}
}

// TestUnwrittenIsStoredSeldom: the number is stored at most once in HeadEvery, and at the end of the process.
func TestUnwrittenIsStoredSeldom(t *testing.T) {
	path, c, free := chainWithFullDisk(t)
	for range 2 {
		if err := c.Begin(t.Context(), event("k")); err == nil {
			t.Fatal("written to a full disk")
		}
	}
	if n, err := readUnwritten(path); err != nil || n != 1 {
		t.Errorf("within HeadEvery: %d, %v; want 1", n, err)
	}
	if err := c.Close(); err == nil || !strings.Contains(err.Error(), "makes a record of their number") {
		t.Errorf("closed: %v", err)
	}
	free()
	if n, err := readUnwritten(path); err != nil || n != 2 {
		t.Errorf("at the end: %d, %v; want 2", n, err)
	}
}

// TestWrittenIsOnTheDisk: the number becomes 0 only when the records that waited are on the disk.
func TestWrittenIsOnTheDisk(t *testing.T) {
	path, c, free := chainWithFullDisk(t)
	if err := c.Begin(t.Context(), event("k")); err == nil {
		t.Fatal("written to a full disk")
	}
	free()
	if err := c.flush(time.Now(), false); err != nil { // without a sync of its own
		t.Fatal(err)
	}
	if n, err := readUnwritten(path); err != nil || n != 0 || c.synced != c.seq {
		t.Errorf("%d, %v; records up to %d are on the disk, of %d", n, err, c.synced, c.seq)
	}
}

// chainWithFullDisk returns a chain that stores numbers once in an hour. The disk is full until free is called.
func chainWithFullDisk(t *testing.T) (path string, c *Chain, free func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.json")
	c = chainAt(t, path, func(cfg *ChainConfig) { cfg.HeadEvery = time.Hour })
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, c, fullDisk(t, uint64(st.Size()))
}

// TestUnwrittenFileFails: a file that is no number is refused. A file that cannot be overwritten is logged, and the
// last message does not say that the number is kept.
func TestUnwrittenFileFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	log := new(logtest.Buffer)
	c := chainAt(t, path, func(cfg *ChainConfig) { cfg.Log = slog.New(slog.NewTextHandler(log, nil)) })
	if err := os.Remove(UnwrittenFileOf(path)); err != nil {
		t.Fatal(err)
	}
	free := fullDisk(t, 1)
	c.Log(t.Context(), event("k"))
	err := c.Close()
	free()
	if err == nil || !strings.Contains(err.Error(), "1 records of the audit log could not be written") ||
		strings.Contains(err.Error(), "the next process") {
		t.Errorf("closed: %v", err)
	}
	if !strings.Contains(log.String(), "cannot be stored") {
		t.Errorf("the log says %s", log)
	}
	if err := os.WriteFile(UnwrittenFileOf(path), bytes.Repeat([]byte("x"), 21), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify([]string{path}, VerifyConfig{}); err == nil ||
		!strings.Contains(err.Error(), "audit.json.lost") {
		t.Errorf("verify: %v", err)
	}
	f, err := OpenExclusiveFile(path, Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenChain(t.Context(), ChainConfig{File: f}); err == nil ||
		!strings.Contains(err.Error(), "audit.json.lost") {
		t.Errorf("opened: %v", err)
	}
}

// TestUnwrittenNotRead: the error of a number that cannot be read says why, and not that it is no number.
func TestUnwrittenNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	if err := os.Mkdir(UnwrittenFileOf(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if n, err := readUnwritten(path); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("%d, %v", n, err)
	}
}

// TestIsBeside: the head and the number of lost events lie beside a log, and rotated logs do not.
func TestIsBeside(t *testing.T) {
	for path, want := range map[string]bool{"audit.json.head": true, UnwrittenFileOf("audit.json"): true,
		"audit.json": false, "audit.json.1": false, "audit-2026-12-01.json": false} {
		if got := IsBeside(path); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
}

// TestUnwrittenWhileSyncsFail: the number is stored although earlier records cannot be brought to the disk.
func TestUnwrittenWhileSyncsFail(t *testing.T) {
	disk := &unsyncedDisk{}
	c, err := onDisk(t, disk, nil)
	if err != nil {
		t.Fatal(err)
	}
	disk.fails.Store(true)
	if err := c.Begin(t.Context(), event("k")); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	st, err := os.Stat(c.cfg.File.Path())
	if err != nil {
		t.Fatal(err)
	}
	fullDisk(t, uint64(st.Size()))
	if err := c.Begin(t.Context(), event("k")); !errors.Is(err, syscall.EFBIG) {
		t.Fatal(err)
	}
	if n, err := readUnwritten(c.cfg.File.Path()); err != nil || n != 1 {
		t.Errorf("%d, %v; want 1", n, err)
	}
}

// TestNoUnwrittenFile: the start warns if the file cannot be made, and only then. Later starts do not make it again.
func TestNoUnwrittenFile(t *testing.T) {
	for _, fails := range []bool{false, true} {
		path, log := filepath.Join(t.TempDir(), "audit.json"), new(logtest.Buffer)
		if fails { // a link to a file that does not exist
			if err := os.Symlink("none", UnwrittenFileOf(path)); err != nil {
				t.Fatal(err)
			}
		}
		logged := func(cfg *ChainConfig) { cfg.Log = slog.New(slog.NewTextHandler(log, nil)) }
		for range 2 {
			closeChain(t, chainAt(t, path, logged))
		}
		if got := strings.Contains(log.String(), "the next one will not know"); got != fails {
			t.Errorf("fails: %t; the log says %s", fails, log)
		}
	}
}
