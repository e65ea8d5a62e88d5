package migrate

import (
	"context"
	"time"
)

// Obstacles returns the reasons against the end of the migration that the journal, the counters of uses and the last
// verdict show: a part of the Refusals of Finish, in the same words. Unlike Finish, it reads neither the source nor the
// HSM and writes nothing, so a page may show it as often as its readers like. Of the options, Since and NotRestarted
// count.
func (e *Engine) Obstacles(ctx context.Context, o FinishOptions) (reasons []string, err error) {
	f := &Ending{Refusals: []string{}}
	h, err := e.read(ctx, "")
	if err != nil {
		return nil, err
	}
	e.refuseNotHere(f, h)
	last := h.last()
	if last == nil {
		return f.Refusals, nil
	}
	o.Verdict, o.EDEKsDone = true, false
	busy, err := e.busy(ctx)
	switch {
	case err != nil:
		return nil, err
	case busy:
		f.refuse(migratingNow)
	default:
		if err := e.refuseRun(ctx, f, last, &o); err != nil {
			return nil, err
		}
	}
	f.refuseNotRestarted(o.NotRestarted)
	f.refuseUnsettled(h)
	if err := e.refuseConflicts(ctx, f); err != nil {
		return nil, err
	}
	if err := e.refuseUses(ctx, f, h, o.Since); err != nil {
		return nil, err
	}
	err = e.refuseEDEKs(ctx, f, h, o)
	return f.Refusals, err
}

// DefaultUnused is the time in which a source must not have been used before the migration ends.
const DefaultUnused = 24 * time.Hour
