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
	// probeKeys is how many versions a probe tries until one works. One key that is missing or blocked does not make
	// the token useless.
	probeKeys = 3
	// aliveWindow: a success and a later failure that are that close in time may show that one key is faulty, or that
	// the token is. A probe finds out.
	aliveWindow = time.Second
	// failingTTL is how long CheckEncryptions names a version after its last failure, and maxFailing how many
	// versions are remembered.
	failingTTL = 10 * time.Minute
	maxFailing = 1000
)

// Outcome is the result of one call to the token.
type Outcome struct {
	At   time.Time
	Took time.Duration
	Err  error
}

// encryptionState is the result of the last encryptions for requests. A success costs a few atomic stores.
type encryptionState struct {
	at, took atomic.Int64 // of the last success: time since processStart, and duration
	last     atomic.Pointer[entry]
	failed   atomic.Pointer[Outcome]

	failing atomic.Int32 // number of failures
	mu      sync.Mutex
	// failures has, by version, the last failure of each version that has not encrypted since.
	failures map[string]Outcome
	leases   atomic.Bool // the proof of a lease has failed since failing found none
}

// processStart is the moment from which the times of successes are counted.
var processStart = time.Now()

// recordSuccess records a successful encryption. began is the time since processStart at which it began.
func (s *encryptionState) recordSuccess(e *entry, began time.Duration) {
	now := time.Since(processStart)
	s.took.Store(int64(now - began))
	s.at.Store(int64(now))
	e.lease.prove(began)
	if s.last.Load() != e { // otherwise all cores would write to one cache line
		s.last.Store(e)
	}
	if s.failing.Load() == 0 {
		return
	}
	s.forget(e.name)
}

// forget forgets the failure of a version.
func (s *encryptionState) forget(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.failures, version)
	s.failing.Store(int32(len(s.failures))) //nolint:gosec // at most maxFailing
}

// recordFailure records a failed encryption, unless the caller gave up or the version does not exist.
func (s *encryptionState) recordFailure(ctx context.Context, version string, began time.Duration, err error) {
	if claviger.Is(err, claviger.VersionNotFound) || claviger.Is(err, claviger.Closed) ||
		errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	f := Outcome{At: time.Now(), Took: time.Since(processStart) - began, Err: err}
	if !isUnusable(err) { // CheckKeys reports versions that the token lacks
		s.failed.Store(&f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures == nil {
		s.failures = map[string]Outcome{}
	}
	if _, known := s.failures[version]; known || len(s.failures) < maxFailing {
		s.failures[version] = f
	}
	s.failing.Store(int32(len(s.failures))) //nolint:gosec // at most maxFailing
}

// Last returns the last result of an encryption for a request. ok is false if there was no encryption, or if the last
// one failed within aliveWindow after a success.
func (p *Provider) Last() (s Outcome, ok bool) {
	if at := p.encryptions.at.Load(); at != 0 {
		s, ok = Outcome{At: processStart.Add(time.Duration(at)), Took: time.Duration(p.encryptions.took.Load())}, true
	}
	f := p.encryptions.failed.Load()
	switch {
	case f == nil || ok && f.At.Before(s.At):
		return s, ok
	case ok && f.At.Before(s.At.Add(aliveWindow)):
		return Outcome{}, false
	}
	return *f, true
}

// CheckEncryptions names the versions whose last encryption failed, for any reason, and reports the newest failure.
func (p *Provider) CheckEncryptions(context.Context) error {
	p.encryptions.mu.Lock()
	defer p.encryptions.mu.Unlock()
	var names []string
	var newest Outcome
	for name, f := range p.encryptions.failures {
		if time.Since(f.At) > failingTTL {
			delete(p.encryptions.failures, name)
			continue
		}
		names = append(names, name)
		if f.At.After(newest.At) {
			newest = f
		}
	}
	p.encryptions.failing.Store(int32(len(p.encryptions.failures))) //nolint:gosec // at most maxFailing
	if len(names) == 0 {
		return nil
	}
	return claviger.Errorf("hsm.CheckEncryptions", claviger.Unavailable, "",
		"the last encryption with these key versions failed: %s; the newest at %s: %w", summarize(names),
		newest.At.UTC().Format(time.RFC3339), newest.Err)
}

// Check makes the token encrypt the check block with a key that is in use, and compares the check value. If a key fails
// it tries others. Keys that the token lacks do not count while it has another key. If there is no key, Check reads
// the state of the token.
func (p *Provider) Check(ctx context.Context) error {
	const op = "hsm.Check"
	if err := p.ready(op, ""); err != nil {
		return err
	}
	if err := p.needsToken(ctx, op); err != nil && p.standby == nil {
		return err
	}
	var failed []string
	var first error
	try := func(versions []string) (works bool, err error) {
		for _, version := range versions {
			err := p.tryVersion(ctx, version)
			switch {
			case err == nil:
				return true, nil
			case claviger.Is(err, claviger.VersionNotFound): // deleted meanwhile
				continue
			case ctx.Err() != nil:
				return false, err
			}
			failed = append(failed, version)
			if first == nil || isUnusable(first) {
				first = err
			}
		}
		return false, nil
	}
	works, err := try(p.used())
	if err == nil && !works && (first == nil || isUnusable(first)) {
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

// used returns a few versions that requests have used, the last used version first.
func (p *Provider) used() (versions []string) {
	if e := p.encryptions.last.Load(); e != nil {
		versions = append(versions, e.name)
	}
	for name := range p.versions.Range {
		if name, ok := name.(string); ok && len(versions) < probeKeys && !slices.Contains(versions, name) {
			versions = append(versions, name)
		}
	}
	return versions
}

// unused returns a few versions of the store that were not tried yet.
func (p *Provider) unused(ctx context.Context, tried []string) (versions []string, err error) {
	names, _, err := p.store.Page(ctx, "", probeKeys+len(tried))
	if err != nil {
		return nil, fmt.Errorf("the names of the keys to try could not be read: %w", err)
	}
	keys, err := p.store.Get(ctx, names...)
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

// tryVersion encrypts the check block with one version.
func (p *Provider) tryVersion(ctx context.Context, version string) error {
	e, err := p.entry(ctx, version)
	if err != nil {
		return err
	}
	got, err := p.checkValue(ctx, e)
	if isAway(err) && p.standby != nil && p.standby.prove(ctx, p, e) == nil {
		return nil
	}
	if err != nil {
		return p.missingOnToken(ctx, "hsm.Check", e, err)
	}
	if !bytes.Equal(got, e.check) {
		return claviger.E("hsm.Check", claviger.Unavailable, version, errMismatch)
	}
	return nil
}
