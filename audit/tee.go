package audit

import (
	"context"
	"errors"
	"slices"

	"claviger/trace"
)

// Tee passes each event to several loggers.
type Tee struct {
	// Loggers take all events. Before an operation of Must, each logger that is a Guard must allow it.
	Loggers []Logger
	// Must has the operations that are not done if they cannot be recorded.
	Must []Op
}

var (
	_ Logger = (*Tee)(nil)
	_ Guard  = (*Tee)(nil)
)

// Log passes the event to all loggers.
func (t *Tee) Log(ctx context.Context, e Event) {
	for _, l := range t.Loggers {
		l.Log(ctx, e)
	}
}

// Begin calls Begin of the loggers in order, and stops at the first error.
func (t *Tee) Begin(ctx context.Context, e Event) (err error) {
	if !slices.Contains(t.Must, e.Op) {
		return nil
	}
	ctx, span := trace.Start(ctx, "audit")
	defer span.EndWith(&err)
	for _, l := range t.Loggers {
		if g, ok := l.(Guard); ok {
			if err := g.Begin(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// Err joins the errors of the loggers.
func (t *Tee) Err() error { return t.each(Logger.Err) }

// Stopped joins the errors that prevent the loggers from recording operations: Stopped of a logger that has such a
// method, otherwise Err.
func (t *Tee) Stopped() error {
	return t.each(func(l Logger) error {
		if s, ok := l.(interface{ Stopped() error }); ok {
			return s.Stopped()
		}
		return l.Err()
	})
}

// Close closes all loggers.
func (t *Tee) Close() error { return t.each(Logger.Close) }

// Reopen calls Reopen of each logger that has such a method.
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
