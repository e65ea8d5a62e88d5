package keyring

import (
	"context"
	"slices"
	"testing"
	"time"

	"claviger/metastore"
)

// TestFirstUseIsWrittenAtOnce: the first decrypt and the first re-encryption with a version of a source are in the
// store before the answer is sent. Later uses are written at intervals.
func TestFirstUseIsWrittenAtOnce(t *testing.T) {
	store := openStore(t)
	l, far := withSource(t, func(c *Config) { c.Usage = store }, "k")
	es, _ := newEDEKs(t, far.blocks, "k@0", 3)
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

// TestUseAfterAPauseIsWrittenAtOnce: the first use after a pause is written before the answer is sent. An operator who
// ends the migration right after that, even after a SIGKILL of the server, must see the use.
func TestUseAfterAPauseIsWrittenAtOnce(t *testing.T) {
	store := openStore(t)
	l, far := withSource(t, func(c *Config) { c.Usage = store }, "k")
	es, _ := newEDEKs(t, far.blocks, "k@0", 1)
	for i := range 4 {
		if i > 0 {
			time.Sleep(flushEvery + 20*time.Millisecond) // so that the next use counts as a first one
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

// hungStore is a store that answers only when the test releases it.
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

// TestHungStoreDelaysLittle: a store that does not answer delays a request for a limited time, and no use is lost.
func TestHungStoreDelaysLittle(t *testing.T) {
	store := &hungStore{Usage: openStore(t), release: make(chan struct{})}
	l, far := withSource(t, func(c *Config) { c.Usage = store }, "k")
	es, _ := newEDEKs(t, far.blocks, "k@0", 1)
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
