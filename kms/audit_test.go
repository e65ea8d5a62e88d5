package kms

import (
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"claviger/audit"
)

// trailOnHangup opens an audit trail in a folder. The trail reopens its files on SIGHUP until stop is called.
func trailOnHangup(t *testing.T, dir string) (set auditSettings, trail *AuditTrail, stop func()) {
	t.Helper()
	set = auditSettings{hadoop: true, file: filepath.Join(dir, "kms-audit.log"),
		json: filepath.Join(dir, "audit.json"), node: "n"}
	trail, err := openAudit(t.Context(), set, &Service{Log: slog.New(slog.DiscardHandler)}, standardOutput{})
	if err != nil {
		t.Fatal(err)
	}
	return set, trail, trail.reopenOnHangup()
}

// TestHangup sends SIGHUP, as logrotate does.
func TestHangup(t *testing.T) {
	dir := t.TempDir()
	set, trail, stop := trailOnHangup(t, dir)
	ctx := t.Context()
	trail.Log(ctx, audit.Event{Status: audit.OK, Op: audit.GetKeys})
	for _, f := range []string{set.file, set.json} {
		if err := os.Rename(f, f+".1"); err != nil {
			t.Fatal(err)
		}
	}
	there := func(f string) bool { _, err := os.Stat(f); return err == nil }
	missing := func() bool { return !there(set.file) || !there(set.json) }
	for end := time.Now().Add(20 * time.Second); missing(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the files are not reopened")
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
}
