package keyring

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
)

// clock is a cache's clock that a test sets.
type clock struct{ now atomic.Int64 }

func (c *clock) set(d time.Duration) { c.now.Store(int64(d)) }

// clockedCache makes a cache with a clock that the test sets. If renewed, a hit restarts the ttl.
func clockedCache(ttl time.Duration, renewed bool, size int) (*cache[string], *clock) {
	c := newCache[string](ttl, renewed, size)
	k := &clock{}
	c.now = func() time.Duration { return time.Duration(k.now.Load()) }
	return c, k
}

// TestCacheExpiry: a value expires when its ttl has passed since it was stored, or since its last use if uses renew it.
func TestCacheExpiry(t *testing.T) {
	for _, renewed := range []bool{false, true} {
		c, clock := clockedCache(time.Minute, renewed, 100)
		c.put("k", "v")
		for i := 1; i <= 3; i++ {
			clock.set(time.Duration(i) * 40 * time.Second)
			_, ok := c.get("k")
			if want := renewed || i == 1; ok != want {
				t.Errorf("renewed %t, %d s: remembered %t", renewed, i*40, ok)
			}
		}
		clock.set(time.Hour)
		if _, ok := c.get("k"); ok {
			t.Errorf("renewed %t: remembered after an hour without use", renewed)
		}
	}
}

// TestDisabledCacheKeepsNothing: a cache with a ttl of 0 or less, and a nil cache, keep nothing and can be called.
func TestDisabledCacheKeepsNothing(t *testing.T) {
	for _, c := range []*cache[string]{nil, newCache[string](0, true, 10), newCache[string](-1, false, 10)} {
		c.put("k", "v")
		if _, ok := c.get("k"); ok {
			t.Error("remembered")
		}
		calls := 0
		for range 3 {
			v, err := c.fetch(t.Context(), "k", func(context.Context, string) (string, error) {
				calls++
				return "v", nil
			})
			if v != "v" || err != nil {
				t.Error(v, err)
			}
		}
		if calls != 3 {
			t.Errorf("%d calls, want 3", calls)
		}
		c.drop("k")
		c.dropAll(func(string) bool { return true })
	}
}

// TestCacheIsBounded: a cache never has more entries than its size, and does not drop entries long before it is full.
func TestCacheIsBounded(t *testing.T) {
	c, clock := clockedCache(time.Hour, true, 160)
	for i := range 10_000 {
		clock.set(time.Duration(i) * time.Millisecond)
		c.put(fmt.Sprint(i), "v")
		// A name that is used all the time is almost always kept; the cache samples the names that it drops.
		c.put("used", "v")
	}
	n := 0
	for i := range c.shards {
		if got := len(c.shards[i].entries); got > 10 {
			t.Errorf("shard %d has %d entries", i, got)
		}
		n += len(c.shards[i].entries)
	}
	if n < 80 {
		t.Errorf("only %d entries are left", n)
	}
	if _, ok := c.get("used"); !ok {
		t.Error("the newest entry was dropped")
	}
}

// TestCacheErrorsAreNotCached: after an error, the next fetch reads again.
func TestCacheErrorsAreNotCached(t *testing.T) {
	c, _ := clockedCache(time.Hour, true, 100)
	calls := 0
	for range 3 {
		_, err := c.fetch(t.Context(), "k", func(_ context.Context, name string) (string, error) {
			calls++
			return "", claviger.E("test", claviger.KeyNotFound, name, nil)
		})
		wantKind(t, err, claviger.KeyNotFound)
	}
	if calls != 3 {
		t.Errorf("%d calls, want 3", calls)
	}
	for i := range c.shards {
		if len(c.shards[i].loading) != 0 {
			t.Error("a call is still listed as loading")
		}
	}
}

// TestCacheFetchesOnce: of many callers that miss the same name at the same time, one fetches it for all.
func TestCacheFetchesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := clockedCache(time.Hour, true, 100)
		var calls atomic.Int64
		fetch := func(context.Context, string) (string, error) {
			calls.Add(1)
			time.Sleep(time.Second)
			return "v", nil
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if v, err := c.fetch(t.Context(), "k", fetch); v != "v" || err != nil {
					t.Error(v, err)
				}
			})
		}
		wg.Wait()
		if calls.Load() != 1 {
			t.Errorf("%d calls, want 1", calls.Load())
		}
	})
}

