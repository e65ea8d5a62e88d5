package hsm

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/metastore"
)

// A server may make EDEKs without the token, see eek.Implied. The token must hold the version's key then, or nobody
// could open the EDEKs. So a version has a lease: its key has proved itself, by its check value, a short time ago. Each
// successful encryption for a request renews the lease. If a lease is used, proofs in the background renew it too.

const (
	// renewLimit is how long a proof may take.
	renewLimit = 15 * time.Second
	// maxRenewals is how many proofs run in the background at a time.
	maxRenewals = 16
	// retryPause is the pause after a proof that failed, before the next one in the background.
	retryPause = 500 * time.Millisecond
	// renewalsInLease is the number of renewals of a lease in use during its length. So at least three quarters of a
	// lease are left when the HSM stops to answer.
	renewalsInLease = 4
	// proofGrain is the shortest time between two recorded proofs of a key. Otherwise every encryption would write to
	// memory that all processors use.
	proofGrain = int64(time.Millisecond)
)

// lease is the record of the proofs of a version's key. Times are since processStart.
type lease struct {
	proved atomic.Int64 // when the newest call that proved the key began; 0: the version has no lease
	used   atomic.Int64 // when the lease was last used

	mu      sync.Mutex
	running *renewal      // not nil while a proof is running
	failed  time.Duration // when the last proof failed; 0: it succeeded
	err     error         // of the proof that failed
}

// renewal is a proof that is running.
type renewal struct {
	done chan struct{}
	err  error // read it after done is closed
}

// prove records that the key proved itself in a call that began at the time began.
func (l *lease) prove(began time.Duration) {
	for {
		last := l.proved.Load()
		if int64(began)-last < proofGrain || l.proved.CompareAndSwap(last, int64(began)) {
			return
		}
	}
}

// end ends the lease: the token lacks the key, or refuses to use it. A call that began earlier, and still succeeds, may
// bring the lease back, for the rest of its time.
func (l *lease) end() { l.proved.Store(0) }

// hasFailed reports whether the last proof failed.
func (l *lease) hasFailed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed != 0 && time.Duration(l.proved.Load()) <= l.failed
}

// age returns for how long the key has not proved itself. ok is false if the version has no lease.
func (l *lease) age(now time.Duration) (age time.Duration, ok bool) {
	proved := l.proved.Load()
	return now - time.Duration(proved), proved != 0
}

// isDue reports whether the lease should be renewed in the background. If the token was lost and opened again since the
// last proof, it may be another token, and the lease is due.
func (p *Provider) isDue(e *entry, age, length, now time.Duration) bool {
	if age < length/renewalsInLease && e.verified.Load() == p.epoch.Load()+1 {
		return false
	}
	e.lease.mu.Lock()
	defer e.lease.mu.Unlock()
	return e.lease.running == nil && (e.lease.failed == 0 || now-e.lease.failed >= retryPause)
}

// Lease implements provider.Leaser. A proof that fails because the HSM does not answer lets the lease go on to its end.
// A proof that finds no key, another key, or a key that cannot be used, or that the store does not know the version any
// more, ends the lease.
func (p *Provider) Lease(ctx context.Context, version string, length time.Duration) error {
	const op = "hsm.Lease"
	if err := p.ready(op, version); err != nil {
		return err
	}
	e, err := p.entry(ctx, version)
	if err != nil {
		return err
	}
	now := time.Since(processStart)
	e.lease.used.Store(int64(now))
	if age, ok := e.lease.age(now); ok && age < length {
		if p.isDue(e, age, length, now) {
			p.renew(e, maxRenewals)
		}
		return nil
	}
	if err := p.needsToken(ctx, op); err != nil && p.standby == nil {
		return err
	}
	r := p.renew(e, 0)
	if r == nil {
		return claviger.E(op, claviger.Closed, version, nil)
	}
	select {
	case <-r.done:
		if r.err != nil && p.closed.Load() {
			return claviger.E(op, claviger.Closed, version, nil)
		}
		return r.err
	case <-ctx.Done():
		return claviger.E(op, claviger.Unavailable, version, context.Cause(ctx))
	}
}

// renewals are the proofs that are running.
type renewals struct {
	ctx context.Context // ends with the provider
	wg  sync.WaitGroup

	mu      sync.Mutex
	running int
	closed  bool
}

// begin runs f in the background, unless the provider is closed, or limit functions run already; 0 is no limit.
func (r *renewals) begin(limit int, f func(ctx context.Context)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || limit > 0 && r.running >= limit {
		return false
	}
	r.running++
	r.wg.Go(func() {
		f(r.ctx)
		r.mu.Lock()
		r.running--
		r.mu.Unlock()
	})
	return true
}

// close waits until no proof is running. The context of the proofs has ended.
func (r *renewals) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wg.Wait()
}

