package keyring

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// busyFar is a source that answers that it cannot serve this user now.
func busyFar(context.Context) error {
	return claviger.E("far.call", claviger.Unavailable, "", provider.Answered(errors.New(
		"as many of your requests are under way here as one user's may be")))
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
	for deadline := time.Now().Add(30 * time.Second); l.Sources()[0].State == "open"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the breaker stays open")
		}
	}
	_, _ = l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
	far.setFail(nil)
	alice()
}

// answering is a far KMS that may answer the question for a sign of life, whatever becomes
// of users' calls.
type answering struct {
	*farKMS
	mu    sync.Mutex
	check error
}

func (a *answering) Check(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.check
}

func (a *answering) setCheck(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.check = err
}

// failFor is a source that is silent to some users, while others get their answers.
func failFor(users ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		if slices.Contains(users, provider.CallerOf(ctx)) {
			return claviger.Errorf("far.call", claviger.Unavailable, "", "connection reset")
		}
		return nil
	}
}

// TestSilentToOneUser: a source that answers all users but one is not left alone for that user's calls: they make the
// breaker neither open nor stay open. If it answers nobody, or not even this server's own question, it is left alone.
func TestSilentToOneUser(t *testing.T) {
	far := &answering{}
	const pause = 30 * time.Millisecond
	l, inner := withSource(t, func(c *Config) {
		far.farKMS, _ = c.Sources[0].Provider.(*farKMS)
		c.Sources[0].Provider = far
		c.SourceFailures, c.SourcePause = 3, pause
	}, "k")
	es, deks := made(t, inner.blocks, "k@0", 1)
	decrypt := func(user string) error {
		t.Helper()
		dek, err := l.Decrypt(provider.WithCaller(t.Context(), user), caller(user), "k", true, es[0])
		if err == nil && !dek.Equal(deks[0]) {
			t.Errorf("%s got a wrong DEK", user)
		}
		return err
	}
	state := func() string { return l.Sources()[0].State }
	must := func(user string) {
		t.Helper()
		if err := decrypt(user); err != nil {
			t.Fatalf("%s: %v; the breaker is %s", user, err, state())
		}
	}
	must("alice")
	inner.setFail(failFor("bob"))
	for range 20 { // without alice's answers between
		wantKind(t, decrypt("bob"), claviger.SourceUnreachable)
		if state() != "closed" {
			t.Fatalf("bob's calls made the breaker %s", state())
		}
	}
	must("alice")

	// The source is away. What opens the breaker is a question of this server's own.
	inner.setFail(failFor("alice", "bob", "carl", ""))
	far.setCheck(claviger.Errorf("far.Check", claviger.Unavailable, "", "connection refused"))
	for range 3 {
		wantKind(t, decrypt("bob"), claviger.SourceUnreachable)
	}
	if state() != "open" {
		t.Fatalf("a source that answers nobody: %s", state())
	}
	// It is back, and bob's call is the first after the pause, again and again.
	inner.setFail(failFor("bob"))
	far.setCheck(nil)
	time.Sleep(2 * pause) // the breaker lets a call through after its pause
	for range 5 {
		wantKind(t, decrypt("bob"), claviger.SourceUnreachable)
	}
	must("alice")

	// It is silent to several users, though it gives a sign of life.
	inner.setFail(failFor("alice", "bob"))
	for range 2 {
		wantKind(t, decrypt("bob"), claviger.SourceUnreachable)
		wantKind(t, decrypt("alice"), claviger.SourceUnreachable)
	}
	if state() != "open" {
		t.Errorf("a source that is silent to several users: %s", state())
	}
}

// TestRefusalsCloseTheBreaker: the first call after a pause may be of a user to whom the
// source says no. That is an answer.
func TestRefusalsCloseTheBreaker(t *testing.T) {
	for _, kind := range []claviger.Kind{claviger.Denied, claviger.KeyDenied, claviger.KeyNotFound,
		claviger.VersionNotFound, claviger.BadIV} {
		l, far := withSource(t, func(c *Config) { c.SourceFailures, c.SourcePause = 1, 20*time.Millisecond }, "k")
		es, _ := made(t, far.blocks, "k@0", 1)
		far.setFail(failing(claviger.Unavailable, "connection refused"))
		_, err := l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
		wantKind(t, err, claviger.SourceUnreachable)
		time.Sleep(40 * time.Millisecond) // the breaker lets a call through after its pause
		far.setFail(failing(kind, "no"))
		_, _ = l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
		if s := l.Sources()[0].State; s != "closed" {
			t.Errorf("after %v the breaker is %s", kind, s)
		}
	}
}
