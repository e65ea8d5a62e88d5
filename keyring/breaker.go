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

// blame tells whose calls to a source got no answer since one last did. One user's calls
// may hang at a source that answers others: a directory hangs at that name, a proxy drops
// requests of that size. Such a user must not have the source left alone for all.
type blame struct {
	mu    sync.Mutex
	user  string // of the first
	other bool   // another user's got none either, or a question of this server's own
}

// note takes in how a call of a user ended, "" for this server itself.
func (b *blame) note(user string, err error) {
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

// shared tells whether more than one user is without an answer.
func (b *blame) shared() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.other
}

// asking is a question of this server's own to a source, which those who need its outcome
// wait for together.
type asking struct {
	mu   sync.Mutex
	done chan struct{} // closed when it ends; nil: none is under way
}

// call calls the source within its time, unless it is being left alone. Where users' calls
// alone got no answer, and after a pause, the source is asked for a sign of life first.
func (s *source) call(ctx context.Context, fn func(context.Context) error) error {
	if s.health != nil && s.breaker.State() == gobreaker.StateHalfOpen {
		s.ask(ctx)
	}
	err := s.execute(ctx, provider.CallerOf(ctx), fn)
	if s.health != nil && err != nil && silent(err) && s.breaker.State() == gobreaker.StateClosed &&
		s.breaker.Counts().ConsecutiveFailures >= s.failures {
		s.ask(ctx)
	}
	return err
}

// ask asks the source for a sign of life in this server's own name, and waits for the
// answer or the end of ctx. The breaker heeds it as any call.
func (s *source) ask(ctx context.Context) {
	a := &s.asking
	a.mu.Lock()
	done := a.done
	if done == nil {
		done = make(chan struct{})
		a.done = done
		go func() { //nolint:gosec // it outlives the request on purpose: others wait for it
			_ = s.execute(context.Background(), "", s.health.Check)
			a.mu.Lock()
			a.done = nil
			a.mu.Unlock()
			close(done)
		}()
	}
	a.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// execute calls the source for a user within its time, unless it is being left alone.
func (s *source) execute(ctx context.Context, user string, fn func(context.Context) error) error {
	_, err := s.breaker.Execute(func() (struct{}, error) {
		begun := time.Now()
		limited, cancel := context.WithTimeout(ctx, s.timeout)
		defer cancel()
		err := fn(limited)
		switch {
		case err == nil || !silent(err) && claviger.KindOf(err) != claviger.Internal:
			// An answer, whatever the time.
		case ctx.Err() != nil:
			// The request's own end came first. If it was a deadline, and the source
			// had much of its time, the source is to blame.
			if errors.Is(ctx.Err(), context.Canceled) || time.Since(begun) < s.timeout/2 {
				err = fmt.Errorf("%w: %w", errLeft, err)
			} else {
				err = fmt.Errorf("%w %v: %w", errTimeout, time.Since(begun).Round(time.Millisecond), err)
			}
		case limited.Err() != nil:
			err = fmt.Errorf("%w %v: %w", errTimeout, s.timeout, err)
		}
		switch {
		case errors.Is(err, errLeft):
		case err != nil && (silent(err) || claviger.KindOf(err) == claviger.Internal):
			s.lastCall.Store(&SourceCall{At: time.Now(), Took: time.Since(begun), Err: errors.New(said(err))})
		default:
			s.lastCall.Store(&SourceCall{At: time.Now(), Took: time.Since(begun)})
		}
		if err != nil && silent(err) && !errors.Is(err, errLeft) {
			s.lastFail.Store(&SourceFailure{At: time.Now(), Err: err})
		}
		s.blame.note(user, err)
		return struct{}{}, err
	})
	return err
}
