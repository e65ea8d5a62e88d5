package hsm_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

// countingToken is a manyToken that counts calls. It can fail searches, and have another key for a label.
type countingToken struct {
	*manyToken
	searches, lists, values atomic.Int32
	failed                  error  // of searches
	wrong                   string // label
}

func (c *countingToken) FindLabel(ctx context.Context, label string) ([]pkcs11.KeyInfo, error) {
	if c.searches.Add(1); c.failed != nil {
		return nil, c.failed
	}
	return c.manyToken.FindLabel(ctx, label)
}

func (c *countingToken) List(ctx context.Context) ([]pkcs11.KeyInfo, error) {
	c.lists.Add(1)
	return c.manyToken.List(ctx)
}

func (c *countingToken) Prove(ctx context.Context, id []byte, label string, check []byte) error {
	if c.values.Add(1); label == c.wrong {
		return hsm.ErrMismatch
	}
	return c.manyToken.Prove(ctx, id, label, check)
}

// setLost makes the token lose a version, or have all again if the label is "".
func (c *countingToken) setLost(label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = map[string]bool{label: true}
}

// openCounting opens a provider on a token with 20 keys of three versions.
func openCounting(t *testing.T) (*hsm.Provider, *countingToken, metastore.Store) {
	t.Helper()
	path, tok := filepath.Join(t.TempDir(), "claviger.db"), &countingToken{manyToken: &manyToken{keys: 20}}
	fillMany(t, path, tok.keys)
	s, err := sqlite.OpenNode(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(t.Context(), owner.Self("claviger kms", ""), false); err != nil {
		t.Fatal(err)
	}
	p, err := hsm.OpenOn(t.Context(), tok, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeMany(t)(p, s) })
	if err := p.CheckAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p, tok, s
}

// check makes a check, demands that it compares the whole store or not, and returns the numbers of its calls.
func (c *countingToken) check(t *testing.T, when string, check func(context.Context) error, whole bool) (searches,
	values int32) {
	t.Helper()
	c.searches.Store(0)
	c.lists.Store(0)
	c.values.Store(0)
	if err := check(t.Context()); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	if n := c.lists.Load(); (n > 0) != whole {
		t.Errorf("%s: all keys of the token were listed %d times, want it: %t", when, n, whole)
	}
	return c.searches.Load(), c.values.Load()
}

// TestSampleIsSmall: a check searches a few versions and compares a few check values. Before a step these are the
// newest versions of eight keys, and three values.
func TestSampleIsSmall(t *testing.T) {
	p, tok, _ := openCounting(t)
	if searches, values := tok.check(t, "a step", p.CheckStep, false); searches != 8 || values != 3 {
		t.Errorf("a step: %d searches, %d values, want 8 and 3", searches, values)
	}
	if searches, values := tok.check(t, "a periodic check", p.CheckNext, false); searches != 40 || values != 16 {
		t.Errorf("a periodic check: %d searches, %d values, want 40 and 16", searches, values)
	}
}

// TestSampleFindsChanges: the periodic check finds a version that the token has lost, or has again, also an old one,
// and a value that is wrong. What it knows, or what was given up, is no change.
func TestSampleFindsChanges(t *testing.T) {
	p, tok, s := openCounting(t)
	for _, label := range []string{"key000007@2", "key000007@0"} {
		tok.setLost(label)
		for range 100 { // an old version is taken at random
			if err := p.CheckNext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(p.LastHoldings().Lost) > 0 {
				break
			}
		}
		if lost := p.LastHoldings().Lost; !slices.Equal(lost, []string{label}) {
			t.Errorf("%s is lost, and the checks have found %q", label, lost)
		}
		if label == "key000007@2" { // the newest is in each sample
			tok.check(t, "a lost version that is known", p.CheckNext, false)
		}
		tok.setLost("")
		for range 100 {
			if err := p.CheckNext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(p.LastHoldings().Lost) == 0 {
				break
			}
		}
		if lost := p.LastHoldings().Lost; len(lost) != 0 {
			t.Errorf("%s is there again, and the checks still miss %q", label, lost)
		}
	}
	tok.setLost("key000003@2")
	given := `["0000000300000002"]`
	if err := s.SetSetting(t.Context(), "hsm.lost.1", given); err != nil {
		t.Fatal(err)
	}
	tok.check(t, "a version that was given up", p.CheckNext, false)
	tok.setLost("")
	tok.wrong = "key000005@2"
	for range 100 { // 16 of 40 values are compared
		tok.lists.Store(0)
		if err := p.CheckNext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p.WasWrong(tok.wrong) {
			break
		}
	}
	if !p.WasWrong(tok.wrong) || tok.lists.Load() == 0 {
		t.Errorf("the wrong value of %s was found: %t; then all keys were listed %d times", tok.wrong,
			p.WasWrong(tok.wrong), tok.lists.Load())
	}
}

// TestStepSample: a check before a step finds the loss of any key in time, because its sample is random.
func TestStepSample(t *testing.T) {
	p, tok, _ := openCounting(t)
	tok.setLost("key000019@2")
	for range 100 {
		if err := p.CheckStep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if lost := p.LastHoldings().Lost; !slices.Equal(lost, []string{"key000019@2"}) {
		t.Errorf("lost: %q", lost)
	}
}

// TestSampleFails: a search that fails is not a version that the token lacks, and the check fails.
func TestSampleFails(t *testing.T) {
	p, tok, _ := openCounting(t)
	tok.failed = errors.New("the token fails")
	for what, check := range map[string]func(context.Context) error{"a step": p.CheckStep,
		"a periodic check": p.CheckNext} {
		if err := check(t.Context()); !errors.Is(err, tok.failed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	tok.failed = nil
	if lost := p.LastHoldings().Lost; len(lost) != 0 {
		t.Errorf("lost: %q", lost)
	}
}
