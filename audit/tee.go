package audit

import (
	"context"
	"errors"
	"slices"
)

// Tee hands each event to several loggers.
type Tee struct {
	// Loggers take all events. Those that are a Guard are asked before an operation
	// of Must is done; one no is enough.
	Loggers []Logger
	// Must are the operations that are not done where they can't be recorded.
	Must []Op
}

var (
	_ Logger = (*Tee)(nil)
	_ Guard  = (*Tee)(nil)
)

// Log hands the event on.
func (t *Tee) Log(ctx context.Context, e Event) {
	for _, l := range t.Loggers {
		l.Log(ctx, e)
	}
}

// Begin asks the loggers, in order.
func (t *Tee) Begin(ctx context.Context, e Event) error {
	if !slices.Contains(t.Must, e.Op) {
		return nil
	}
	for _, l := range t.Loggers {
		if g, ok := l.(Guard); ok {
			if err := g.Begin(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// Err joins the loggers'.
func (t *Tee) Err() error { return t.each(Logger.Err) }

// Stopped joins what keeps the loggers from recording operations: their Err, or what a
// Chain has for it.
func (t *Tee) Stopped() error {
	return t.each(func(l Logger) error {
		if s, ok := l.(interface{ Stopped() error }); ok {
			return s.Stopped()
		}
		return l.Err()
	})
}

// Close closes all.
func (t *Tee) Close() error { return t.each(Logger.Close) }

// Reopen has those that write files open them anew.
func (t *Tee) Reopen() error {
	return t.each(func(l Logger) error {
		if r, ok := l.(interface{ Reopen() error }); ok {
			return r.Reopen()
		}
		return nil
	})
}

func (t *Tee) each(do func(Logger) error) error {
	var errs []error
	for _, l := range t.Loggers {
		errs = append(errs, do(l))
	}
	return errors.Join(errs...)
}
