package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// userLimited is a call of a source that answers that it cannot serve this user now.
func userLimited(context.Context) error {
	return claviger.E("far.call", claviger.Unavailable, "", provider.Answered(errors.New(
		"too many of your requests are under way here")))
}

// TestOneUsersLimitsAtTheSource: a source that refuses one user because of that user's limits does not open the
// breaker, and closes a half-open one. Other users are served.
func TestOneUsersLimitsAtTheSource(t *testing.T) {
	l, far := withSource(t, func(c *Config) { c.SourceFailures, c.SourcePause = 1, 20*time.Millisecond }, "k")
	es, deks := newEDEKs(t, far.blocks, "k@0", 1)
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
		if s := text(t, err); !strings.Contains(s, "cannot serve this now: too many of your requests") {
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
	probes atomic.Int64
	mu     sync.Mutex
	check  error
}

func (a *checkedKMS) Check(context.Context) error {
	a.probes.Add(1)
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
	es, deks := newEDEKs(t, inner.blocks, "k@0", 1)
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
	if state() == "closed" { // half-open after the pause
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
	if state() == "closed" { // half-open after the pause
		t.Errorf("a source that does not answer several users: %s", state())
	}
}

// TestRefusalsCloseTheBreaker: if the source refuses the user of the first call after the pause, the breaker closes,
// because a refusal is an answer.
func TestRefusalsCloseTheBreaker(t *testing.T) {
	for _, kind := range []claviger.Kind{claviger.Denied, claviger.KeyDenied, claviger.KeyNotFound,
		claviger.VersionNotFound, claviger.BadIV} {
		l, far := withSource(t, func(c *Config) { c.SourceFailures, c.SourcePause = 1, 20*time.Millisecond }, "k")
		es, _ := newEDEKs(t, far.blocks, "k@0", 1)
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

// TestWithoutAnswer checks which errors of a call mean that the source gave no answer in time, and which mean that the
// caller gave the call up.
func TestWithoutAnswer(t *testing.T) {
	ended := func(with error) context.Context {
		ctx, cancel := context.WithCancel(t.Context())
		if errors.Is(with, context.DeadlineExceeded) {
			ctx, cancel = context.WithDeadline(t.Context(), time.Unix(1, 0))
		}
		cancel()
		return ctx
	}
	live, cancelled, expired := t.Context(), ended(context.Canceled), ended(context.DeadlineExceeded)
	silent := claviger.E("test", claviger.Unavailable, "", errors.New("connection reset"))
	unknown := errors.New("no kind")
	for _, tt := range []struct {
		name         string
		ctx, limited context.Context
		took         time.Duration
		err, want    error // want nil: err unchanged
	}{
		{"success, given up", cancelled, cancelled, time.Minute, nil, nil},
		{"refusal, given up", cancelled, cancelled, 0, claviger.E("test", claviger.Denied, "", nil), nil},
		{"silence, given up", cancelled, cancelled, time.Minute, silent, errCancelled},
		{"unknown error, given up", cancelled, cancelled, time.Minute, unknown, errCancelled},
		{"silence, short deadline", expired, expired, 0, silent, errCancelled},
		{"silence, long deadline", expired, expired, time.Minute, silent, errTimeout},
		{"silence, own timeout", live, expired, time.Minute, silent, errTimeout},
		{"silence, in time", live, live, 0, silent, nil},
	} {
		s := &source{timeout: time.Minute}
		err := s.withoutAnswer(tt.ctx, tt.limited, time.Now().Add(-tt.took), tt.err)
		if tt.want == nil {
			if err != tt.err { //nolint:errorlint // the same value
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		other := errCancelled
		if errors.Is(tt.want, errCancelled) {
			other = errTimeout
		}
		if !errors.Is(err, tt.want) || errors.Is(err, other) || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestRecordOfCalls: the record of a source shows the result of its last call. An answer, even a refusal, also ends the
// count of users without an answer.
func TestRecordOfCalls(t *testing.T) {
	for _, tt := range []struct {
		err                    error
		recorded, failed, lost bool // a call is recorded; with an error; as a failure
	}{
		{nil, true, false, false},
		{claviger.E("test", claviger.Denied, "", nil), true, false, false},
		{errors.New("no kind"), true, true, false},
		{claviger.E("test", claviger.Unavailable, "", nil), true, true, true},
		{fmt.Errorf("%w: %w", errCancelled, claviger.E("test", claviger.Unavailable, "", nil)), false, false, false},
	} {
		s := &source{}
		s.record("bob", time.Now(), tt.err)
		call := s.lastCall.Load()
		if (call != nil) != tt.recorded || call != nil && (call.Err != nil) != tt.failed {
			t.Errorf("%v: %+v", tt.err, call)
		}
		if (s.lastFail.Load() != nil) != tt.lost || errors.Is(tt.err, errCancelled) && s.lastError() != nil {
			t.Errorf("%v: %+v", tt.err, s.lastFail.Load())
		}
	}
	var u unanswered
	silent := claviger.E("test", claviger.Unavailable, "", nil)
	u.record("bob", silent)
	u.record("carl", claviger.E("test", claviger.Denied, "", nil))
	if u.record("carl", silent); u.shared() {
		t.Error("a refusal does not count as an answer")
	}
	if u.record("bob", silent); !u.shared() {
		t.Error("two users without an answer count as one")
	}
}

// TestProbesAreRare: a source is probed only after as many calls of one user without an answer as would open the
// breaker.
func TestProbesAreRare(t *testing.T) {
	far := &checkedKMS{}
	l, inner := withSource(t, func(c *Config) {
		far.farKMS, _ = c.Sources[0].Provider.(*farKMS)
		c.Sources[0].Provider = far
		c.SourceFailures, c.SourcePause = 3, time.Hour
	}, "k")
	es, _ := newEDEKs(t, inner.blocks, "k@0", 1)
	call := func(user string, wantProbes int64) {
		t.Helper()
		before := far.probes.Load()
		_, _ = l.Decrypt(provider.WithCaller(t.Context(), user), caller(user), "k", true, es[0])
		if n := far.probes.Load() - before; n != wantProbes {
			t.Errorf("%d probes after a call of %s, want %d", n, user, wantProbes)
		}
	}
	call("alice", 0)
	inner.setFail(failFor("bob", "carl"))
	call("bob", 0)
	call("bob", 0)
	call("bob", 1) // the probe succeeds, so the count restarts at 0
	call("alice", 0)
	call("bob", 0)
	call("carl", 0)
	call("bob", 0) // this opens the breaker
	call("bob", 0) // no call is made
}