// TestCacheCallerGivesUp: a caller whose context ends gets the error at once, and the others still get the answer.
func TestCacheCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := clockedCache(time.Hour, true, 100)
		fetch := func(ctx context.Context, _ string) (string, error) {
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(time.Minute):
				return "v", nil
			}
		}
		first, cancelFirst := context.WithCancel(t.Context())
		waiting, cancelWaiting := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.fetch(first, "k", fetch); !errors.Is(err, context.Canceled) {
				t.Errorf("the caller that fetches: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			_, err := c.fetch(waiting, "k", fetch)
			wantKind(t, err, claviger.Unavailable)
		})
		for range 5 {
			wg.Go(func() {
				if v, err := c.fetch(t.Context(), "k", fetch); v != "v" || err != nil {
					t.Errorf("a caller that waited: %q, %v", v, err)
				}
			})
		}
		synctest.Wait()
		cancelWaiting()
		synctest.Wait()
		cancelFirst()
		wg.Wait()
	})
}

// TestCacheFetchPanics: a panic of a fetch reaches the caller that fetches; a caller that waited for it fetches again.
func TestCacheFetchPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := clockedCache(time.Hour, true, 100)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_, _ = c.fetch(t.Context(), "k", func(context.Context, string) (string, error) {
				time.Sleep(time.Second)
				panic("provider")
			})
		})
		synctest.Wait()
		if v, err := c.fetch(t.Context(), "k", func(context.Context, string) (string, error) {
			return "v", nil
		}); v != "v" || err != nil {
			t.Error(v, err)
		}
		wg.Wait()
	})
}

// TestCacheDropWhileFetching: if a name is dropped while it is fetched, the answer is not cached and is not given to
// callers that come after the drop.
func TestCacheDropWhileFetching(t *testing.T) {
	for name, drop := range map[string]func(*cache[string]){
		"drop":    func(c *cache[string]) { c.drop("k") },
		"dropAll": func(c *cache[string]) { c.dropAll(func(name string) bool { return name == "k" }) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := clockedCache(time.Hour, true, 100)
				var wg sync.WaitGroup
				wg.Go(func() {
					v, err := c.fetch(t.Context(), "k", func(context.Context, string) (string, error) {
						time.Sleep(time.Second)
						return "old", nil
					})
					if v != "old" || err != nil {
						t.Error(v, err)
					}
				})
				synctest.Wait() // the fetch before the drop is in progress
				drop(c)
				v, err := c.fetch(t.Context(), "k", func(context.Context, string) (string, error) { return "new", nil })
				if v != "new" || err != nil {
					t.Errorf("after the drop: %q, %v", v, err)
				}
				wg.Wait()
				if v, ok := c.get("k"); !ok || v != "new" {
					t.Errorf("remembered: %q, %t", v, ok)
				}
			})
		})
	}
}

