package keyring

import (
	"context"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
)

// cache keeps values that were read from a provider, for a limited time. A hit takes one shard's read lock and
// allocates nothing; concurrent misses of one name share one reading. The cache is bounded: a full shard drops one of
// its older entries. Errors are never kept, so an absent name is read each time, as in Hadoop's CachingKeyProvider.
//
// A nil *cache keeps nothing.
type cache[V any] struct {
	ttl     time.Duration
	renewed bool // a hit restarts the ttl: "after access" rather than "after write"
	limit   int  // entries per shard
	seed    maphash.Seed
	now     func() time.Duration // since the cache was made
	shards  [cacheShards]shard[V]
}

const (
	cacheShards = 16
	// evictionSample is the number of entries of a full shard that are compared to find one to drop. Go's maps are
	// walked from a random place.
	evictionSample = 8
)

type shard[V any] struct {
	mu      sync.RWMutex
	entries map[string]*entry[V]
	loading map[string]*loading[V]
	_       [64]byte // puts the locks of two shards on different cache lines
}

type entry[V any] struct {
	value V
	stamp atomic.Int64 // cache.now when the ttl began
}

// loading is a reading from the provider that is under way.
type loading[V any] struct {
	done  chan struct{} // closed at the end; read the other fields after that
	value V
	err   error
	// gaveUp: err is about the reader (its context ended, or it panicked), not about the name. The callers that waited
	// read again.
	gaveUp bool
}

// readFunc reads the value of a name.
type readFunc[V any] func(ctx context.Context, name string) (V, error)

// newCache makes a cache of about size entries; nil if ttl <= 0.
func newCache[V any](ttl time.Duration, renewed bool, size int) *cache[V] {
	if ttl <= 0 {
		return nil
	}
	start := time.Now()
	c := &cache[V]{
		ttl: ttl, renewed: renewed, limit: max(1, size/cacheShards), seed: maphash.MakeSeed(),
		now: func() time.Duration { return time.Since(start) },
	}
	for i := range c.shards {
		c.shards[i].entries = map[string]*entry[V]{}
		c.shards[i].loading = map[string]*loading[V]{}
	}
	return c
}

func (c *cache[V]) shard(name string) *shard[V] {
	return &c.shards[maphash.String(c.seed, name)%cacheShards]
}

// get returns the value under the name, if the cache has one.
func (c *cache[V]) get(name string) (value V, ok bool) {
	if c == nil {
		return value, false
	}
	s := c.shard(name)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return c.lookup(s, name)
}

// lookup is get for a caller that holds the shard's lock, at least for reading.
func (c *cache[V]) lookup(s *shard[V], name string) (value V, ok bool) {
	e := s.entries[name]
	if e == nil {
		return value, false
	}
	now := int64(c.now())
	age := now - e.stamp.Load()
	if age >= int64(c.ttl) {
		return value, false
	}
	// The time of a busy entry is not updated at each hit, because all readers share its cache line.
	if c.renewed && age > int64(c.ttl/64) {
		e.stamp.Store(now)
	}
	return e.value, true
}

// put keeps value under the name.
func (c *cache[V]) put(name string, value V) {
	if c == nil {
		return
	}
	s := c.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.store(s, name, value)
}

// store is put for a caller that holds the shard's lock.
func (c *cache[V]) store(s *shard[V], name string, value V) {
	if _, there := s.entries[name]; !there && len(s.entries) >= c.limit {
		s.evict()
	}
	e := &entry[V]{value: value}
	e.stamp.Store(int64(c.now()))
	s.entries[strings.Clone(name)] = e // name may be a part of a long request
}

// evict drops the oldest of evictionSample entries.
func (s *shard[V]) evict() {
	var victim string
	var oldest int64
	seen := 0
	for name, e := range s.entries {
		if stamp := e.stamp.Load(); seen == 0 || stamp < oldest {
			victim, oldest = name, stamp
		}
		if seen++; seen == evictionSample {
			break
		}
	}
	delete(s.entries, victim)
}

// fetch returns the value under the name, or else calls read and keeps its value. Of several callers at a time one
// reads and the others wait, each within its own ctx. A value whose reading began before a drop of the name is not
// kept after the drop, and not given to callers that come after it.
func (c *cache[V]) fetch(ctx context.Context, name string, read readFunc[V]) (value V, err error) {
	if c == nil {
		return read(ctx, name)
	}
	s := c.shard(name)
	for {
		s.mu.Lock()
		if value, ok := c.lookup(s, name); ok {
			s.mu.Unlock()
			return value, nil
		}
		l := s.loading[name]
		if l == nil {
			l = &loading[V]{done: make(chan struct{}), gaveUp: true}
			s.loading[name] = l
			s.mu.Unlock()
			return c.load(ctx, s, name, l, read)
		}
		s.mu.Unlock()
		select {
		case <-l.done:
			if !l.gaveUp {
				return l.value, l.err
			}
		case <-ctx.Done():
			return value, claviger.E("keyring.cache", claviger.Unavailable, name, context.Cause(ctx))
		}
	}
}

// load reads, and passes the value to all callers that wait, even if read panics.
func (c *cache[V]) load(ctx context.Context, s *shard[V], name string, l *loading[V], read readFunc[V]) (V, error) {
	defer func() {
		s.mu.Lock()
		if s.loading[name] == l { // otherwise the name was dropped meanwhile
			delete(s.loading, name)
			if !l.gaveUp && l.err == nil {
				c.store(s, name, l.value)
			}
		}
		s.mu.Unlock()
		close(l.done)
	}()
	l.value, l.err = read(ctx, name)
	l.gaveUp = l.err != nil && ctx.Err() != nil
	return l.value, l.err
}

// empty reports whether the cache has no entry that could be used now.
func (c *cache[V]) empty() bool {
	if c == nil {
		return true
	}
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		for _, e := range s.entries {
			if int64(c.now())-e.stamp.Load() < int64(c.ttl) {
				s.mu.RUnlock()
				return false
			}
		}
		s.mu.RUnlock()
	}
	return true
}

// drop removes the name.
func (c *cache[V]) drop(name string) {
	if c == nil {
		return
	}
	s := c.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, name)
	delete(s.loading, name)
}

// dropAll removes each name for which remove returns true. It visits all names, so it is only for management
// operations.
func (c *cache[V]) dropAll(remove func(name string) bool) {
	if c == nil {
		return
	}
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for name := range s.entries {
			if remove(name) {
				delete(s.entries, name)
			}
		}
		for name := range s.loading {
			if remove(name) {
				delete(s.loading, name)
			}
		}
		s.mu.Unlock()
	}
}
