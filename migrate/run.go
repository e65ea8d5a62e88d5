package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/metastore"
)

// giveUpAfter is the number of keys in a row that may fail because the target is unreachable; then the run ends.
// Without this limit, each of a thousand keys would wait for its own timeout.
const giveUpAfter = 3

// Result is the result of a run.
type Result struct {
	Format string `json:"format"` // "claviger migrate run 1"
	Run    Run    `json:"migration"`
	// Changed is false if no work was left.
	Changed bool      `json:"changed"`
	Took    string    `json:"took"`
	Keys    []KeyLine `json:"keys"`
	Counts  Counts    `json:"counts"`
}

// Complete reports whether every key of the source is at the target.
func (r *Result) Complete() bool { return r.Run.State == Complete || r.Run.State == Finished }

// KeyLine is one key in a report.
type KeyLine struct {
	Key   string `json:"key"`
	State State  `json:"state"`
	// Listed is the source's spelling of the name, if it differs. Folded: the source answers to every
	// spelling.
	Listed string `json:"listed,omitempty"`
	Folded bool   `json:"folded,omitempty"`
	// Versions is the number of versions that the target has made, or would make.
	Versions       int      `json:"versions"`
	Source         *Fields  `json:"source,omitempty"` // nil if it could not be read
	SourceVersions []string `json:"sourceVersions,omitempty"`
	TargetVersions []string `json:"targetVersions,omitempty"`
	// Why is the reason why the key was not imported, with the cure; or a remark.
	Why string `json:"why,omitempty"`
}

func lineOf(it Item) KeyLine {
	l := KeyLine{Key: it.Key, State: it.State, Listed: it.Listed, Folded: it.Folded, Versions: it.Count,
		SourceVersions: it.SourceVersions, TargetVersions: it.TargetVersions, Why: it.Why}
	if it.State != Refused && it.State != Unreadable {
		l.Source = &it.Source
	}
	return l
}

// Counts sums up keys by state.
type Counts struct {
	Total       int `json:"total"`
	Planned     int `json:"planned"` // importing included
	Done        int `json:"done"`    // deleted here since included
	Deleted     int `json:"deleted,omitempty"`
	Lost        int `json:"lost,omitempty"`  // given up on the token
	Blocked     int `json:"blocked"`         // conflict, unsupported, refused, unreadable, failed
	Freed       int `json:"freed,omitempty"` // deleted here, and their names freed
	Gone        int `json:"gone"`            // no longer listed by the source, and never taken over
	NewVersions int `json:"newVersions"`     // HSM keys that were made or would be made
}

func (c *Counts) add(it Item) {
	c.Total++
	switch it.State {
	case Planned, Importing:
		c.Planned++
		c.NewVersions += it.Count
	case Deleted:
		c.Deleted++
		c.Done++
	case Done:
		c.Done++
	case Lost:
		c.Lost++
	case Gone:
		c.Gone++
	case NameFreed:
		c.Freed++
	default:
		c.Blocked++
	}
}

// Run imports every key of the source that is not at the target yet. It may be called again at any time: it
// repeats no finished work, continues work that was begun, and imports keys that are new at the source.
//
// A key that cannot be imported does not stop the others: the error is nil, and the result has the reason.
// Kinds: Invalid without a source, Unavailable if another process migrates, SourceUnreachable,
// SourceRefused.
func (e *Engine) Run(ctx context.Context) (*Result, error) {
	const op = "migrate.Run"
	if e.cfg.Source == nil {
		return nil, e.noSource(ctx, op)
	}
	ctx, unlock, ok, err := metastore.Hold(ctx, e.cfg.Store, LockName, false)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, claviger.Errorf(op, claviger.Unavailable, "",
			"another process is migrating into this metastore now; wait for its end, and see claviger migrate status")
	}
	defer unlock()
	r, err := e.run(ctx, nil)
	if err != nil {
		return nil, err
	}
	return r, e.inConflict(ctx, r)
}

// inConflict marks the keys in the result for which a server has found a conflict, even if the source counts
// fewer versions now. The journal keeps such a key as done.
func (e *Engine) inConflict(ctx context.Context, r *Result) error {
	conflicts, err := e.conflictsOf(ctx)
	if err != nil {
		return err
	}
	for i := range r.Keys {
		k := &r.Keys[i]
		c, ok := conflicts[k.Key]
		if !ok || k.State != Done {
			continue
		}
		k.State, k.Why = Conflict, c.Why
		r.Run.State = Incomplete
		r.Counts.Done--
		r.Counts.Blocked++
	}
	return nil
}

