package migrate

import (
	"context"

	"claviger"
	"claviger/metastore"
)

// AtStart migrates at a server's start, before the server accepts requests. If another process on the same
// metastore migrates, AtStart waits for its end and does the remaining work, usually none.
//
// A source that cannot be read stops the start, unless an earlier run from it was complete: then the keys are
// here, and an unreachable source must not stop a cluster. Keys that cannot be migrated stop the start too: the
// error (kind Invalid) names each with its cure.
func (e *Engine) AtStart(ctx context.Context) (*Result, error) {
	const op = "migrate.AtStart"
	if e.cfg.Source == nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "",
			"%s is true, but there is nothing to migrate from: set %s to the old KMS (kms://https@HOST:PORT/kms) in "+
				"kms-site.xml, or name it second in %s; or set %s to false",
			propInitiate, propSource, propProvider, propInitiate)
	}
	held, unlock, ok, err := metastore.Hold(ctx, e.cfg.Store, LockName, false)
	if err == nil && !ok {
		e.log.Info("migration: another process is migrating into this metastore; waiting for its end")
		held, unlock, _, err = metastore.Hold(ctx, e.cfg.Store, LockName, true)
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := e.run(held, nil)
	if err != nil {
		if r := e.completeBefore(ctx, err); r != nil {
			e.log.Warn("migration: the source cannot be read; the server starts, because an earlier run took over all "+
				"of its keys",
				"source", e.cfg.Source.URI(), "run", r.Run.Name, "err", err,
				"cure", "set "+propInitiate+" to false now that the migration is complete")
			return r, nil
		}
		return nil, err
	}
	for _, k := range r.Keys {
		if k.State == Deleted {
			e.log.Warn("migration: a key of the source is left out", "key", k.Key, "why", k.Why)
		}
		if k.State == Done && k.Why != "" {
			e.log.Warn("migration: a key that was migrated has changed at the source", "key", k.Key, "why", k.Why)
		}
	}
	if err := r.Err(); err != nil {
		return r, claviger.Errorf(op, claviger.Invalid, "", "%w\nCure these, or set %s to false to start without them",
			err, propInitiate)
	}
	e.log.Info("migration: complete", "source", r.Run.Source, "run", r.Run.Name, "keys", r.Counts.Total, "newVersions",
		r.Counts.NewVersions, "changed", r.Changed, "took", r.Took,
		"next", "set "+propInitiate+" to false, re-encrypt the zones, then: claviger migrate finish")
	return r, nil
}

// completeBefore returns the last run from the source, if that run is complete and err means that the source
// cannot be read.
func (e *Engine) completeBefore(ctx context.Context, err error) *Result {
	if !claviger.Is(err, claviger.SourceUnreachable) && !claviger.Is(err, claviger.SourceRefused) {
		return nil
	}
	h, err := e.read(ctx, e.cfg.Source.URI())
	if err != nil || h.last() == nil || h.last().State != Complete && h.last().State != Finished {
		return nil
	}
	w := &work{e: e}
	for _, key := range h.order {
		w.items = append(w.items, h.items[key])
	}
	return w.result(*h.last(), false, 0)
}
