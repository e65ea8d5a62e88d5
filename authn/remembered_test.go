package authn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"claviger/metastore"
)

// TestRememberedIsBounded: at most twice rememberedLimit credentials are remembered, and those in use stay.
func TestRememberedIsBounded(t *testing.T) {
	var r remembered[int]
	used := digestOf("in use")
	r.put(used, -1)
	for i := range 5 * rememberedLimit {
		r.put(digestOf(fmt.Sprint("credential ", i)), i)
		if v, ok := r.get(used); !ok || v != -1 {
			t.Fatalf("after %d other credentials, the value of the credential in use is %d, %v", i+1, v, ok)
		}
		if n := len(r.newer) + len(r.older); n > 2*rememberedLimit {
			t.Fatalf("%d are remembered", n)
		}
	}
	if _, ok := r.get(digestOf("credential 0")); ok {
		t.Error("the oldest credential, which was not used, is still remembered")
	}
}

// TestRememberedHalf: the last rememberedLimit credentials are remembered, also without use.
func TestRememberedHalf(t *testing.T) {
	var r remembered[int]
	for i := range 3 * rememberedLimit {
		r.put(digestOf(fmt.Sprint("credential ", i)), i)
	}
	for i := 2 * rememberedLimit; i < 3*rememberedLimit; i++ {
		d := digestOf(fmt.Sprint("credential ", i))
		v, ok := r.newer[d]
		if !ok {
			v, ok = r.older[d]
		}
		if !ok || v != i {
			t.Fatalf("credential %d of %d: %d, %v", i, 3*rememberedLimit, v, ok)
		}
	}
}

// countedTokens is a token store that counts the readings of tokens. read, if set, is called after each reading.
type countedTokens struct {
	*memoryTokens
	reads  atomic.Int64
	read   func()
	failed error // of RemoveDelegation, which removes the token nevertheless
}

func (s *countedTokens) Delegation(ctx context.Context, sequence int32) (metastore.Delegation, bool, error) {
	s.reads.Add(1)
	d, ok, err := s.memoryTokens.Delegation(ctx, sequence)
	if s.read != nil {
		s.read()
	}
	return d, ok, err
}

func (s *countedTokens) RemoveDelegation(ctx context.Context, sequence int32) (bool, error) {
	ok, err := s.memoryTokens.RemoveDelegation(ctx, sequence)
	if s.failed != nil {
		return false, s.failed
	}
	return ok, err
}

// remembering makes an Authenticator that remembers tokens.
func remembering(t *testing.T, remember time.Duration) (*delegating, *countedTokens) {
	t.Helper()
	d := &delegating{t: t, now: time.UnixMilli(1795442630957)}
	clock := func() time.Time { return d.now }
	store := &countedTokens{memoryTokens: newMemoryTokens(clock)}
	var err error
	if d.tokens, err = NewDelegations(DelegationConfig{KeyUpdate: 24 * time.Hour, MaxLife: 7 * 24 * time.Hour,
		Renewal: 24 * time.Hour, Scan: time.Hour, Now: clock, Store: store, Remember: remember,
		Digests: true}); err != nil {
		t.Fatal(err)
	}
	if d.Authenticator, err = New(Config{Validity: time.Hour, Secrets: oneSecret{}, Delegations: d.tokens,
		Now: clock}); err != nil {
		t.Fatal(err)
	}
	return d, store
}

