package authn

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/internal/logtest"
	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// limited makes an Authenticator with limits of tokens. Several may share a store.
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

// requestToken requests a token for a user, and returns the token or the refusal.
func (d *delegating) requestToken(user string) (token string, kind RefusalKind, reason string) {
	d.t.Helper()
	res := d.do(http.MethodGet, "op=GETDELEGATIONTOKEN&renewer=yarn&user.name="+user)
	if res.Refusal != nil {
		return "", res.Refusal.Kind, res.Refusal.Reason
	}
	return res.Token, 0, ""
}

// TestTokenLimits: an owner that takes as many tokens as possible leaves tokens for others, in memory and in a store
// that two nodes share.
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

			// The limit of one owner. Other spellings of the owner's name are the same owner.
			var tokens []string
			for i := range l.PerOwner {
				spellings := []string{"mallory", "mallory@R", fmt.Sprintf("mallory/h%d@R", i)}
				token, _, reason := one.requestToken(spellings[i%3])
				if token == "" {
					t.Fatalf("token %d is refused: %s", i, reason)
				}
				tokens = append(tokens, token)
			}
			_, kind, reason := one.requestToken("mallory/h9@R")
			if kind != TooManyTokens || !strings.Contains(reason, "mallory has 6 delegation tokens") {
				t.Errorf("one token too many: %v %q", kind, reason)
			}
			if token, _, reason := one.requestToken("alice"); token == "" {
				t.Errorf("alice is refused because of mallory's tokens: %s", reason)
			}
			// The other node counts the tokens too. After it cancels one, this node counts again after recountPause.
			if _, kind, _ = two.requestToken("mallory"); kind != TooManyTokens {
				t.Errorf("the other node issues one more token: %v", kind)
			}
			if res := two.do(http.MethodPut,
				"op=CANCELDELEGATIONTOKEN&user.name=mallory&token="+tokens[0]); res.Refusal != nil {
				t.Fatal(res.Refusal)
			}
			one.now = one.now.Add(recountPause)
			if token, _, reason := one.requestToken("mallory"); token == "" {
				t.Errorf("after a token was cancelled: %s", reason)
			}

			limitedByRate(t, one, l)
			limitedByTotal(t, one, l)
		})
	}
}

// limitedByRate tests that the rate limits an owner that cancels each token at once.
func limitedByRate(t *testing.T, one *delegating, l TokenLimits) {
	t.Helper()
	refused := false
	for range 2 * l.Burst {
		token, kind, reason := one.requestToken("fast")
		if token == "" {
			refused = kind == StoreUnavailable && strings.Contains(reason, "too many delegation tokens")
			break
		}
		if res := one.do(http.MethodPut, "op=CANCELDELEGATIONTOKEN&user.name=fast&token="+token); res.Refusal != nil {
			t.Fatal(res.Refusal)
		}
	}
	if !refused {
		t.Error("the rate does not limit an owner")
	}
	if token, _, reason := one.requestToken("bob"); token == "" {
		t.Errorf("bob is refused because of the rate of another owner: %s", reason)
	}
	one.now = one.now.Add(time.Second)
	if token, _, reason := one.requestToken("fast"); token == "" {
		t.Errorf("a second later: %s", reason)
	}
}

