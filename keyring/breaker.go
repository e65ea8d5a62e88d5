package keyring

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"claviger"
	"claviger/provider"
)

// blame records whose calls to a source got no answer since the last answer. One user's calls may hang at a source
// that answers others: a directory hangs at that user's name, a proxy drops requests of that size. The calls of
// such a user alone must not open the breaker for all.
type blame struct {
	mu    sync.Mutex
	user  string // of the first call without an answer
	other bool   // a call of another user got no answer either, or a probe
}

// record takes in how a call of a user ended; user is "" for a probe.
func (b *blame) record(user string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(err, errLeft):
	case err == nil || !silent(err):
		b.user, b.other = "", false
	case user == "" || b.user != "" && b.user != user:
		b.other = true
	default:
		b.user = user
	}
}

// shared reports whether more than one user is without an answer.
func (b *blame) shared() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.other
}

// probing is a probe of a source that is under way. All calls that need its outcome wait for the same probe.
type probing struct {
	mu   sync.Mutex
	done chan struct{} // closed when the probe ends; nil: none is under way
}

// call calls the source within its time, unless the breaker is open. After a pause of the breaker, and where the
// calls of one user alone got no answer, the source is probed.
func (s *source) call(ctx context.Context, fn func(context.Context) error) error {
	if s.health != nil && s.breaker.State() == gobreaker.StateHalfOpen {
		s.probe(ctx)
	}
	err := s.execute(ctx, provider.CallerOf(ctx), fn)
	if s.health != nil && err != nil && silent(err) && s.breaker.State() == gobreaker.StateClosed &&
		s.breaker.Counts().ConsecutiveFailures >= s.failures {
		s.probe(ctx)
	}
	return err
}

// probe checks the source's health in this server's own name, and waits for the end of the check or of ctx. The
// breaker counts the probe as any call.
func (s *source) probe(ctx context.Context) {
	p := &s.probing
	p.mu.Lock()
	done := p.done
	if done == nil {
		done = make(chan struct{})
		p.done = done
		go func() { //nolint:gosec // the probe outlives the request on purpose: others wait for it
			_ = s.execute(context.Background(), "", s.health.Check)
			p.mu.Lock()
			p.done = nil
			p.mu.Unlock()
			close(done)
		}()
	}
	p.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// execute calls the source for a user within its time, unless the breaker is open.
func (s *source) execute(ctx context.Context, user string, fn func(context.Context) error) error {
	_, err := s.breaker.Execute(func() (struct{}, error) {
		begun := time.Now()
		limited, cancel := context.WithTimeout(ctx, s.timeout)
		defer cancel()
		err := s.withoutAnswer(ctx, limited, begun, fn(limited))
		s.record(user, begun, err)
		return struct{}{}, err
	})
	return err
}

// withoutAnswer marks the error of a call that got no answer: the call's context ended, or the limit of one call
// to the source. Any other error is the source's answer.
func (s *source) withoutAnswer(ctx, limited context.Context, begun time.Time, err error) error {
	switch {
	case err == nil || !silent(err) && claviger.KindOf(err) != claviger.Internal:
		return err // an answer, however long it took
	case ctx.Err() != nil:
		// The request ended first. If its deadline did, and the source had much of its own time, the source is to
		// blame.
		took := time.Since(begun)
		if errors.Is(ctx.Err(), context.Canceled) || took < s.timeout/2 {
			return fmt.Errorf("%w: %w", errLeft, err)
		}
		return fmt.Errorf("%w %v: %w", errTimeout, took.Round(time.Millisecond), err)
	case limited.Err() != nil:
		return fmt.Errorf("%w %v: %w", errTimeout, s.timeout, err)
	}
	return err
}

// record keeps how a call of a user ended. A call that its caller gave up says nothing about the source.
func (s *source) record(user string, begun time.Time, err error) {
	if !errors.Is(err, errLeft) {
		call := &SourceCall{At: time.Now(), Took: time.Since(begun)}
		if err != nil && (silent(err) || claviger.KindOf(err) == claviger.Internal) {
			call.Err = errors.New(reason(err))
		}
		s.lastCall.Store(call)
		if err != nil && silent(err) {
			s.lastFail.Store(&SourceFailure{At: time.Now(), Err: err})
		}
	}
	s.blame.record(user, err)
}