// run is Run under the lock. only, if not nil, chooses the keys to import; the others stay planned.
func (e *Engine) run(ctx context.Context, only func(*Item) bool) (*Result, error) {
	began := e.cfg.Now()
	sv, err := e.survey(ctx, "migrate.Run")
	if err != nil {
		return nil, err
	}
	if err := e.needAdopted(sv); err != nil {
		return nil, err
	}
	if err := e.recordDuplicates(ctx, sv.duplicates); err != nil {
		return nil, err
	}
	w := &work{e: e, items: append(sv.items, sv.unlistedSince()...), only: only}
	if w.nothingNew(sv.history) {
		return w.result(*sv.history.last(), false, e.cfg.Now().Sub(began)), nil
	}
	if err := w.begin(ctx, sv.history); err != nil {
		return nil, err
	}
	err = w.importAll(ctx)
	if err == nil {
		err = w.end(ctx)
	}
	if err != nil {
		return nil, err
	}
	return w.result(w.run, true, e.cfg.Now().Sub(began)), nil
}

// work is the part of a run that one process does.
type work struct {
	e     *Engine
	run   Run
	items []Item
	only  func(*Item) bool // nil: all

	mu       sync.Mutex // guards the fields below, and is held during a callback
	progress Progress
	// unreachable counts failures in a row because the target is unreachable.
	unreachable int
}

// nothingNew reports whether the journal's newest record of every key matches the survey, and the last run has ended.
func (w *work) nothingNew(h *history) bool {
	last := h.last()
	if last == nil || last.State == Running || last.State == Incomplete {
		return false
	}
	for _, it := range w.items {
		if it.State == Planned || it.State == Importing {
			return false // Finish has recorded it
		}
		if before, known := h.items[it.Key]; !known || before.State != it.State || before.Folded != it.Folded {
			return false
		}
	}
	return true
}

// begin records the run and each key in it.
func (w *work) begin(ctx context.Context, h *history) error {
	if open := h.open(); open != nil {
		w.run = *open
		w.run.State, w.run.Ended = Running, nil
		w.run.Resumed++
		w.run.Host = w.e.cfg.Host
	} else {
		w.run = w.e.newRun(h)
	}
	if err := w.e.putRun(ctx, w.run); err != nil {
		return err
	}
	if err := w.step("", "begun"); err != nil {
		return err
	}
	for i := range w.items {
		it := &w.items[i]
		if err := w.e.skip(ctx, *it); err != nil {
			return err
		}
		if w.imports(it) {
			w.progress.KeysTotal++
			w.progress.VersionsTotal += it.Count
		}
		if it.State == Done { // older versions of claviger wrote no alias
			if err := w.e.alias(ctx, it); err != nil {
				return err
			}
		}
		before, known := h.items[it.Key]
		if known && before.State == it.State && before.Folded == it.Folded && before.Run != w.run.Name &&
			it.State == Done {
			it.Run = before.Run // an earlier run imported it, and the record of that run stays the only one
			continue
		}
		if known && before.Run == w.run.Name && before.State == it.State && before.Folded == it.Folded &&
			before.Why == it.Why {
			continue
		}
		if err := w.e.putItem(ctx, w.run.Name, *it); err != nil {
			return err
		}
		if err := w.step(it.Key, string(it.State)); err != nil {
			return err
		}
	}
	return nil
}

// importAll imports the planned keys. Its error comes from the journal, from a context that ended, or from OnStep; the
// error of a single key is in its item.
func (w *work) importAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(w.e.cfg.Parallel)
	for i := range w.items {
		it := &w.items[i]
		if !w.imports(it) {
			continue
		}
		if ctx.Err() != nil || w.givenUp() {
			break
		}
		g.Go(func() error { return w.importOne(ctx, it) })
	}
	return g.Wait()
}

// imports reports whether this run imports the item.
func (w *work) imports(it *Item) bool {
	return (it.State == Planned || it.State == Importing) && (w.only == nil || w.only(it))
}

func (w *work) givenUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unreachable >= giveUpAfter
}

