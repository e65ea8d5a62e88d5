package hsm

import (
	"context"
	"time"

	"claviger"
)

const (
	// probeInterval is the time between two probes of versions that failed.
	probeInterval = 2 * time.Second
	// probeLimit is how long the probe of one version may take.
	probeLimit = 10 * time.Second
)

// probeRegularly probes the versions that failed, until ctx ends. Without the probes, readiness would report a version
// that works again as failed, until a request uses the version.
func (p *Provider) probeRegularly(ctx context.Context) {
	for sleep(ctx, probeInterval) {
		p.probe(ctx)
	}
}

// probe proves the keys of the versions that failed. A probe that fails is not recorded: nothing has changed. If the
// token is away, probe stops. If single keys fail, it probes further versions, up to probeKeys failures.
func (p *Provider) probe(ctx context.Context) {
	failed := 0
	for _, name := range p.failing() {
		err := p.probeVersion(ctx, name)
		if err != nil {
			failed++
		}
		if isAway(err) || failed == probeKeys || ctx.Err() != nil {
			return
		}
	}
}

// failing returns the versions whose last use failed, in a request or for a lease.
func (p *Provider) failing() (names []string) {
	s := &p.encryptions
	if s.failing.Load() == 0 && !s.leases.Load() {
		return nil
	}
	s.mu.Lock()
	for name := range s.failures { // in random order
		names = append(names, name)
	}
	s.mu.Unlock()
	s.leases.Store(false)
	for e := range p.leasedWithin(time.Since(processStart), failingTTL) {
		if e.lease.hasFailed() {
			names = append(names, e.name)
			s.leases.Store(true)
		}
	}
	return names
}

// probeVersion proves the key of one version, and records a success.
func (p *Provider) probeVersion(ctx context.Context, version string) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	e, err := p.entry(ctx, version)
	began := time.Since(processStart)
	if err == nil {
		err = p.proveKey(ctx, e)
	}
	switch {
	case err == nil:
		p.encryptions.recordSuccess(e, began)
	case claviger.Is(err, claviger.VersionNotFound): // deleted meanwhile
		p.encryptions.forget(version)
		return nil
	}
	return err
}
