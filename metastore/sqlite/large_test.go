package sqlite

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"claviger/internal/logtest"
	"claviger/owner"
)

// largeStore returns the path of a store whose file is so large that OpenNode does not check it, and the offset of the
// first page of its keys.
func largeStore(t *testing.T) (path string, keys int64) {
	t.Helper()
	s, path := newStore(t)
	for i := range 2 + checkLater/100_000 {
		k := testKey(fmt.Sprint("key", i), fmt.Sprint(i))
		k.Attributes = map[string]string{"a": strings.Repeat("x", 100_000)}
		if err := s.Insert(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.db.Reader.QueryRow(`SELECT rootpage FROM sqlite_schema WHERE name = 'ez_key'`).Scan(&keys); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path, (keys - 1) * 4096
}

// TestDamageOfALargeFile: a server starts with a large file before its pages are checked. When the check finds damage,
// the server reads and writes nothing any more.
func TestDamageOfALargeFile(t *testing.T) {
	path, keys := largeStore(t)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), keys); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a command opens it: %v", err)
	}
	s, err := OpenNode(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var text logtest.Buffer
	s.LogTo(slog.New(slog.NewTextHandler(&text, nil)))
	if _, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); s.guard.overwritten.Load() == nil; time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("the damage is not found")
		}
	}
	if _, _, err := s.Setting(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a read of another table: %v", err)
	}
	if err := s.SetSetting(t.Context(), "x", "y"); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a write: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(text.String(), "the metastore is damaged"); n != 1 || !strings.Contains(text.String(),
		"claviger metastore restore") {
		t.Errorf("the log:\n%s", text.String())
	}
}

// TestLargeFile: a large file that is sound is used, and its checksum is computed, so that a changed time is no damage.
func TestLargeFile(t *testing.T) {
	path, _ := largeStore(t)
	s, err := OpenNode(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if !s.db.Unchecked() {
		t.Error("the start has checked the pages of a large file")
	}
	if _, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false); err != nil {
		t.Fatal(err)
	}
	if fault, err := s.db.CheckPages(t.Context()); fault != "" || err != nil {
		t.Errorf("%q, %v", fault, err)
	}
	summed := func() bool {
		s.guard.mu.Lock()
		defer s.guard.mu.Unlock()
		return s.guard.content.of == *s.guard.file.Load()
	}
	for began := time.Now(); !summed(); time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("there is no checksum")
		}
	}
	touched := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, touched, touched); err != nil {
		t.Fatal(err)
	}
	if err := s.SetSetting(t.Context(), "x", "y"); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	small, smallPath := newStore(t)
	if err := small.Close(); err != nil {
		t.Error(err)
	}
	if small, err = OpenNode(t.Context(), smallPath); err != nil || small.db.Unchecked() {
		t.Fatalf("a small file is not checked at once: %v", err)
	}
	if err := small.Close(); err != nil {
		t.Error(err)
	}
}