// limitedByTotal tests that many greedy owners do not fill the store.
func limitedByTotal(t *testing.T, one *delegating, l TokenLimits) {
	t.Helper()
	for i := range 20 {
		for range l.PerOwner {
			if token, _, _ := one.requestToken(fmt.Sprint("crowd", i)); token == "" {
				break
			}
		}
	}
	if n, err := one.tokens.Count(t.Context()); err != nil || n > l.Total {
		t.Errorf("%d tokens are kept (%v), and %d may be", n, err, l.Total)
	}
	if _, kind, reason := one.requestToken("crowd3"); kind != TooManyTokens ||
		!strings.Contains(reason, "40 may be kept") {
		t.Errorf("with little room: %v %q", kind, reason)
	}
	if one.tokens.Full() == nil {
		t.Error("Full returns nil although the store is full")
	}
	one.now = one.now.Add(25 * time.Hour)
	if token, _, reason := one.requestToken("carol"); token == "" {
		t.Errorf("after all other tokens have expired: %s", reason)
	}
	if s := one.tokens.Stats(); s.RefusedOwner == 0 || s.RefusedTotal == 0 || s.RefusedRate == 0 {
		t.Errorf("figures: %+v", s)
	}
	if res := one.do(http.MethodGet, "op=GETDELEGATIONTOKEN&user.name=alice&renewer="+strings.Repeat("r",
		l.Renewer+1)); res.Refusal == nil || res.Refusal.Kind != BadOperation {
		t.Errorf("a long renewer: %+v", res.Refusal)
	}
}

// TestTokenCountsRarely: even if many requests are refused, there is at most one count of the store in recountPause.
func TestTokenCountsRarely(t *testing.T) {
	counts := 0
	now := time.Unix(0, 0)
	q := newQuota(TokenLimits{Total: 100, PerOwner: 2, Rate: 1e6, Burst: 1e6, Renewer: 1},
		func() time.Time { return now }, quiet,
		func(context.Context, func(string)) error { counts++; return nil })
	// The tokens are not in the store, so a count forgets them.
	for range 1000 {
		now = now.Add(10 * time.Millisecond)
		_ = q.acquire(t.Context(), "mallory") // refused most of the time
	}
	if counts != 1 {
		t.Errorf("the store was counted %d times in 10 s", counts)
	}
	now = now.Add(recountPause)
	if err := q.acquire(t.Context(), "mallory"); err != nil || counts != 2 {
		t.Errorf("after the pause: %v, %d counts", err, counts)
	}
}