// wantUse checks what n uses of a token answer, and how often they read the store.
func (d *delegating) wantUse(store *countedTokens, when, token string, n int, want string, reads int64) {
	d.t.Helper()
	before := store.reads.Load()
	for range n {
		if got := d.use(token); !strings.Contains(got, want) {
			d.t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	if got := store.reads.Load() - before; got != reads {
		d.t.Errorf("%s: %d readings of the store by %d uses, want %d", when, got, n, reads)
	}
}

// TestRememberedTokens: a token is read from the store once, until it is cancelled, renewed or expires. What is
// refused is not remembered.
func TestRememberedTokens(t *testing.T) {
	d, store := remembering(t, time.Hour)
	token, other := d.get("renewer=yarn&user.name=alice"), d.get("renewer=yarn&user.name=bob")
	d.wantUse(store, "used", token, 5, "alice", 1)
	d.wantUse(store, "another", other, 5, "bob", 1)
	parsed, _, _ := parseDelegation(token)
	parsed.service = "elsewhere:9600"
	d.wantUse(store, "with another service", parsed.text(), 5, "alice", 1)
	parsed.password[3] ^= 1
	d.wantUse(store, "with another password", parsed.text(), 2, "password doesn't match", 2)
	if res := d.do(http.MethodPut, "op=RENEWDELEGATIONTOKEN&user.name=yarn&token="+token); res.Refusal != nil {
		t.Fatal(res.Refusal)
	}
	d.wantUse(store, "renewed before its end", token, 3, "alice", 1)

	end := d.now.Add(24 * time.Hour)
	d.now = end
	d.wantUse(store, "at its end", token, 2, "alice", 0)
	d.now = end.Add(time.Millisecond)
	d.wantUse(store, "expired", token, 2, "has expired", 2)
	if res := d.do(http.MethodPut, "op=RENEWDELEGATIONTOKEN&user.name=yarn&token="+token); res.Refusal != nil {
		t.Fatal(res.Refusal)
	}
	d.wantUse(store, "renewed", token, 3, "alice", 1)
	for what, refuse := range map[string]error{"cancelled": nil, "cancelled without an answer": errors.New("lost")} {
		token := d.get("renewer=yarn&user.name=alice")
		d.wantUse(store, "before it is "+what, token, 2, "alice", 1)
		store.failed = refuse
		res := d.do(http.MethodPut, "op=CANCELDELEGATIONTOKEN&token="+token)
		if store.failed = nil; (res.Refusal == nil) != (refuse == nil) {
			t.Errorf("%s: %+v", what, res.Refusal)
		}
		d.wantUse(store, what, token, 2, "can't be found in cache", 2)
	}
	if text := fmt.Sprintf("%+v", d.tokens.known); strings.Contains(text, token) ||
		strings.Contains(text, fmt.Sprintf("%v", parsed.password)) {
		t.Error("the memory holds a token")
	}
	d.now = d.now.Add(-time.Hour)
	d.wantUse(store, "while the clock is behind", token, 3, "alice", 0)
}

// TestRememberedTokenOfAnotherNode: a token that another node has cancelled is refused after Remember at the latest,
// however often it is used meanwhile.
func TestRememberedTokenOfAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, store := remembering(t, time.Second)
		token := d.get("user.name=alice")
		_, id, _ := parseDelegation(token)
		d.wantUse(store, "used", token, 2, "alice", 1)
		time.Sleep(time.Second / 2)
		if ok, err := store.RemoveDelegation(t.Context(), id.sequence); !ok || err != nil {
			t.Fatal(ok, err)
		}
		time.Sleep(time.Second/2 - 1)
		d.wantUse(store, "a nanosecond before", token, 2, "alice", 0)
		time.Sleep(time.Nanosecond)
		d.wantUse(store, "after a second", token, 2, "can't be found in cache", 2)
	})
}

// TestForget: a token that another node has cancelled is refused from the moment at which that node has reported it.
func TestForget(t *testing.T) {
	d, store := remembering(t, time.Hour)
	token, other := d.get("user.name=alice"), d.get("user.name=bob")
	d.wantUse(store, "used", token, 2, "alice", 1)
	d.wantUse(store, "another", other, 2, "bob", 1)
	_, id, _ := parseDelegation(token)
	if ok, err := store.RemoveDelegation(t.Context(), id.sequence); !ok || err != nil {
		t.Fatal(ok, err)
	}
	d.tokens.Forget(id.sequence)
	d.wantUse(store, "cancelled", token, 2, "can't be found in cache", 2)
	d.wantUse(store, "another after that", other, 2, "bob", 0)
}

// TestCancelDuringReading: a token is cancelled between the moment at which a request reads it and the moment at which
// it is remembered. The next request is refused.
func TestCancelDuringReading(t *testing.T) {
	d, store := remembering(t, time.Hour)
	token := d.get("renewer=yarn&user.name=alice")
	store.read = func() {
		store.read = nil // the cancellation reads, too
		if res := d.do(http.MethodPut, "op=CANCELDELEGATIONTOKEN&token="+token); res.Refusal != nil {
			t.Error(res.Refusal)
		}
	}
	d.wantUse(store, "cancelled while it is read", token, 1, "alice", 2)
	d.wantUse(store, "the next request", token, 2, "can't be found in cache", 2)
}

// TestTokensAreReadEachTime: without Remember each use of a token reads the store.
func TestTokensAreReadEachTime(t *testing.T) {
	d, store := remembering(t, 0)
	token := d.get("user.name=alice")
	d.wantUse(store, "without Remember", token, 3, "alice", 3)
}
