package hsm_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/hsm"
)

// flood sends requests of a user for names of keys, or for versions (what is "name" or "version"). None of them ever
// existed. It returns how often the token was searched.
func (b *testSite) flood(t *testing.T, p *hsm.Provider, user, what string, names int) (searches int) {
	t.Helper()
	ctx := provider.WithCaller(t.Context(), user)
	b.meter.Reset()
	var group sync.WaitGroup
	for part := range 4 {
		group.Go(func() {
			for i := range names / 4 {
				name := fmt.Sprintf("%s%d-%d", user, part, i)
				var err error
				want := claviger.KeyNotFound
				switch what {
				case "name":
					_, err = p.Current(ctx, name)
				case "version":
					want = claviger.VersionNotFound
					_, err = p.Version(ctx, name+"@3")
				}
				if !claviger.Is(err, want) {
					t.Errorf("%s %s: %v", what, name, err)
					return
				}
			}
		})
	}
	group.Wait()
	return b.meter.Count("FindObjectsInit")
}

// TestSearchesAreLimited: a user who requests names and versions that never existed causes only a few searches of the
// token, and other users still get searches. Lost keys that a survey found are reported as before.
func TestSearchesAreLimited(t *testing.T) {
	b := newSite(t)
	b.maxSearches = "16"
	b.create(t, "k")
	b.create(t, "gone")
	b.generate(t, "other@7")
	counted := &countingStore{}
	b.around = func(s metastore.Store) metastore.Store { counted.Store = s; return counted }
	p := b.mustOpen(t)

	flood := func(user, what string, names int) (searches int) {
		t.Helper()
		return b.flood(t, p, user, what, names)
	}
	if n := flood("mallory", "name", 2000); n < 4 || n > 8 {
		t.Errorf("%d searches for 2000 names, want 8", n)
	}
	if n := flood("mallory", "version", 2000); n != 0 {
		t.Errorf("%d more searches for 2000 versions", n)
	}
	if err := p.CheckSearches(t.Context()); err != nil {
		t.Errorf("searches remain for others: %v", err)
	}
	if n := flood("alice", "version", 8); n < 2 || n > 4 {
		t.Errorf("%d searches for alice, want 4", n)
	}
	// For a version of a key in use, "not found" is never answered without a search.
	mallory := provider.WithCaller(t.Context(), "mallory")
	b.meter.Reset()
	if _, err := p.Version(mallory, "gone@9"); !claviger.Is(err, claviger.VersionNotFound) ||
		b.meter.Count("FindObjectsInit") != 1 {
		t.Errorf("a key in use at the last survey: %v, %d searches", err, b.meter.Count("FindObjectsInit"))
	}
	wantLost(t, p, "other", "other@7")
	create(t, p, "new") // it was made after the last survey
	if _, err := p.Version(mallory, "new@9"); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), hsm.PropertyMaxSearches) {
		t.Errorf("a number that the key has not had yet: %v", err)
	}
	if v, err := p.Version(mallory, "new@0"); err != nil || v.Key != "new" {
		t.Errorf("a version of the store: %+v, %v", v, err)
	}
	for _, user := range []string{"bob", "carol", "dave", "erin"} {
		flood(user, "name", 8)
	}
	f := p.Searches()
	if f.Limit != 16 || f.Used > 16 || f.Used < 15 || f.BusiestCaller > 8 || f.Refused < 3000 {
		t.Errorf("statistics: %+v", f)
	}
	if err := p.CheckSearches(t.Context()); err == nil || !strings.Contains(err.Error(), hsm.PropertyMaxSearches) {
		t.Errorf("no search remains for a new user: %v", err)
	}

	// Only the first request for a version of a deleted key reads the store.
	if err := p.Delete(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	counted.reset()
	for range 20 {
		if _, err := p.Version(mallory, "new@0"); !claviger.Is(err, claviger.VersionNotFound) {
			t.Errorf("a number that the store gave: %v", err)
		}
	}
	if n := counted.reset(); n != 1 {
		t.Errorf("the store was read %d times for the next number", n)
	}
	mustClose(t, p)
}

// TestBadSearchLimit: a limit that is not a number in the allowed range is refused at the start.
func TestBadSearchLimit(t *testing.T) {
	b := newSite(t)
	for _, bad := range []string{"0", "-1", "many", "1000001"} {
		b.maxSearches = bad
		if _, err := b.open(t.Context()); !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), hsm.PropertyMaxSearches) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// countingStore is a store that counts calls of NextNumber.
type countingStore struct {
	metastore.Store
	mu    sync.Mutex
	calls int
}

func (c *countingStore) NextNumber(ctx context.Context, key string) (int, error) {
	c.mu.Lock()
	c.calls++
	c.mu.Unlock()
	return c.Store.NextNumber(ctx, key)
}

func (c *countingStore) reset() (calls int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls, c.calls = c.calls, 0
	return calls
}
