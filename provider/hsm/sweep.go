package hsm

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
)

const (
	// sweepAfter is the least time between the failure of a step of this process and its sweep. A client that repeats
	// the step meanwhile gets the numbers of the first attempt, and the HSM has shown by then what it made.
	sweepAfter = 30 * time.Second
	// sweepLeftAfter is the age at which a step of another process is swept: that process may have ended. A client that
	// repeats the step before that time completes the step.
	sweepLeftAfter = 10 * time.Minute
	// sweepMost bounds the steps of one sweep, which delays the other checks of watch.
	sweepMost = 500
	// sweepFailures is the number of failures that end a sweep. The steps that failed come last in later sweeps.
	sweepFailures = 3
	// maxFailed bounds the steps that failedSteps remembers. Later ones are swept like those of another process.
	maxFailed = 10_000
)

// failedSteps are the creations and rolls that this process began and that failed. No client has ever got the name of
// such a step's version, so what the step made may be destroyed, unless another node goes on with the step.
type failedSteps struct {
	mu    sync.Mutex
	byKey map[string]failedStep
	// kept has the start times of other processes' steps that a sweep could not finish, see finishLeft. Later sweeps
	// leave these steps alone.
	kept map[string]time.Time
	// seen has the other processes' steps that sweeps have found, and when they first did.
	seen map[string]seenStep
	// unswept has the time of the last sweep that could not end a step of the key.
	unswept map[string]time.Time
}

// seenStep is a step that a sweep has found.
type seenStep struct {
	begun time.Time // Intent.Begun
	first time.Time // by this process's monotonic clock
}

// failedStep is a step that failed.
type failedStep struct {
	intent metastore.Intent
	at     time.Time
	// servers is serversOf the store before the step began.
	servers string
}

// record remembers a step that failed.
func (f *failedSteps) record(s failedStep) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byKey == nil {
		f.byKey = map[string]failedStep{}
	}
	earlier, known := f.byKey[s.intent.Key]
	if known && slices.Equal(earlier.intent.Refs, s.intent.Refs) {
		s.servers = earlier.servers // the step began then
	}
	if known || len(f.byKey) < maxFailed {
		f.byKey[s.intent.Key] = s
	}
}

// get returns the record of a step. ok is false if this process did not begin the step, or if another node has
// continued it.
func (f *failedSteps) get(i metastore.Intent) (s failedStep, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok = f.byKey[i.Key]
	return s, ok && s.intent.Same(i)
}

// forget forgets the steps of a key, or of all keys if key is "".
func (f *failedSteps) forget(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if key == "" {
		f.byKey, f.kept, f.seen, f.unswept = nil, nil, nil, nil
	}
	delete(f.byKey, key)
	delete(f.kept, key)
	delete(f.seen, key)
	delete(f.unswept, key)
}

// keep makes later sweeps leave a step alone.
func (f *failedSteps) keep(i metastore.Intent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept == nil || len(f.kept) >= maxFailed {
		f.kept = map[string]time.Time{}
	}
	f.kept[i.Key] = i.Begun
}

// swept records the result of the sweep of a key's step.
func (f *failedSteps) swept(key string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.unswept, key)
		return
	}
	if f.unswept == nil || len(f.unswept) >= maxFailed {
		f.unswept = map[string]time.Time{}
	}
	f.unswept[key] = time.Now()
}

// order sorts steps for a sweep: first the steps that no sweep has failed to end, in their order, then the others, by
// the time of their last failure. So steps that always fail do not keep a sweep from the others.
func (f *failedSteps) order(steps []metastore.Intent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.SortStableFunc(steps, func(a, b metastore.Intent) int { return f.unswept[a.Key].Compare(f.unswept[b.Key]) })
}