// renew begins a proof of a version's key, unless one is running, and returns it. It returns nil if the provider is
// closed, or limit proofs are running already.
func (p *Provider) renew(e *entry, limit int) *renewal {
	e.lease.mu.Lock()
	defer e.lease.mu.Unlock()
	if e.lease.running != nil {
		return e.lease.running
	}
	r := &renewal{done: make(chan struct{})}
	if !p.renewals.begin(limit, func(ctx context.Context) { p.runRenewal(ctx, e, r) }) {
		return nil
	}
	e.lease.running = r
	return r
}

// runRenewal makes a proof.
func (p *Provider) runRenewal(ctx context.Context, e *entry, r *renewal) {
	ctx, cancel := context.WithTimeout(ctx, renewLimit)
	defer cancel()
	began := time.Since(processStart)
	r.err = p.proveKey(ctx, e)
	if r.err == nil {
		p.encryptions.recordSuccess(e, began)
	} else {
		p.encryptions.recordFailure(ctx, e.name, began, r.err)
	}
	e.lease.mu.Lock()
	e.lease.running, e.lease.failed, e.lease.err = nil, 0, r.err
	if r.err != nil {
		e.lease.failed = time.Since(processStart)
		p.encryptions.leases.Store(true)
	}
	e.lease.mu.Unlock()
	close(r.done)
}

// proveKey has the token encrypt the check block with a version that the store knows. While the first token does not
// answer, the standby encrypts.
func (p *Provider) proveKey(ctx context.Context, e *entry) error {
	const op = "hsm.Lease"
	m, v, err := p.store.ByVersion(ctx, e.name)
	if err == nil {
		err = e.checkRecord(m, v)
	}
	if err != nil {
		if claviger.Is(err, claviger.VersionNotFound) {
			e.lease.end()
			p.versions.CompareAndDelete(e.name, e)
		}
		return err
	}
	if len(e.check) == 0 {
		return p.refuse(e, nil)
	}
	return p.orStandby(ctx, e, func(ctx context.Context) error {
		epoch := p.epoch.Load() + 1
		err := p.withChoice(ctx, e, func() error { return p.tok.Prove(ctx, e.id, e.name, e.check) })
		return p.missingOnToken(ctx, op, e, p.judge(e, epoch, err))
	}, e.proveOn)
}

// checkRecord returns an error of kind VersionNotFound if the store has another key under the entry's name by now.
func (e *entry) checkRecord(m *claviger.Metadata, v metastore.Version) error {
	now, err := newEntry(m, v)
	if err != nil {
		return err
	}
	if !bytes.Equal(now.id, e.id) || !bytes.Equal(now.check, e.check) || now.bits != e.bits {
		return claviger.Errorf("hsm.Lease", claviger.VersionNotFound, e.name, "the version was replaced")
	}
	return nil
}

// LeaseFigures counts leases.
type LeaseFigures struct {
	Held   int           // versions with a lease that was used within the length of a lease
	Oldest time.Duration // age of the oldest of these leases
}

// Leases returns the figures of leases of that length.
func (p *Provider) Leases(length time.Duration) (f LeaseFigures) {
	now := time.Since(processStart)
	for e := range p.leasedWithin(now, length) {
		if age, ok := e.lease.age(now); ok && age < length {
			f.Held, f.Oldest = f.Held+1, max(f.Oldest, age)
		}
	}
	return f
}

// leasedWithin returns the versions whose lease was used within a time.
func (p *Provider) leasedWithin(now, within time.Duration) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, v := range p.versions.Range {
			e, _ := v.(*entry)
			if used := e.lease.used.Load(); used != 0 && now-time.Duration(used) < within && !yield(e) {
				return
			}
		}
	}
}

// CheckLeases names the versions that did not prove themselves at the last attempt, of those whose lease of that length
// was used a short time ago. It says until when their leases last.
func (p *Provider) CheckLeases(length time.Duration) error {
	now := time.Since(processStart)
	var going, ended []string
	var until time.Duration
	var newest time.Duration
	var why error
	for e := range p.leasedWithin(now, failingTTL) {
		e.lease.mu.Lock()
		failed, err := e.lease.failed, e.lease.err
		e.lease.mu.Unlock()
		if proved := time.Duration(e.lease.proved.Load()); failed == 0 || proved > failed {
			continue
		} else if proved != 0 && now-proved < length {
			going, until = append(going, e.name), max(until, proved+length)
		} else {
			ended = append(ended, e.name)
		}
		if failed > newest {
			newest, why = failed, err
		}
	}
	if why == nil {
		return nil
	}
	var parts []string
	if len(going) > 0 {
		parts = append(parts, fmt.Sprintf("new EDEKs of %s are made under leases, which end at %s at the latest",
			summarize(going), processStart.Add(until).UTC().Format(time.RFC3339)))
	}
	if len(ended) > 0 {
		parts = append(parts, fmt.Sprintf("no new EDEKs of %s are made, because their leases have ended",
			summarize(ended)))
	}
	return claviger.Errorf("hsm.CheckLeases", claviger.Unavailable, "", "the HSM does not prove the keys now: %s: %w",
		strings.Join(parts, "; "), why)
}
