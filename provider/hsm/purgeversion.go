package hsm

import (
	"context"
	"time"

	"claviger"
	"claviger/metastore"
)

// Replaced returns when the version that followed a version of a key was made. Kinds KeyNotFound; VersionNotFound;
// Invalid for the newest version, and for a key whose newest version has no number: a removal would change the count
// of versions, from which clients compute names.
func (p *Provider) Replaced(ctx context.Context, version string) (time.Time, error) {
	const op = "hsm.Replaced"
	if err := p.ready(op, version); err != nil {
		return time.Time{}, err
	}
	ref := claviger.ParseVersion(version)
	k, err := p.key(ctx, ref.Key)
	if err != nil {
		return time.Time{}, err
	}
	return replaced(op, ref, k)
}

// replaced is Replaced of a version of k, which may be nil.
func replaced(op string, ref claviger.VersionRef, k *metastore.Key) (time.Time, error) {
	if k == nil {
		return time.Time{}, claviger.E(op, claviger.KeyNotFound, ref.Key, nil)
	}
	refs := make([]metastore.Ref, len(k.List))
	at := 0
	for i, v := range k.List {
		refs[i] = metastore.Ref{ID: v.ID, Object: v.Object}
		if v.ID == ref.ID {
			at = i
		}
	}
	if _, err := metastore.OldVersion(op, k.Name, ref.ID, refs); err != nil {
		return time.Time{}, err
	}
	if _, ok := claviger.NumberOfID(refs[len(refs)-1].ID); !ok {
		return time.Time{}, claviger.Errorf(op, claviger.Invalid, k.Name,
			"the newest version of the key has no number (it is from before versions were numbered): roll the key "+
				"first")
	}
	return k.List[at+1].Created, nil
}

// PurgeVersion destroys one old version of a key, as Purge does it with all versions: first the metastore forgets the
// version and records which object is to be destroyed. After a crash, the same call destroys it; so does the next step
// with the key, and the next start. The caller knows that no EDEK needs the version, and that no node serves it.
// Kinds are those of Replaced.
func (p *Provider) PurgeVersion(ctx context.Context, version string) error {
	const op = "hsm.PurgeVersion"
	ref := claviger.ParseVersion(version)
	ctx, unlock, err := p.lock(ctx, op, ref.Key)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.mayMake(ctx); err != nil { // before the metastore forgets the version
		return err
	}
	finished, err := p.clearPending(ctx, ref.Key, false)
	if err != nil {
		return err
	}
	k, err := p.key(ctx, ref.Key)
	if err != nil {
		return err
	}
	if _, err := replaced(op, ref, k); err != nil {
		if finished && claviger.Is(err, claviger.VersionNotFound) {
			return nil // clearPending finished an earlier call
		}
		return err
	}
	intent, err := p.store.RemoveVersion(ctx, ref.Key, ref.ID)
	if err != nil {
		return err
	}
	p.versions.Delete(version)
	return p.destroyObjects(ctx, intent)
}
