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

// userLimited is a call of a source that answers that it cannot serve this user now.
func userLimited(context.Context) error {
	return claviger.E("far.call", claviger.Unavailable, "", provider.Answered(errors.New(
		"as many of your requests are under way here as one user's may be")))
}

// TestOneUsersLimitsAtTheSource: a source that refuses one user because of that user's limits does not open the
// breaker, and closes a half-open one. Other users are served.
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
		far.setFail(userLimited)
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
	// After the pause, bob's request is the first that the breaker lets through. The source refuses bob, which is an
	// answer.
	far.setFail(failing(claviger.Unavailable, "connection refused"))
	_, err := l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
	wantKind(t, err, claviger.SourceUnreachable)
	far.setFail(userLimited)
	for deadline := time.Now().Add(30 * time.Second); l.Sources()[0].State == "open"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the breaker stays open")
		}
	}
	_, _ = l.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
	far.setFail(nil)
	alice()
}

// checkedKMS is a remote KMS whose Check has a result of its own, independent of users' calls.
type checkedKMS struct {
	*farKMS
	mu    sync.Mutex
	check error
}

func (a *checkedKMS) Check(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.check
}

func (a *checkedKMS) setCheck(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.check = err
}

// failFor returns the behaviour of a source that does not answer some users.
func failFor(users ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		if slices.Contains(users, provider.CallerOf(ctx)) {
			return claviger.Errorf("far.call", claviger.Unavailable, "", "connection reset")
		}
		return nil
	}
}

// TestSilentToOneUser: if a source answers all users but one, calls of that user do not open the breaker or keep it
// open. If the source answers no user and no Check of this server, the breaker opens.
func TestSilentToOneUser(t *testing.T) {
	far := &checkedKMS{}
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

	// The source answers nobody. The breaker opens because of a Check by this server.
	inner.setFail(failFor("alice", "bob", "carl", ""))
	far.setCheck(claviger.Errorf("far.Check", claviger.Unavailable, "", "connection refused"))
	for range 3 {
		wantKind(t, decrypt("bob"), claviger.SourceUnreachable)
	}
	if state() != "open" {
		t.Fatalf("a source that answers nobody: %s", state())
	}
	// The source answers again, but not bob. Each time, bob's call is the first after the pause.
	inner.setFail(failFor("bob"))
	far.setCheck(nil)
	time.Sleep(2 * pause) // the breaker lets a call through after its pause
	for range 5 {
		wantKind(t, decrypt("bob"), claviger.SourceUnreachable)
	}
	must("alice")

	// The source does not answer several users, but it answers Check.
	inner.setFail(failFor("alice", "bob"))
	for range 2 {
		wantKind(t, decrypt("bob"), claviger.SourceUnreachable)
		wantKind(t, decrypt("alice"), claviger.SourceUnreachable)
	}
	if state() != "open" {
		t.Errorf("a source that is silent to several users: %s", state())
	}
}

// TestRefusalsCloseTheBreaker: if the source refuses the user of the first call after the pause, the breaker closes,
// because a refusal is an answer.
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
