package migrate

import (
	"context"

	"claviger"
	"claviger/metastore"
)

// SourceMetadata returns the source's metadata of one key. Kinds: KeyNotFound, SourceUnreachable,
// SourceRefused.
func (e *Engine) SourceMetadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	const op = "migrate.SourceMetadata"
	if e.cfg.Source == nil {
		return nil, e.noSource(ctx, op)
	}
	ms, err := e.cfg.Source.Metadata(ctx, key)
	if err != nil {
		return nil, e.sourceError(ctx, op, key, err)
	}
	if len(ms) != 1 || ms[0] == nil {
		return nil, claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	return ms[0], nil
}

// RunKey is Run for one key. It returns the names of the target's versions that replace the source's, oldest first. The
// journal records the other keys as planned; the next Run imports them. A key that is here already is not an error.
// Kinds, besides those of Run: KeyNotFound if the source does not have the key; Invalid, with the cure, if the key
// cannot be taken over.
func (e *Engine) RunKey(ctx context.Context, key string) ([]string, error) {
	const op = "migrate.RunKey"
	if e.cfg.Source == nil {
		return nil, e.noSource(ctx, op)
	}
	held, unlock, ok, err := metastore.Hold(ctx, e.cfg.Store, LockName, false)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, claviger.Errorf(op, claviger.Unavailable, key,
			"a migration into this metastore is under way; try again when it has ended")
	}
	defer unlock()
	requested := func(name string, folded bool) bool {
		return name == key || folded && claviger.FoldName(name) == claviger.FoldName(key)
	}
	r, err := e.run(held, func(it *Item) bool { return requested(it.Key, it.Folded) })
	if err != nil {
		return nil, err
	}
	for _, k := range r.Keys {
		if !requested(k.Key, k.Folded) {
			continue
		}
		if k.State == Done {
			return k.TargetVersions, nil
		}
		return nil, claviger.Errorf(op, claviger.Invalid, key, "key %s is not taken over (%s): %s",
			claviger.Printable(key), k.State, k.Why)
	}
	return nil, claviger.E(op, claviger.KeyNotFound, key, nil)
}
