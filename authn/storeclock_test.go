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

// TestClockOfOneNode: a node whose clock is wrong removes no token that others take, issues
// none that others refuse, and refuses none for good. Its tokens and those of a node whose
// clock is right are in one store, whose clock is right too.
func TestClockOfOneNode(t *testing.T) {
	const day = 24 * time.Hour
	for what, ahead := range map[string]time.Duration{"ahead": 40 * day, "behind": -40 * day,
		"ahead a little": 30 * time.Second, "right": 0} {
		inBubble(t, what, func(t *testing.T) {
			ctx := t.Context()
			now := time.Now() // by the store
			store := newMemoryTokens(func() time.Time { return now })
			node := func(ahead time.Duration) *Delegations {
				own := func() time.Time { return now.Add(ahead) }
				d, err := NewDelegations(DelegationConfig{KeyUpdate: day, MaxLife: 7 * day, Renewal: day,
					Scan:  time.Hour,
					Store: aheadTokens{store, &now, ahead}, Now: own})
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
			taken := func(when string) {
				t.Helper()
				for _, token := range []string{text, other} {
					if _, err := good.verify(ctx, token); err != nil {
						t.Errorf("%s the right node refuses: %v", when, err)
					}
				}
			}
			taken("at once")
			for range 2 {
				if err := wrong.scan(ctx); err != nil {
					t.Fatal(err)
				}
				if err := wrong.owners(ctx, func(string) {}); err != nil { // the first count after a start
					t.Fatal(err)
				}
				taken("after a removal by the wrong node")
			}
			if keys, err := store.MasterKeys(ctx); err != nil || len(keys) != 2 {
				t.Errorf("master keys %v, %v", keys, err)
			}
			now = now.Add(day / 2)
			later := func(err error) bool {
				return err != nil && refusalOf(err, Refusal{Kind: BadDelegation}).Kind == StoreAway
			}
			if _, err := wrong.verify(ctx, text); (ahead > day) != later(err) || ahead <= day && err != nil {
				t.Errorf("a good token at the wrong node: %v", err)
			}
			if _, err := wrong.renew(ctx, text, "yarn"); (ahead > day) != later(err) || ahead <= day && err != nil {
				t.Errorf("renewal of a good token at the wrong node: %v", err)
			}
			now = now.Add(day/2 + time.Minute)
			if _, err := good.verify(ctx, text); (err == nil) != (ahead < day) {
				t.Errorf("a day later, renewed at the wrong node: %v", err)
			}
			now = now.Add(10 * day)
			if _, err := good.verify(ctx, text); err == nil || later(err) ||
				!strings.Contains(err.Error(), "has expired") {
				t.Errorf("an expired token at the right node: %v", err)
			}
			time.Sleep(clocksHold)
			if err := good.scan(ctx); err != nil {
				t.Fatal(err)
			}
			if _, ok, err := store.Delegation(ctx, 1); ok || err != nil {
				t.Errorf("an expired token stays: %v", err)
			}
		})
	}
}

// inBubble runs a part of a test with a clock that moves only when all wait.
func inBubble(t *testing.T, name string, part func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, part) })
}

// aheadTokens is a store whose clock shows now, as a node sees it that is ahead of it.
type aheadTokens struct {
	metastore.Delegations
	now   *time.Time
	ahead time.Duration
}

func (a aheadTokens) Clocks(context.Context) (metastore.Clocks, error) {
	here := a.now.Add(a.ahead)
	return metastore.Compare(here, *a.now, here, "PostgreSQL's"), nil
}

// TestClocksAreComparedRarely: many requests at one time are one question.
func TestClocksAreComparedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := newStoreClock(countedClock{&asked}, time.Now)
		for range 100 {
			if _, err := c.latest(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if asked != 1 {
			t.Errorf("the store was asked %d times", asked)
		}
		time.Sleep(clocksHold)
		if err := c.sure(t.Context()); err != nil || asked != 2 {
			t.Errorf("later it was asked %d times, %v", asked, err)
		}
	})
}

// TestClockThatWasAhead: a host's clock was ahead once, and its store in a file has a time of
// then. Tokens live no longer for that, and one that has expired is refused for good.
func TestClockThatWasAhead(t *testing.T) {
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	const day = 24 * time.Hour
	now := time.Now()
	if err := store.Touch(t.Context(), []metastore.LastUse{{Version: "k@0", Last: now.Add(365 * day)}}); err != nil {
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
	_, err = d.verify(t.Context(), text)
	if err == nil || refusalOf(err, Refusal{Kind: BadDelegation}).Kind != BadDelegation {
		t.Errorf("a token that has expired: %v", err)
	}
}

type countedClock struct{ asked *int }

func (c countedClock) Clocks(context.Context) (metastore.Clocks, error) {
	*c.asked++
	now := time.Now()
	return metastore.Compare(now, now, now, "x"), nil
}