// importOne imports one key, and records before and after that in the journal.
func (w *work) importOne(ctx context.Context, it *Item) error {
	e := w.e
	it.State, it.Why = Importing, ""
	if it.Started == nil {
		it.Started = ptr(e.now())
	}
	if err := e.putItem(ctx, w.run.Name, *it); err != nil {
		return err
	}
	if err := w.step(it.Key, "importing"); err != nil {
		return err
	}
	err, stop := w.makeKey(ctx, it)
	if stop != nil {
		return stop
	}
	if ctx.Err() != nil {
		return stopped(ctx, "migrate.Run", it.Key)
	}
	w.mu.Lock()
	if claviger.Is(err, claviger.Unavailable) {
		w.unreachable++
	} else {
		w.unreachable = 0
	}
	w.mu.Unlock()
	it.Ended = ptr(e.now())
	switch {
	case err == nil:
		it.State = Done
		if it.Retaken {
			it.Count, it.Adopted = len(it.TargetVersions), true
		}
	case claviger.Is(err, claviger.KeyExists):
		it.State = Conflict
		it.Why = "a key of that name was made here while the migration ran; run the migration again to see how it " +
			"differs"
	default:
		it.State = Failed
		it.Why = claviger.Reason(err)
		e.log.Error("migration: key could not be imported", "key", it.Key, "err", err)
	}
	if err := e.putItem(ctx, w.run.Name, *it); err != nil {
		return err
	}
	w.mu.Lock()
	w.progress.Keys++
	w.progress.Versions += it.Count
	w.mu.Unlock()
	return w.step(it.Key, string(it.State))
}

// makeKey makes the key at the target, or retakes an adopted one, and audits that. err is the target's error,
// stop that of OnStep.
func (w *work) makeKey(ctx context.Context, it *Item) (err, stop error) {
	e := w.e
	if err := e.alias(ctx, it); err != nil {
		return err, nil
	}
	if err := e.auditBegin(ctx, it.Key); err != nil {
		return err, nil
	}
	m := claviger.Metadata{Name: it.Key, Cipher: it.Source.Cipher, BitLength: it.Source.Length,
		Description: it.Source.Description,
		Attributes:  it.Source.Attributes, Created: it.Source.Created, Versions: it.Count}
	if it.Retaken {
		if err = e.retake(ctx, m); err == nil {
			stop = w.step(it.Key, "retaken")
		}
	} else {
		var versions []claviger.KeyVersion
		versions, err = e.cfg.Target.Import(ctx, m, it.Count, it.First, func(step string) error {
			stop = w.step(it.Key, step)
			return stop
		})
		it.TargetVersions = append(it.TargetVersions, namesOf(versions)...)
	}
	e.auditEnd(ctx, it.Key, it.TargetVersions, err)
	return err, stop
}

// alias lets any spelling of its name find the key, if the source does so.
func (e *Engine) alias(ctx context.Context, it *Item) error {
	if !it.Folded {
		return nil
	}
	return metastore.SetAlias(ctx, e.cfg.Store, it.Key)
}

// end records the end of the run.
func (w *work) end(ctx context.Context) error {
	w.run.State = Complete
	for _, it := range w.items {
		if !it.State.settled() {
			w.run.State = Incomplete
		}
	}
	w.run.Ended = ptr(w.e.now())
	if err := w.e.putRun(ctx, w.run); err != nil {
		return err
	}
	return w.step("", string(w.run.State))
}

// step calls the callbacks after a durable step.
func (w *work) step(key, step string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress.Key, w.progress.Step = key, step
	if w.e.cfg.Progress != nil {
		w.e.cfg.Progress(w.progress)
	}
	if w.e.cfg.OnStep != nil {
		return w.e.cfg.OnStep(key, step)
	}
	return nil
}

func (w *work) result(run Run, changed bool, took time.Duration) *Result {
	r := &Result{Format: "claviger migrate run 1", Run: run, Changed: changed,
		Took: took.Round(time.Millisecond).String(), Keys: []KeyLine{}}
	for _, it := range w.items {
		r.Keys = append(r.Keys, lineOf(it))
		r.Counts.add(it)
		if changed && it.State == Done && !it.Adopted && it.Run == "" {
			r.Counts.NewVersions += len(it.TargetVersions)
		}
	}
	return r
}

// Err returns nil for a complete result. Otherwise it returns an error that names the keys which could not be
// migrated, for a server's start.
func (r *Result) Err() error {
	if r.Complete() {
		return nil
	}
	const named = 5
	var text string
	n := 0
	for _, k := range r.Keys {
		if k.State.settled() {
			continue
		}
		if n++; n <= named {
			why := k.Why
			if why == "" {
				why = "not begun, because the target could not be reached for the keys before it"
			}
			text += fmt.Sprintf("\n  key %s (%s): %s", claviger.Printable(k.Key), k.State, why)
		}
	}
	if n > named {
		text += fmt.Sprintf("\n  and %d more: see claviger migrate plan", n-named)
	}
	return claviger.E("migrate.Run", claviger.Invalid, "",
		errors.New(fmt.Sprintf("%d of %d keys of %s could not be migrated:", n, r.Counts.Total, r.Run.Source)+text))
}
