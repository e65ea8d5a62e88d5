package authn

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger/metastore"
	"claviger/metastore/sqlite"
)

// TestClockOfOneNode: a node whose clock is wrong removes no token that another node accepts, issues no token that
// another node refuses, and does not say that a good token has expired. Two nodes share a store; the clocks of the
// store and of the good node are right.
func TestClockOfOneNode(t *testing.T) {
	const day = 24 * time.Hour
	for name, ahead := range map[string]time.Duration{"ahead": 40 * day, "behind": -40 * day,
		"ahead a little": 30 * time.Second, "right": 0} {
		inBubble(t, name, func(t *testing.T) {
			ctx := t.Context()
			now := time.Now() // of the store
			store := newMemoryTokens(func() time.Time { return now })
			node := func(ahead time.Duration) *Delegations {
				own := func() time.Time { return now.Add(ahead) }
				d, err := NewDelegations(DelegationConfig{KeyUpdate: day, MaxLife: 7 * day, Renewal: day,
					Scan: time.Hour, Store: aheadTokens{store, &now, ahead}, Now: own})
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			good, wrong := node(0), node(ahead)
			issue := func(d *Delegations) string {
				t.Helper()
				text, err := d.issue(ctx, "alice", "yarn", "", "")
				if err != nil {
					t.Fatal(err)
				}
				return text
			}
			text, other := issue(good), issue(wrong)
			checkAccepted := func(when string) {
				t.Helper()
				for _, token := range []string{text, other} {
					if _, _, err := good.verify(ctx, token); err != nil {
						t.Errorf("%s, the good node refuses a token: %v", when, err)
					}
				}
			}
			checkAccepted("at first")
			for range 2 {
				if err := wrong.scan(ctx); err != nil {
					t.Fatal(err)
				}
				if err := wrong.owners(ctx, func(string) {}); err != nil { // the first count after a start
					t.Fatal(err)
				}
				checkAccepted("after a removal by the wrong node")
			}
			if keys, err := store.MasterKeys(ctx); err != nil || len(keys) != 2 {
				t.Errorf("master keys %v, %v", keys, err)
			}
			now = now.Add(day / 2)
			retryable := func(err error) bool {
				return err != nil && refusalOf(err, Refusal{Kind: BadDelegation}).Kind == StoreUnavailable
			}
			if _, _, err := wrong.verify(ctx, text); (ahead > day) != retryable(err) || ahead <= day && err != nil {
				t.Errorf("the wrong node verifies a good token: %v", err)
			}
			if _, err := wrong.renew(ctx, text, "yarn"); (ahead > day) != retryable(err) || ahead <= day && err != nil {
				t.Errorf("the wrong node renews a good token: %v", err)
			}
			now = now.Add(day/2 + time.Minute)
			if _, _, err := good.verify(ctx, text); (err == nil) != (ahead < day) {
				t.Errorf("a day later, renewed by the wrong node: %v", err)
			}
			now = now.Add(10 * day)
			if _, _, err := good.verify(ctx, text); err == nil || retryable(err) ||
				!strings.Contains(err.Error(), "has expired") {
				t.Errorf("the good node verifies an expired token: %v", err)
			}
			time.Sleep(clocksTTL)
			if err := good.scan(ctx); err != nil {
				t.Fatal(err)
			}
			if _, ok, err := store.Delegation(ctx, 1); ok || err != nil {
				t.Errorf("an expired token was not removed: %v", err)
			}
		})
	}
}

// inBubble runs a part of a test with a clock that moves only when all goroutines wait.
func inBubble(t *testing.T, name string, part func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, part) })
}

// aheadTokens is a store whose clock shows now, used by a node whose clock is ahead of now.
type aheadTokens struct {
	metastore.Delegations
	now   *time.Time
	ahead time.Duration
}

func (a aheadTokens) Clocks(context.Context) (metastore.Clocks, error) {
	here := a.now.Add(a.ahead)
	return metastore.Compare(here, *a.now, here, "PostgreSQL's"), nil
}

// TestClocksAreComparedRarely: many requests within clocksTTL cause one comparison.
func TestClocksAreComparedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		c := newStoreClock(countedClock{&calls}, time.Now)
		for range 100 {
			if _, err := c.laterClock(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if calls != 1 {
			t.Errorf("%d comparisons, want 1", calls)
		}
		time.Sleep(clocksTTL)
		if err := c.checkAgreement(t.Context()); err != nil || calls != 2 {
			t.Errorf("after clocksTTL: %d comparisons, want 2; %v", calls, err)
		}
	})
}

// TestClockThatWasAhead: the host's clock was once ahead, and the store, a file, has a time from then. The store must
// not lengthen the life of tokens, and an expired token is refused as expired.
func TestClockThatWasAhead(t *testing.T) {
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	const day = 24 * time.Hour
	now := time.Now()
	uses := []metastore.LastUse{{Version: "k@0", Last: now.Add(365 * day)}}
	if err := store.RecordUses(t.Context(), uses); err != nil {
		t.Fatal(err)
	}
	d, err := NewDelegations(DelegationConfig{KeyUpdate: day, MaxLife: 7 * day, Renewal: day, Scan: time.Hour,
		Store: store, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	text, err := d.issue(t.Context(), "alice", "yarn", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if until, err := d.renew(t.Context(), text, "yarn"); err != nil || until.Sub(now) > day {
		t.Errorf("renewed until %v (%v)", until, err)
	}
	now = now.Add(8 * day)
	_, _, err = d.verify(t.Context(), text)
	if err == nil || refusalOf(err, Refusal{Kind: BadDelegation}).Kind != BadDelegation {
		t.Errorf("a token that has expired: %v", err)
	}
}

type countedClock struct{ calls *int }

func (c countedClock) Clocks(context.Context) (metastore.Clocks, error) {
	*c.calls++
	now := time.Now()
	return metastore.Compare(now, now, now, "x"), nil
}
