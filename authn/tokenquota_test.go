package authn

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// limited makes an Authenticator whose tokens are limited, on a store that may be
// another node's, too.
func limited(t *testing.T, store metastore.Delegations, l TokenLimits) *delegating {
	t.Helper()
	d := &delegating{t: t, now: time.UnixMilli(1795442630957)}
	clock := func() time.Time { return d.now }
	var err error
	d.tokens, err = NewDelegations(DelegationConfig{KeyUpdate: 24 * time.Hour, MaxLife: 7 * 24 * time.Hour,
		Renewal: 24 * time.Hour, Scan: time.Hour, Now: clock, Store: store, Limits: l, Digests: true})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := ParseRules("RULE:[1:$1] RULE:[2:$1]", MechanismHadoop, "")
	if err != nil {
		t.Fatal(err)
	}
	if d.Authenticator, err = New(Config{Validity: time.Hour, Secrets: oneSecret{}, Delegations: d.tokens, Now: clock,
		Rules: rules}); err != nil {
		t.Fatal(err)
	}
	return d
}

// ask asks for a token and returns why there is none.
func (d *delegating) ask(user string) (token string, kind RefusalKind, reason string) {
	d.t.Helper()
	res := d.do(http.MethodGet, "op=GETDELEGATIONTOKEN&renewer=yarn&user.name="+user)
	if res.Refusal != nil {
		return "", res.Refusal.Kind, res.Refusal.Reason
	}
	return res.Token, 0, ""
}

// TestTokenLimits: an owner who takes all that can be had leaves tokens for others, in
// memory and in a store that two nodes share.
func TestTokenLimits(t *testing.T) {
	now := time.UnixMilli(1795442630957)
	for name, open := range map[string]func(t *testing.T) metastore.Delegations{
		"memory": func(*testing.T) metastore.Delegations { return newMemoryTokens(func() time.Time { return now }) },
		"sqlite": func(t *testing.T) metastore.Delegations {
			s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "store.db"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := open(t)
			l := TokenLimits{Total: 40, PerOwner: 6, Rate: 1, Burst: 8, Renewer: 10}
			one, two := limited(t, store, l), limited(t, store, l)

			// By the number of one owner's. Other spellings of the name do not help.
			var had []string
			for i := range l.PerOwner {
				token, _, reason := one.ask([]string{"mallory", "mallory@R", fmt.Sprintf("mallory/h%d@R", i)}[i%3])
				if token == "" {
					t.Fatalf("token %d is refused: %s", i, reason)
				}
				had = append(had, token)
			}
			_, kind, reason := one.ask("mallory/h9@R")
			if kind != TooManyTokens || !strings.Contains(reason, "mallory has 6 delegation tokens") {
				t.Errorf("one token too many: %v %q", kind, reason)
			}
			if token, _, reason := one.ask("alice"); token == "" {
				t.Errorf("alice gets none since mallory has too many: %s", reason)
			}
			// The other node has counted them, too, and what it cancels counts here in a while.
			if _, kind, _ = two.ask("mallory"); kind != TooManyTokens {
				t.Errorf("the other node issues one more: %v", kind)
			}
			if res := two.do(http.MethodPut,
				"op=CANCELDELEGATIONTOKEN&user.name=mallory&token="+had[0]); res.Refusal != nil {
				t.Fatal(res.Refusal)
			}
			one.now = one.now.Add(recount)
			if token, _, reason := one.ask("mallory"); token == "" {
				t.Errorf("after one was cancelled: %s", reason)
			}

			limitedByRate(t, one, l)
			limitedByTotal(t, one, l)
		})
	}
}

