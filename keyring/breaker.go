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

// unanswered records the users whose calls to a source got no answer since the last answer. A source may answer all
// users but one: for example, its directory hangs at that user's name, or a proxy drops requests of that user's size.
// The calls of one such user must not open the breaker for all users.
type unanswered struct {
	mu    sync.Mutex
	user  string // the user of the first call without an answer
	other bool   // a probe or a call of another user got no answer either
}

// record records the result of a user's call; user is "" for a probe.
func (b *unanswered) record(user string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(err, errCancelled):
	case err == nil || !isUnreachable(err):
		b.user, b.other = "", false
	case user == "" || b.user != "" && b.user != user:
		b.other = true
	default:
		b.user = user
	}
}

// shared reports whether more than one user got no answer.
func (b *unanswered) shared() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.other
}

// probing is a probe of a source that is under way. All calls that need its outcome wait for the same probe.
type probing struct {
	mu   sync.Mutex
	done chan struct{} // closed when the probe ends; nil: none is under way
}

// call calls the source, with its timeout, unless the breaker is open. After a pause of the breaker, and after calls of
// only one user got no answer, it probes the source.
func (s *source) call(ctx context.Context, fn func(context.Context) error) error {
	if s.health != nil && s.breaker.State() == gobreaker.StateHalfOpen {
		s.probe(ctx)
	}
	err := s.execute(ctx, provider.CallerOf(ctx), fn)
	// The breaker restarts its count at each change of its state, so it is closed here.
	if s.health != nil && isUnreachable(err) && s.breaker.Counts().ConsecutiveFailures >= s.failures {
		s.probe(ctx)
	}
	return err
}

// probe checks the source's health in this server's own name, and waits for the end of the check or of ctx. The breaker
// counts the probe like a call.
func (s *source) probe(ctx context.Context) {
	p := &s.probing
	p.mu.Lock()
	done := p.done
	if done == nil {
		done = make(chan struct{})
		p.done = done
		go func() { //nolint:gosec // the probe continues after the request: other requests wait for it
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

// execute calls the source for a user, with its timeout, unless the breaker is open.
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

// withoutAnswer marks the error of a call that got no answer, because the call's context or the timeout of the source
// ended. Any other error is the source's answer.
func (s *source) withoutAnswer(ctx, limited context.Context, begun time.Time, err error) error {
	switch {
	case err == nil || !isUnreachable(err) && claviger.KindOf(err) != claviger.Internal:
		return err // an answer, even if it came late
	case ctx.Err() != nil:
		// The request ended before the source's timeout. If the request's deadline passed, and the source had most of
		// its timeout, the failure counts as the source's.
		took := time.Since(begun)
		if errors.Is(ctx.Err(), context.Canceled) || took < s.timeout/2 {
			return fmt.Errorf("%w: %w", errCancelled, err)
		}
		return fmt.Errorf("%w %v: %w", errTimeout, took.Round(time.Millisecond), err)
	case limited.Err() != nil:
		return fmt.Errorf("%w %v: %w", errTimeout, s.timeout, err)
	}
	return err
}

// record records the result of a user's call. A call that its caller gave up shows nothing about the source.
func (s *source) record(user string, begun time.Time, err error) {
	if !errors.Is(err, errCancelled) {
		call := &SourceCall{At: time.Now(), Took: time.Since(begun)}
		if err != nil && (isUnreachable(err) || claviger.KindOf(err) == claviger.Internal) {
			call.Err = errors.New(reason(err))
		}
		s.lastCall.Store(call)
		if err != nil && isUnreachable(err) {
			s.lastFail.Store(&SourceFailure{At: time.Now(), Err: err})
		}
	}
	s.unanswered.record(user, err)
}
