package keyring

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// busyFar is a source that answers that it cannot serve this user now.
func busyFar(context.Context) error {
	return claviger.E("far.call", claviger.Unavailable, "", provider.Answered(errors.New("as many of your requests are under way here as one user's may be")))
}

// TestOneUsersLimitsAtTheSource: a source that sends one user away for limits of that user
// is not left alone, and is believed to be alive after a pause. Others are served by it.
func TestOneUsersLimitsAtTheSource(t *testing.T) {
	l, far := withSource(t, func(c *Config) { c.SourceFailures, c.SourcePause = 1, 20*time.Millisecond }, "k")
	es, deks := made(t, far.blocks, "k@0", 1)
	if _, err := l.Decrypt(t.Context(), caller("alice"), "k", true, es[0]); err != nil {
		t.Fatal(err)
	}
	alice := func() {
		t.Helper()
		if dek, err := l.Decrypt(t.Context(), caller("alice"), "k", true, es[0]); err != nil || !dek.Equal(deks[0]) {
			t.Errorf("alice: %v", err)
		}
	}
	for range 5 {
		far.setFail(busyFar)
		_, err := l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
		wantKind(t, err, claviger.SourceUnreachable)
		if s := text(t, err); !strings.Contains(s, "cannot serve this now: as many of your requests") {
			t.Errorf("bob's error: %q", s)
		}
		far.setFail(nil)
		alice()
	}
	if s := l.Sources()[0]; s.LastFailure != nil || s.LastCall.Err != nil {
		t.Errorf("%+v", s)
	}
	// After a pause bob's question is the one that tries the source: it answers, if only bob.
	far.setFail(failing(claviger.Unavailable, "connection refused"))
	_, err := l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
	wantKind(t, err, claviger.SourceUnreachable)
	far.setFail(busyFar)
	for deadline := time.Now().Add(10 * time.Second); l.Sources()[0].State == "open"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the breaker stays open")
		}
	}
	_, _ = l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
	far.setFail(nil)
	alice()
}