// due reports whether a step is to be swept now. A migration goes on with its own steps, at any time.
func (f *failedSteps) due(i metastore.Intent, now time.Time) bool {
	if i.Op == opDelete {
		return true
	}
	if i.Op != opCreate && i.Op != opRoll {
		return false
	}
	if s, ours := f.get(i); ours {
		return now.Sub(s.at) >= sweepAfter
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept[i.Key].Equal(i.Begun) {
		return false
	}
	// The clock may have been set back since the step began, or the clock of the process that began it was ahead.
	known, ok := f.seen[i.Key]
	if !ok || !known.begun.Equal(i.Begun) {
		if f.seen == nil || len(f.seen) >= maxFailed {
			f.seen = map[string]seenStep{}
		}
		known = seenStep{i.Begun, now}
		f.seen[i.Key] = known
	}
	return now.Sub(i.Begun) >= sweepLeftAfter || now.Sub(known.first) >= sweepLeftAfter
}

// stepFailed remembers that a step failed. fresh says that this process began it, and servers is serversOf before that.
func (p *Provider) stepFailed(i metastore.Intent, fresh bool, servers string) {
	if fresh && (i.Op == opCreate || i.Op == opRoll) {
		p.failed.record(failedStep{intent: i, at: time.Now(), servers: servers})
	}
}

// sweepSteps ends steps that failed, and finishes deletions that could not be finished. It ends a step if the token
// holds nothing that the step made, or if this process began the step: then it destroys what the step made. Of other
// processes' steps it destroys nothing, because their keys may be in use, if the store is an old copy: it finishes
// them. A number of a step that was swept is not given again.
func (p *Provider) sweepSteps(ctx context.Context, now time.Time) error {
	pending, err := p.store.Pending(ctx)
	if err != nil {
		return err
	}
	pending = slices.DeleteFunc(pending, func(i metastore.Intent) bool { return !p.failed.due(i, now) })
	if len(pending) == 0 {
		return nil
	}
	if err := p.mayMake(ctx); err != nil { // objects that look left over may be needed when token and store fit
		return err
	}
	p.failed.order(pending)
	var swept []string
	var failures []error
	for _, i := range pending[:min(sweepMost, len(pending))] {
		ended, err := p.sweepStep(ctx, i)
		p.failed.swept(i.Key, err)
		if err != nil {
			failures = append(failures, err)
		}
		if ended && err == nil {
			swept = append(swept, i.Key)
		}
		if ctx.Err() != nil || len(failures) == sweepFailures {
			break // probably the token or the store is away, and not a single object at fault
		}
	}
	if len(swept) > 0 {
		p.log.Info("steps that had failed were ended; no client has used what they made", "count", len(swept), "keys",
			summarize(swept))
	}
	return errors.Join(failures...)
}

// sweepStep ends one step, or leaves it alone.
func (p *Provider) sweepStep(ctx context.Context, i metastore.Intent) (ended bool, err error) {
	ctx, unlock, ok, err := metastore.Hold(ctx, p.store, keyLock(i.Key), false)
	if err != nil || !ok {
		return false, err // a process is making the step
	}
	defer unlock()
	now, err := p.store.Pending(ctx, i.Key)
	if err != nil || len(now) == 0 || !now[0].Same(i) {
		return false, err
	}
	if i.Op == opDelete {
		return true, p.destroyObjects(ctx, i)
	}
	if failed, ours := p.failed.get(i); ours {
		ended, err := p.undoStep(ctx, failed)
		if errors.Is(err, metastore.ErrTaken) {
			err = nil // a finish whose answer was lost has succeeded, or another node goes on with the step
		}
		return ended, err
	}
	n, err := p.countObjects(ctx, i)
	switch {
	case err != nil:
		return false, err
	case n > 0:
		return false, p.finishLeft(ctx, i, n)
	case p.tok.Hidden() != nil: // a key may be in a file that the process may not read
		p.failed.keep(i)
		return false, nil
	}
	return true, p.store.Drop(ctx, i.Key)
}

// countObjects returns the number of objects of a step that the token holds. Several objects with one CKA_ID count as
// two.
func (p *Provider) countObjects(ctx context.Context, i metastore.Intent) (n int, err error) {
	for _, ref := range i.Refs {
		raw, err := decodeID("hsm.sweep", claviger.VersionName(i.Key, ref.ID), ref.Object)
		if err != nil {
			return 0, err
		}
		info, err := p.tok.Find(ctx, raw)
		if info == nil && err == nil { // a step whose object is found later would stay without a record
			info, err = p.tok.Find(ctx, raw)
		}
		switch {
		case errors.Is(err, pkcs11.ErrSeveral):
			n += 2
		case err != nil:
			return 0, err
		case info != nil:
			n++
		}
	}
	return n, nil
}

// undoStep ends a step of this process, and destroys what it made, as a deletion does. First it takes the step, so that
// a change that makes the key visible, and whose answer was lost, has succeeded before, or fails. The objects count as
// destroyed from then on: if the HSM shows one of them later, because a call was still under way, it is an orphan.
//
// If the store may have lost a change since the step began, another node may have ended the step with success. Then
// undoStep destroys nothing.
func (p *Provider) undoStep(ctx context.Context, failed failedStep) (ended bool, err error) {
	i, err := p.store.Take(ctx, failed.intent, failed.intent.Op)
	if err != nil {
		return false, err
	}
	failed.intent = i
	p.failed.record(failed)
	if !p.keptChanges(ctx, failed.servers) {
		return p.leaveStep(ctx, i)
	}
	deletion, err := p.store.Take(ctx, i, opDelete)
	if err != nil {
		return false, err
	}
	p.failed.forget(i.Key)
	p.changed.Store(true)
	return true, p.destroyObjects(ctx, deletion)
}

// leaveStep ends a step of this process if the token holds nothing that it made. Otherwise the step counts as that of
// another process from then on, see finishLeft.
func (p *Provider) leaveStep(ctx context.Context, i metastore.Intent) (ended bool, err error) {
	n, err := p.countObjects(ctx, i)
	if err != nil {
		return false, err
	}
	p.failed.forget(i.Key)
	if n > 0 {
		return false, nil
	}
	if err := p.store.Drop(ctx, i.Key); err != nil {
		return false, err
	}
	for _, ref := range i.Refs { // an object that the HSM shows later is an orphan
		if err := recordDestroyed(ctx, p.store, ref.Object, claviger.VersionName(i.Key, ref.ID)); err != nil {
			return true, err
		}
	}
	return true, nil
}

// serversOf returns the database servers that a store has used, "" if it is a file. The result changes when a standby
// takes over, or when the database is restored to an earlier time.
func serversOf(s metastore.Store) string {
	if r, ok := s.(metastore.Replicated); ok {
		return r.Servers()
	}
	return ""
}

// keptChanges reports whether the store still has each change that was acknowledged since serversOf was servers, and
// will keep further changes: no standby has taken over, and no standby that lacks changes can take over. The result is
// true if the store is a file.
func (p *Provider) keptChanges(ctx context.Context, servers string) bool {
	r, ok := p.store.(metastore.Replicated)
	return !ok || r.Replication(ctx) == nil && r.Servers() == servers
}

// sweep is sweepSteps for watch. If the token or the store is away, or the two do not fit together, checkFit says so.
func (p *Provider) sweep(ctx context.Context) {
	err := p.sweepSteps(ctx, time.Now())
	if err != nil && ctx.Err() == nil && !IsMisfit(err) && !claviger.Is(err, claviger.Unavailable) {
		p.log.Warn("steps that had failed could not be ended; claviger tries again", "err", err, "in", watchPause)
	}
}
