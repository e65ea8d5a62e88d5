package authz

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger"
)

// readOne reads a file whose whole content is the value of one property.
func readOne(path string) ([]Property, []string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	if strings.HasPrefix(string(data), "broken") {
		return nil, nil, errors.New("line 1: broken")
	}
	return []Property{{Name: "hadoop.kms.acl.GET", Value: string(data)}}, []string{"odd: " + string(data)}, nil
}

func newTestWatcher(t *testing.T, content string) (w *Watcher, write func(content string, modTime time.Time),
	log *bytes.Buffer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kms-acls.xml")
	write = func(content string, modTime time.Time) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modTime, modTime); err != nil {
			t.Fatal(err)
		}
	}
	if content != "" {
		write(content, time.Now().Add(-time.Hour))
	}
	log = new(bytes.Buffer)
	w, err := NewWatcher(path, readOne, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return w, write, log
}

func (w *Watcher) mayGet(user string) bool {
	return w.Policy().May(Get, claviger.Principal{Name: user, Short: user}, nil)
}

// TestWatcherReloads: changed rules take effect when the file has not changed for settleTime, with the warnings in the
// log.
func TestWatcherReloads(t *testing.T) {
	now := time.Now()
	w, write, log := newTestWatcher(t, "alice")
	before := w.Policy()
	w.check(now)
	if w.Policy() != before || !w.mayGet("alice") || w.mayGet("bob") {
		t.Fatal("reloaded without a change, or wrong rules")
	}

	write("bob", now)
	w.check(now.Add(settleTime / 2))
	if w.Policy() != before {
		t.Error("a file was read before settleTime had passed")
	}
	w.check(now.Add(settleTime))
	if w.mayGet("alice") || !w.mayGet("bob") {
		t.Error("the change did not take effect")
	}
	if !strings.Contains(log.String(), "odd: bob") {
		t.Errorf("the reader's warning is not in the log: %s", log)
	}
	if !strings.Contains(log.String(), "loaded again") {
		t.Errorf("log: %s", log)
	}

	write("carol", now.Add(-24*time.Hour)) // as after cp -p of an older file
	w.check(now.Add(time.Second))
	if !w.mayGet("carol") || w.mayGet("bob") {
		t.Error("a file with an older time did not take effect")
	}

	write("dave", now.Add(time.Hour)) // as with a clock that is ahead
	w.check(now.Add(2 * time.Second))
	if !w.mayGet("dave") {
		t.Error("a file with a time in the future did not take effect")
	}
}

// TestWatcherKeepsRulesOfBrokenFile: a broken file changes no rule, and is logged once.
func TestWatcherKeepsRulesOfBrokenFile(t *testing.T) {
	now := time.Now()
	w, write, log := newTestWatcher(t, "alice")
	write("broken", now.Add(-time.Minute))
	for i := range 3 {
		w.check(now.Add(time.Duration(i) * time.Second))
	}
	if !w.mayGet("alice") || w.mayGet("bob") {
		t.Error("the rules changed")
	}
	if n := strings.Count(log.String(), "cannot be used"); n != 1 || !strings.Contains(log.String(), "line 1: broken") {
		t.Errorf("logged %d times: %s", n, log)
	}
	write("bob", now.Add(-time.Second))
	w.check(now)
	if !w.mayGet("bob") {
		t.Error("the repaired file did not take effect")
	}
}

// TestWatcherKeepsRulesOfRemovedFile: the removal of the file changes no rule, and is logged once.
func TestWatcherKeepsRulesOfRemovedFile(t *testing.T) {
	now := time.Now()
	w, write, log := newTestWatcher(t, "alice")
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	w.check(now)
	w.check(now.Add(time.Second))
	if !w.mayGet("alice") || w.mayGet("bob") {
		t.Error("the rules changed")
	}
	if n := strings.Count(log.String(), "was removed or cannot be read"); n != 1 {
		t.Errorf("logged %d times: %s", n, log)
	}
	write("bob", now.Add(-time.Minute))
	w.check(now)
	if !w.mayGet("bob") {
		t.Error("the restored file did not take effect")
	}
}

// TestWatcherWithoutFile: without a file at the start, the rules are those of an empty file until there is one.
func TestWatcherWithoutFile(t *testing.T) {
	w, write, log := newTestWatcher(t, "")
	if !w.mayGet("anybody") || w.Policy().MayKey("k", KeyRead, claviger.Principal{}, nil, nil) {
		t.Error("not the rules of an empty file")
	}
	if !strings.Contains(log.String(), "there is no ACL file") {
		t.Errorf("log: %s", log)
	}
	write("alice", time.Now().Add(-time.Minute))
	w.check(time.Now())
	if w.mayGet("anybody") || !w.mayGet("alice") {
		t.Error("the new file did not take effect")
	}
}

// TestWatcherRefusesBrokenFileAtStart: with a broken file, no watcher is made.
func TestWatcherRefusesBrokenFileAtStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms-acls.xml")
	if err := os.WriteFile(path, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewWatcher(path, readOne, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), "line 1: broken") {
		t.Errorf("error %v", err)
	}
}

// TestWatcherRun: Run reads a changed file by itself, and ends with its context.
func TestWatcherRun(t *testing.T) {
	defer goleak.VerifyNone(t)
	w, write, _ := newTestWatcher(t, "alice")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	write("bob", time.Now().Add(-time.Minute))
	for deadline := time.Now().Add(30 * time.Second); !w.mayGet("bob"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the change did not take effect")
			break
		}
	}
	cancel()
	<-done
}

// TestWatcherStatus: Status has the number of loads and failures, and the error while the file cannot be used.
func TestWatcherStatus(t *testing.T) {
	now := time.Now()
	w, write, _ := newTestWatcher(t, "alice")
	if s := w.Status(); s.Loads != 1 || s.Failures != 0 || s.Err != nil || s.Loaded.IsZero() {
		t.Errorf("after the start: %+v", s)
	}
	write("broken", now.Add(-time.Minute))
	w.check(now)
	if s := w.Status(); s.Loads != 1 || s.Failures != 1 || s.Err == nil ||
		!strings.Contains(s.Err.Error(), "line 1: broken") {
		t.Errorf("with a broken file: %+v", s)
	}
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	w.check(now)
	if s := w.Status(); s.Failures != 2 || s.Err == nil || !strings.Contains(s.Err.Error(), "does not exist") {
		t.Errorf("without the file: %+v", s)
	}
	write("bob", now.Add(-time.Second))
	w.check(now)
	if s := w.Status(); s.Loads != 2 || s.Err != nil {
		t.Errorf("repaired: %+v", s)
	}
}

// TestWatcherStartsWithoutFile: the rules for a missing file count as loaded. If it cannot be found out whether the
// file exists, the start fails.
func TestWatcherStartsWithoutFile(t *testing.T) {
	w, _, _ := newTestWatcher(t, "")
	if s := w.Status(); s.Loads != 1 || s.Err != nil || s.Loaded.IsZero() {
		t.Errorf("without a file: %+v", s)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if w, err := NewWatcher(filepath.Join(file, strings.Repeat("x", 300)), readOne, log); err == nil {
		t.Errorf("a path that cannot be looked up: %+v", w.Status())
	}
}
