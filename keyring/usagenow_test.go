package keyring

import (
	"context"
	"slices"
	"testing"
	"time"

	"claviger/metastore"
)

// TestFirstUseIsWrittenAtOnce: when the answer is there, the store knows that the
// source was needed. Later uses follow by the clock.
func TestFirstUseIsWrittenAtOnce(t *testing.T) {
	store := openStore(t)
	l, far := withSource(t, func(c *Config) { c.Usage = store }, "k")
	es, _ := made(t, far.blocks, "k@0", 3)
	want := func(list ...string) {
		t.Helper()
		uses, err := store.Uses(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := counts(uses); !slices.Equal(got, list) {
			t.Errorf("in the store %q, want %q", got, list)
		}
	}
	if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0]); err != nil {
		t.Fatal(err)
	}
	want(farURI + " k@0 decrypt 1")
	if _, err := l.ReencryptBatch(t.Context(), caller("nn"), "k", es); err != nil {
		t.Fatal(err)
	}
	want(farURI+" k@0 decrypt 1", farURI+" k@0 reencrypt 3")
	if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[1]); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		uses, err := store.Uses(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(counts(uses), farURI+" k@0 decrypt 2") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a later use is not written: %q", counts(uses))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestUseAfterAPauseIsWrittenAtOnce: what was not used for a while, and then is, was needed:
// who ends a migration at once, or after a SIGKILL, must see it.
func TestUseAfterAPauseIsWrittenAtOnce(t *testing.T) {
	store := openStore(t)
	l, far := withSource(t, func(c *Config) { c.Usage = store }, "k")
	es, _ := made(t, far.blocks, "k@0", 1)
	for i := range 4 {
		if i > 0 {
			time.Sleep(flushEvery + 20*time.Millisecond) // the next use is a first one again
		}
		before := time.Now().Truncate(time.Millisecond)
		if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0]); err != nil {
			t.Fatal(err)
		}
		uses, err := store.Uses(t.Context())
		if err != nil || len(uses) != 1 || uses[0].Count != int64(i+1) || uses[0].Last.Before(before) {
			t.Errorf("after use %d, at %v, the store has %+v, %v", i+1, before, uses, err)
		}
	}
}

// hungStore answers when it is let go.
type hungStore struct {
	metastore.Usage
	release chan struct{}
}

func (s *hungStore) AddUse(ctx context.Context, uses []metastore.Use) error {
	select {
	case <-s.release:
		return s.Usage.AddUse(ctx, uses)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestHungStoreDelaysLittle: a store that hangs holds an answer up for a bounded
// time, and loses no count.
func TestHungStoreDelaysLittle(t *testing.T) {
	store := &hungStore{Usage: openStore(t), release: make(chan struct{})}
	l, far := withSource(t, func(c *Config) { c.Usage = store }, "k")
	es, _ := made(t, far.blocks, "k@0", 1)
	begun := time.Now()
	if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0]); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > firstUseWait+5*time.Second {
		t.Errorf("the answer took %v", took)
	}
	close(store.release)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	uses, err := store.Uses(t.Context())
	if err != nil || !slices.Equal(counts(uses), []string{farURI + " k@0 decrypt 1"}) {
		t.Errorf("%q, %v", counts(uses), err)
	}
}