// TestInventedOwners: a proxy user that gets and cancels tokens of invented users does not fill the memory. Meanwhile,
// an owner that has used up its rate is not forgotten.
func TestInventedOwners(t *testing.T) {
	now := time.UnixMilli(1795442630957)
	q := newQuota(TokenLimits{Total: 1000, PerOwner: 100, Rate: 1, Burst: 10}, func() time.Time { return now }, nil,
		func(context.Context, func(string)) error { return nil })
	for range 10 {
		if err := q.acquire(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		q.release("mallory")
	}
	most := 0
	for i := range 60_000 {
		name := fmt.Sprint("invented", i)
		if err := q.acquire(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		q.release(name)
		now = now.Add(100 * time.Microsecond)
		most = max(most, len(q.owners))
		if i == 9000 {
			if err := q.tryAcquire("mallory"); err == nil {
				t.Error("mallory's rate was forgotten")
			}
		}
	}
	// The rates of the owners of the last second must be remembered: 10,000.
	if most > 2*10_000+sweepMin+1 {
		t.Errorf("%d owners were remembered at once", most)
	}
}

// countedQuota is a quota whose count of the store returns owners, and that runs beside if that is set.
type countedQuota struct {
	*quota
	now    time.Time
	counts int
	owners []string
	beside func()
	log    logtest.Buffer
}

func newCountedQuota(l TokenLimits) *countedQuota {
	c := &countedQuota{now: time.UnixMilli(1795442630957)}
	c.quota = newQuota(l, func() time.Time { return c.now }, slog.New(slog.NewTextHandler(&c.log, nil)),
		func(_ context.Context, fn func(string)) error {
			c.counts++
			for _, o := range c.owners {
				fn(o)
			}
			if c.beside != nil {
				c.beside()
			}
			return nil
		})
	return c
}

// TestTokenCountsOnDemand: after the first count, the store is counted again only when an owner would be refused, or
// when the count is older than recountAge.
func TestTokenCountsOnDemand(t *testing.T) {
	ctx := t.Context()
	c := newCountedQuota(TokenLimits{Total: 100, PerOwner: 10, Rate: 100, Burst: 100})
	for _, step := range []struct {
		name string
		wait time.Duration
		run  func() error
		want int // counts
	}{
		{"recount before the first count", 0, func() error { return c.recountIfOld(ctx) }, 0},
		{"first request", 0, func() error { return c.acquire(ctx, "alice") }, 1},
		{"request after the pause", time.Hour, func() error { return c.acquire(ctx, "alice") }, 1},
		{"recount of an old count", 0, func() error { return c.recountIfOld(ctx) }, 2},
		{"recount of a new count", 2 * recountPause, func() error { return c.recountIfOld(ctx) }, 2},
		{"recount of an old count again", recountAge, func() error { return c.recountIfOld(ctx) }, 3},
	} {
		c.now = c.now.Add(step.wait)
		if err := step.run(); err != nil || c.counts != step.want {
			t.Errorf("%s: %d counts, want %d; %v", step.name, c.counts, step.want, err)
		}
	}
}

// TestTokenIssuedDuringCount: a token that is issued while the store is counted is not lost.
func TestTokenIssuedDuringCount(t *testing.T) {
	c := newCountedQuota(TokenLimits{Total: 100, PerOwner: 10, Rate: 100, Burst: 100})
	c.owners = []string{"bob", "bob"}
	c.beside = func() {
		if err := c.tryAcquire("alice"); err != nil {
			t.Error(err)
		}
	}
	if err := c.ensureCounted(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if s := c.snapshot(); s.Total != 3 || s.BusiestOwner != 2 || c.quota.owners["alice"].tokens != 1 {
		t.Errorf("%+v, alice has %d", s, c.quota.owners["alice"].tokens)
	}
}

// TestTokenOwnersForgotten: a count forgets owners that have no tokens any more.
func TestTokenOwnersForgotten(t *testing.T) {
	c := newCountedQuota(TokenLimits{Total: 100, PerOwner: 10, Rate: 100, Burst: 100})
	c.owners = []string{"alice", "bob"}
	for _, want := range []int{2, 1} {
		if err := c.ensureCounted(t.Context(), true); err != nil || len(c.quota.owners) != want {
			t.Errorf("%d owners, want %d; %v", len(c.quota.owners), want, err)
		}
		c.owners = c.owners[1:]
		c.now = c.now.Add(recountPause)
	}
}

// TestTokensReleased: only tokens that are counted are released.
func TestTokensReleased(t *testing.T) {
	c := newCountedQuota(TokenLimits{Total: 100, PerOwner: 10, Rate: 100, Burst: 100})
	if err := c.acquire(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nobody", "alice", "alice"} {
		c.release(name)
	}
	if total := c.snapshot().Total; total != 0 {
		t.Errorf("%d tokens", total)
	}
}

// TestTokenRefusalFigures: refusals are counted by their cause, and logged at most once in refusalLogPause.
func TestTokenRefusalFigures(t *testing.T) {
	c := newCountedQuota(TokenLimits{Total: 8, PerOwner: 2, Rate: 100, Burst: 100})
	c.owners = []string{"alice", "alice"}
	refused := func(name string, owner, total int64, lines int) {
		t.Helper()
		if err := c.acquire(t.Context(), name); err == nil {
			t.Errorf("%s gets a token", name)
		}
		s := c.snapshot()
		if s.RefusedOwner != owner || s.RefusedTotal != total || s.LastRefusedByFull.IsZero() != (total == 0) {
			t.Errorf("%s is refused: %+v", name, s)
		}
		if got := strings.Count(c.log.String(), "a delegation token was refused"); got != lines {
			t.Errorf("%s is refused: %d lines, want %d", name, got, lines)
		}
	}
	refused("alice", 1, 0, 1)
	refused("alice", 2, 0, 1)
	c.now = c.now.Add(refusalLogPause)
	refused("alice", 3, 0, 2)
	c.owners = []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	c.now = c.now.Add(recountPause)
	refused("alice", 3, 1, 3)
}