// TestCacheHitAllocatesNothing: a hit makes no allocation.
func TestCacheHitAllocatesNothing(t *testing.T) {
	c, _ := clockedCache(time.Hour, true, 100)
	c.put("k", "v")
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := c.get("k"); !ok {
			t.Fatal("not remembered")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestCachingOfTheRing counts the Ring's calls of the primary, with and without a cache. After a roll or a deletion the
// cache has no old answer.
func TestCachingOfTheRing(t *testing.T) {
	for _, enabled := range []bool{true, false} {
		t.Run(fmt.Sprintf("enabled %t", enabled), func(t *testing.T) {
			l := newTestRing(t, func(c *Config) { c.CacheEnable = enabled })
			create(t, l.primary, "k")
			u := caller("u")
			for range 5 {
				if v, err := l.Version(t.Context(), u, "k@0"); err != nil || v == nil {
					t.Fatal(v, err)
				}
				if v, err := l.Current(t.Context(), u, "k"); err != nil || v == nil {
					t.Fatal(v, err)
				}
				if m, err := l.Metadata(t.Context(), u, "k"); err != nil || m == nil {
					t.Fatal(m, err)
				}
				// "Not found" is not cached.
				if v, err := l.Version(t.Context(), u, "k@1"); err != nil || v != nil {
					t.Fatal(v, err)
				}
			}
			want := [3]int64{1 + 5, 1, 1}
			if !enabled {
				want = [3]int64{5 + 5, 5, 5}
			}
			if got := [3]int64{l.primary.versions.Load(), l.primary.currents.Load(),
				l.primary.metadata.Load()}; got != want {
				t.Errorf("the primary got calls for %v versions, currents, metadata; want %v", got, want)
			}
			if v, err := l.Roll(t.Context(), u, "k", nil); err != nil || v.Name != "k@1" {
				t.Fatal(v, err)
			}
			if v, err := l.Version(t.Context(), u, "k@1"); err != nil || v == nil {
				t.Errorf("the new version is not seen: %v", err)
			}
			if err := l.Delete(t.Context(), u, "k"); err != nil {
				t.Fatal(err)
			}
			if v, err := l.Version(t.Context(), u, "k@0"); err != nil || v != nil {
				t.Errorf("a version of a deleted key: %v, %v", v, err)
			}
			if v, err := l.Current(t.Context(), u, "k"); err != nil || v != nil {
				t.Errorf("current version of a deleted key: %v, %v", v, err)
			}
			if m, err := l.Metadata(t.Context(), u, "k"); err != nil || m != nil {
				t.Errorf("metadata of a deleted key: %v, %v", m, err)
			}
		})
	}
}

// TestCacheDropsTheOldest: of the entries that a full shard compares, the oldest is dropped.
func TestCacheDropsTheOldest(t *testing.T) {
	for range 20 { // the iteration over a map begins at a random entry
		s := shard[string]{entries: map[string]*entry[string]{}}
		for i := range evictionSample {
			e := &entry[string]{}
			e.stamp.Store(int64((i + 3) % evictionSample))
			s.entries[fmt.Sprint(i)] = e
		}
		s.evict()
		if oldest := fmt.Sprint(evictionSample - 3); s.entries[oldest] != nil || len(s.entries) != evictionSample-1 {
			t.Fatalf("%d entries are left; the oldest, which should be gone: %v", len(s.entries), s.entries[oldest])
		}
	}
}

// TestCacheTTLBeginsWhenAValueIsStored: the ttl of a value begins when it is stored, not when the cache is made. The
// method empty does not count an expired value.
func TestCacheTTLBeginsWhenAValueIsStored(t *testing.T) {
	c, clock := clockedCache(time.Minute, false, 100)
	if !c.empty() || !(*cache[string])(nil).empty() {
		t.Error("a new cache has an entry")
	}
	clock.set(time.Hour)
	c.put("k", "v")
	if _, ok := c.get("k"); !ok || c.empty() {
		t.Error("a value was not kept")
	}
	clock.set(time.Hour + time.Minute)
	if !c.empty() {
		t.Error("empty counts a value that has expired")
	}
}

// TestCacheSharesTheError: all callers that wait for a fetch get its error. A value that a fetch returns although its
// own context has ended is kept.
func TestCacheSharesTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := clockedCache(time.Hour, true, 100)
		var fetches atomic.Int64
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				_, err := c.fetch(t.Context(), "k", func(context.Context, string) (string, error) {
					fetches.Add(1)
					time.Sleep(time.Second)
					return "", errInjected
				})
				if !errors.Is(err, errInjected) {
					t.Errorf("a caller got %v", err)
				}
			})
		}
		wg.Wait()
		if n := fetches.Load(); n != 1 {
			t.Errorf("%d fetches", n)
		}
		ended, cancel := context.WithCancel(t.Context())
		_, err := c.fetch(ended, "k", func(context.Context, string) (string, error) {
			cancel()
			return "v", nil
		})
		if v, ok := c.get("k"); !ok || v != "v" || err != nil {
			t.Errorf("a value that was read as the context ended: %q, %t, %v", v, ok, err)
		}
	})
}

// TestCacheKeepsNames: the cache holds the names in requests, and not the requests, which may be long.
func TestCacheKeepsNames(t *testing.T) {
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc) //nolint:gosec // far below the limit
	}
	const names, length = 100, 60 << 10
	c := newCache[string](time.Hour, false, 10_000)
	before := heap()
	for i := range names {
		c.put((strings.Repeat("x", length) + fmt.Sprint("name", i))[length:], "v")
	}
	if grown := heap() - before; grown > names*length/10 {
		t.Errorf("the cache of %d names has %d bytes", names, grown)
	}
	if _, ok := c.get("name7"); !ok {
		t.Error("a name is forgotten")
	}
}
