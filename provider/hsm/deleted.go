package hsm

import (
	"context"
	"maps"
	"slices"
	"strings"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
)

// PropertySoftDelete says whether Delete keeps a key until it is purged. Open reads it. Without it, Delete destroys the
// key.
const PropertySoftDelete = "claviger.delete.soft"

func softDelete(env provider.Env) (bool, error) {
	soft, err := env.Bool(PropertySoftDelete, false)
	if err != nil {
		return false, claviger.E("hsm.Open", claviger.Invalid, "", err)
	}
	return soft, nil
}

// softDelete hides a key from clients and leaves its objects on the token. If an interrupted roll has made a version,
// softDelete finishes the roll first, so that the version comes back with the others. k is nil if there is no key. The
// key's lock is held.
func (p *Provider) softDelete(ctx context.Context, op, key string, k *metastore.Key) error {
	pending, err := p.store.Pending(ctx, key)
	if err != nil {
		return err
	}
	for _, i := range pending {
		switch {
		case i.Op == opDelete:
			err = p.destroyObjects(ctx, i)
		case i.Op == opRoll && k != nil:
			if _, err = p.finishStep(ctx, op, i, k, stepPlan{}); err == nil {
				k, err = p.key(ctx, key)
			}
		}
		if err != nil {
			return err
		}
	}
	if k == nil {
		return p.missingKey(ctx, op, key)
	}
	if err := p.store.SoftDelete(ctx, k.Name); err != nil {
		return err
	}
	for _, v := range k.List {
		p.versions.Delete(claviger.VersionName(k.Name, v.ID))
	}
	return nil
}

// Deleted returns the keys that were deleted and whose objects are still on the token.
func (p *Provider) Deleted(ctx context.Context, names ...string) ([]provider.Deleted, error) {
	if err := p.ready("hsm.Deleted", ""); err != nil {
		return nil, err
	}
	keys, err := p.store.DeletedKeys(ctx, names...)
	if err != nil {
		return nil, err
	}
	list := make([]provider.Deleted, len(keys))
	for i, k := range keys {
		d := provider.Deleted{Metadata: k.Metadata, Since: k.Since}
		if d.Attributes = maps.Clone(k.Attributes); d.Attributes == nil {
			d.Attributes = map[string]string{}
		}
		for _, v := range versionsOf(&k.Key) {
			d.List = append(d.List, v.Name)
		}
		list[i] = d
	}
	return list, nil
}

// Undelete brings back the deleted key that has the version. It refuses if the token no longer holds all versions of
// the key with the right check values.
func (p *Provider) Undelete(ctx context.Context, key, version string) error {
	const op = "hsm.Undelete"
	ctx, unlock, k, err := p.lockKey(ctx, op, key)
	if err != nil {
		return err
	}
	defer unlock()
	if k != nil {
		return claviger.E(op, claviger.KeyExists, key, nil)
	}
	id, ok := strings.CutPrefix(version, key+"@")
	if !ok {
		return claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	keys, err := p.store.DeletedKeys(ctx, key)
	if err != nil {
		return err
	}
	for _, k := range slices.Backward(keys) {
		if !slices.ContainsFunc(k.List, func(v metastore.Version) bool { return v.ID == id }) {
			continue
		}
		if err := p.verifyDeleted(ctx, k); err != nil {
			return err
		}
		if _, err := p.clearPending(ctx, key, false); err != nil {
			return err
		}
		return p.store.Undelete(ctx, key, id)
	}
	return claviger.E(op, claviger.KeyNotFound, key, nil)
}

// verifyDeleted compares the check values of a deleted key's versions.
func (p *Provider) verifyDeleted(ctx context.Context, k metastore.DeletedKey) error {
	for _, v := range k.List {
		e, err := newEntry(&k.Metadata, v)
		if err != nil {
			return err
		}
		err = p.verify(ctx, e)
		p.refused.Delete(e.name) // no client can ask for a deleted version, so CheckKeys need not name it
		if claviger.Is(err, claviger.KeyNotFound) {
			return claviger.Errorf("hsm.Undelete", claviger.Unavailable, e.name,
				"%w; the metastore knows it, as a version of a deleted key: is this the right token, and was it "+
					"restored whole?", err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Purge destroys the objects of the deleted keys that have these versions. First the metastore forgets the keys and
// records which objects are to be destroyed. After a crash, the same call destroys the rest; so does the next step with
// a key of that name, and the next start. Purge destroys nothing while token and store do not fit together.
func (p *Provider) Purge(ctx context.Context, key string, versions ...string) error {
	const op = "hsm.Purge"
	ctx, unlock, err := p.lock(ctx, op, key)
	if err != nil {
		return err
	}
	defer unlock()
	// Another store may use the objects by now.
	if err := p.mayMake(ctx); err != nil {
		return err
	}
	finished, err := p.clearPending(ctx, key, false)
	if err != nil {
		return err
	}
	var ids []string
	for _, v := range versions {
		if id, ok := strings.CutPrefix(v, key+"@"); ok {
			ids = append(ids, id)
		}
	}
	intent, err := p.store.Discard(ctx, key, ids...)
	if finished && claviger.Is(err, claviger.KeyNotFound) {
		return nil // clearPending finished an earlier purge or deletion
	}
	if err != nil {
		return err
	}
	return p.destroyObjects(ctx, intent)
}

// clearPending ends the interrupted steps with a key of that name, and finishes an earlier deletion or purge. If
// destroy is true it destroys what the other steps have made. finished reports whether it finished a deletion or purge.
// The key's lock is held.
func (p *Provider) clearPending(ctx context.Context, key string, destroy bool) (finished bool, err error) {
	pending, err := p.store.Pending(ctx, key)
	if err != nil {
		return false, err
	}
	for _, i := range pending {
		if destroy {
			err = p.destroyObjects(ctx, i)
		} else {
			err = p.endStep(ctx, i)
		}
		if err != nil {
			return false, err
		}
		finished = i.Op == opDelete
	}
	return finished, nil
}