// limitedByRate: what is cancelled at once cannot be asked for again and again.
func limitedByRate(t *testing.T, one *delegating, l TokenLimits) {
	t.Helper()
	refused := false
	for range 2 * l.Burst {
		token, kind, reason := one.ask("hasty")
		if token == "" {
			refused = kind == StoreAway && strings.Contains(reason, "too many delegation tokens")
			break
		}
		if res := one.do(http.MethodPut, "op=CANCELDELEGATIONTOKEN&user.name=hasty&token="+token); res.Refusal != nil {
			t.Fatal(res.Refusal)
		}
	}
	if !refused {
		t.Error("an owner may ask as fast as can be")
	}
	if token, _, reason := one.ask("bob"); token == "" {
		t.Errorf("bob gets none since hasty is: %s", reason)
	}
	one.now = one.now.Add(time.Second)
	if token, _, reason := one.ask("hasty"); token == "" {
		t.Errorf("a second later: %s", reason)
	}
}

// limitedByTotal: many owners who take what they get never fill the store.
func limitedByTotal(t *testing.T, one *delegating, l TokenLimits) {
	t.Helper()
	for i := range 20 {
		for range l.PerOwner {
			if token, _, _ := one.ask(fmt.Sprint("crowd", i)); token == "" {
				break
			}
		}
	}
	if n, err := one.tokens.Count(t.Context()); err != nil || n > l.Total {
		t.Errorf("%d tokens are kept (%v), and %d may be", n, err, l.Total)
	}
	if _, kind, reason := one.ask("crowd3"); kind != TooManyTokens || !strings.Contains(reason, "40 may be kept") {
		t.Errorf("with hardly any room: %v %q", kind, reason)
	}
	if one.tokens.Full() == nil {
		t.Error("it does not say that it is full")
	}
	// All that is old goes.
	one.now = one.now.Add(25 * time.Hour)
	if token, _, reason := one.ask("carol"); token == "" {
		t.Errorf("when the others' tokens have expired: %s", reason)
	}
	if s := one.tokens.Stats(); s.RefusedOwner == 0 || s.RefusedTotal == 0 || s.RefusedRate == 0 {
		t.Errorf("figures: %+v", s)
	}
	if res := one.do(http.MethodGet, "op=GETDELEGATIONTOKEN&user.name=alice&renewer="+strings.Repeat("r",
		l.Renewer+1)); res.Refusal == nil || res.Refusal.Kind != BadOperation {
		t.Errorf("a long renewer: %+v", res.Refusal)
	}
}

// TestTokenCountsRarely: however many tokens are asked for and refused, the store is
// counted no more than every now and then.
func TestTokenCountsRarely(t *testing.T) {
	counts := 0
	now := time.Unix(0, 0)
	q := newQuota(TokenLimits{Total: 100, PerOwner: 2, Rate: 1e6, Burst: 1e6, Renewer: 1},
		func() time.Time { return now },
		quiet,
		func(context.Context, func(string)) error { counts++; return nil })
	// What is in the store is none of it: each count begins anew.
	for range 1000 {
		now = now.Add(10 * time.Millisecond)
		_ = q.take(t.Context(), "mallory") // refused most of the time
	}
	if counts != 1 {
		t.Errorf("the store was counted %d times in 10 s", counts)
	}
	now = now.Add(recount)
	if err := q.take(t.Context(), "mallory"); err != nil || counts != 2 {
		t.Errorf("after the pause: %v, %d counts", err, counts)
	}
}

// TestInventedOwners: a proxy user that asks for tokens of ever new users, and cancels each,
// does not fill the memory; an owner who has used up the rate is not forgotten by it.
func TestInventedOwners(t *testing.T) {
	now := time.UnixMilli(1795442630957)
	q := newQuota(TokenLimits{Total: 1000, PerOwner: 100, Rate: 1, Burst: 10}, func() time.Time { return now }, nil,
		func(context.Context, func(string)) error { return nil })
	for range 10 {
		if err := q.take(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		q.give("mallory")
	}
	most := 0
	for i := range 60_000 {
		name := fmt.Sprint("invented", i)
		if err := q.take(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		q.give(name)
		now = now.Add(100 * time.Microsecond)
		most = max(most, len(q.owners))
		if i == 9000 {
			if err := q.tryTake("mallory"); err == nil {
				t.Error("mallory's rate was forgotten")
			}
		}
	}
	// Of those of the last second the rate must be remembered: 10,000.
	if most > 2*10_000+sweepLeast+1 {
		t.Errorf("%d owners were remembered at once", most)
	}
}
