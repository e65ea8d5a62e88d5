package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
)

const (
	// probeKeys is how many versions a probe tries until one works: one key that is
	// missing or shut does not make the token useless.
	probeKeys = 3
	// together is how close in time a success and a failure must be for the token to be
	// called alive: then it is the key that fails.
	together = time.Second
	// failingKept is for how long a version is named after its last failure, and
	// failingAtMost how many are remembered.
	failingKept   = 10 * time.Minute
	failingAtMost = 1000
)

// Seen is one encryption.
type Seen struct {
	At   time.Time
	Took time.Duration
	Err  error
}

// seen is what encryptions for requests saw last. A success is three atomic stores.
type seen struct {
	at, took atomic.Int64 // of the last success: since start, and how long it took
	last     atomic.Pointer[entry]
	failed   atomic.Pointer[Seen]

	failing atomic.Int32 // how many versions are in failures
	mu      sync.Mutex
	// failures are the last ones of versions that have not encrypted since.
	failures map[string]Seen
}

// start is the moment from which successes are timed.
var start = time.Now()

// worked notes that an encryption which began then went well.
func (s *seen) worked(e *entry, began time.Duration) {
	now := time.Since(start)
	s.took.Store(int64(now - began))
	s.at.Store(int64(now))
	if s.last.Load() != e { // else every core would write one cache line
		s.last.Store(e)
	}
	if s.failing.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.failures, e.name)
	s.failing.Store(int32(len(s.failures))) //nolint:gosec // at most failingAtMost
}

// broke notes that one failed, unless that tells of the caller or of a version that
// does not exist.
func (s *seen) broke(ctx context.Context, version string, began time.Duration, err error) {
	if claviger.Is(err, claviger.VersionNotFound) || claviger.Is(err, claviger.Closed) ||
		errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	f := Seen{At: time.Now(), Took: time.Since(start) - began, Err: err}
	if !unfit(err) { // that the token lacks a key, CheckKeys tells
		s.failed.Store(&f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures == nil {
		s.failures = map[string]Seen{}
	}
	if _, there := s.failures[version]; there || len(s.failures) < failingAtMost {
		s.failures[version] = f
	}
	s.failing.Store(int32(len(s.failures))) //nolint:gosec // at most failingAtMost
}

// Last is what requests saw last of the token: an encryption that went well, or one that
// failed where none has gone well about that time. ok is false where there was none.
func (p *Provider) Last() (s Seen, ok bool) {
	if at := p.seen.at.Load(); at != 0 {
		s, ok = Seen{At: start.Add(time.Duration(at)), Took: time.Duration(p.seen.took.Load())}, true
	}
	if f := p.seen.failed.Load(); f != nil && (!ok || f.At.After(s.At.Add(together))) {
		return *f, true
	}
	return s, ok
}

// CheckEncryptions names the versions whose last encryption failed, for whatever reason,
// with the newest of them in words.
func (p *Provider) CheckEncryptions(context.Context) error {
	p.seen.mu.Lock()
	defer p.seen.mu.Unlock()
	var names []string
	var newest Seen
	for name, f := range p.seen.failures {
		if time.Since(f.At) > failingKept {
			delete(p.seen.failures, name)
			continue
		}
		names = append(names, name)
		if f.At.After(newest.At) {
			newest = f
		}
	}
	p.seen.failing.Store(int32(len(p.seen.failures))) //nolint:gosec // at most failingAtMost
	if len(names) == 0 {
		return nil
	}
	return claviger.Errorf("hsm.CheckEncryptions", claviger.Unavailable, "",
		"the last encryption with these key versions failed: %s; the newest at %s: %w", some(names),
		newest.At.UTC().Format(time.RFC3339), newest.Err)
}

// Check has the token do what it is there for: encrypt the check block with a key that
// is in use, and give the right check value. Where some keys fail others are tried, and
// keys that it lacks say nothing while it has another. A token without a key is asked for
// its state.
func (p *Provider) Check(ctx context.Context) error {
	const op = "hsm.Check"
	if err := p.ready(op, ""); err != nil {
		return err
	}
	var failed []string
	var first error
	try := func(versions []string) (works bool, err error) {
		for _, version := range versions {
			err := p.tryOut(ctx, version)
			switch {
			case err == nil:
				return true, nil
			case claviger.Is(err, claviger.VersionNotFound): // deleted since
				continue
			case ctx.Err() != nil:
				return false, err
			}
			failed = append(failed, version)
			if first == nil || unfit(first) {
				first = err
			}
		}
		return false, nil
	}
	works, err := try(p.used())
	if err == nil && !works && (first == nil || unfit(first)) {
		var others []string
		if others, err = p.unused(ctx, failed); err == nil {
			works, err = try(others)
		}
	}
	switch {
	case works || err != nil:
		return err
	case first == nil:
		return p.tok.Ping(ctx)
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "token %s does not encrypt, with %s: %w",
		tokenName(p.tok.Info()), strings.Join(failed, ", "), first)
}

// used returns a few versions that requests have used, the last one first.
func (p *Provider) used() (versions []string) {
	if e := p.seen.last.Load(); e != nil {
		versions = append(versions, e.name)
	}
	for name := range p.versions.Range {
		if name, ok := name.(string); ok && len(versions) < probeKeys && !slices.Contains(versions, name) {
			versions = append(versions, name)
		}
	}
	return versions
}

// unused returns a few versions of the store that were not tried.
func (p *Provider) unused(ctx context.Context, tried []string) (versions []string, err error) {
	names, err := p.store.Names(ctx)
	if err != nil {
		return nil, fmt.Errorf("which keys the token could be asked for is not known: %w", err)
	}
	keys, err := p.store.Get(ctx, names[:min(len(names), probeKeys+len(tried))]...)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k == nil || len(k.List) == 0 || len(versions) == probeKeys {
			continue
		}
		if v := claviger.VersionName(k.Name, k.List[len(k.List)-1].ID); !slices.Contains(tried, v) {
			versions = append(versions, v)
		}
	}
	return versions, nil
}

// tryOut encrypts the check block with one version.
func (p *Provider) tryOut(ctx context.Context, version string) error {
	e, err := p.entry(ctx, version)
	if err != nil {
		return err
	}
	got, err := p.checkValue(ctx, e)
	if err != nil {
		return p.gone(ctx, "hsm.Check", e, err)
	}
	if !bytes.Equal(got, e.check) {
		return claviger.E("hsm.Check", claviger.Unavailable, version, errMismatch)
	}
	return nil
}
