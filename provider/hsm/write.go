package hsm

import (
	"context"
	"errors"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/secret"
)

// Create makes a key with one version in the HSM.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	const op = "hsm.Create"
	if err := refuseMaterial(op, spec.Name, spec.Material); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := provider.CheckSpec(op, spec); err != nil {
		return claviger.KeyVersion{}, err
	}
	m := claviger.Metadata{Name: spec.Name, Cipher: spec.Cipher, BitLength: spec.BitLength,
		Description: spec.Description, Attributes: spec.Attributes, Created: time.Now().Truncate(time.Millisecond)}
	vs, err := p.makeKey(ctx, op, opCreate, m, 1, spec.First, nil)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return vs[0], nil
}

// Import makes a key with another key's metadata and with n versions.
func (p *Provider) Import(ctx context.Context, m claviger.Metadata, n, first int,
	afterStep func(string) error) ([]claviger.KeyVersion, error) {
	const op = "hsm.Import"
	if err := provider.CheckImport(op, m.Name, n, first); err != nil {
		return nil, err
	}
	if err := provider.CheckSpec(op, provider.Spec{Name: m.Name, Cipher: m.Cipher,
		BitLength: m.BitLength}); err != nil {
		return nil, err
	}
	return p.makeKey(ctx, op, opImport, m, n, first, afterStep)
}

// Roll adds a version to a key. The HSM makes its key.
func (p *Provider) Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error) {
	return p.RollIf(ctx, key, material, provider.AllowAll)
}

// RollIf is Roll, but only if allow returns nil.
func (p *Provider) RollIf(ctx context.Context, key string, material secret.Bytes,
	allow func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	const op = "hsm.Roll"
	if err := refuseMaterial(op, key, material); err != nil {
		return claviger.KeyVersion{}, err
	}
	ctx, unlock, k, err := p.lockKey(ctx, op, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	defer unlock()
	if k == nil {
		return claviger.KeyVersion{}, p.missingKey(ctx, op, key)
	}
	if err := allow(sharedMetadata(&k.Metadata)); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.mayMake(ctx); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.holdsCurrent(ctx, op, k); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.refuseHidden(ctx, op, key, k.List, 1); err != nil {
		return claviger.KeyVersion{}, err
	}
	var v metastore.Version
	err = p.takeStep(ctx, opRoll, key, stepPlan{Bits: k.BitLength}, 1, 0, k.List[len(k.List)-1].Object,
		func(intent metastore.Intent) (err error) {
			if v, err = p.ensureObject(ctx, op, key, intent.Refs[0], k.BitLength); err != nil {
				return err
			}
			return p.store.FinishRoll(ctx, intent, v)
		})
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.cacheVersions(&k.Metadata, []metastore.Version{v})[0], nil
}

// Delete deletes a key: first in the metastore, so that no client can use it, then on the token, unless deleted keys
// are kept. If it crashes between the two, a start destroys the objects, or a sweep (sweepSteps), or the next step with
// a key of that name. If another object of the token may have been destroyed in place of the key's, Delete returns an
// error of kind Internal with an answer, although the key is deleted.
func (p *Provider) Delete(ctx context.Context, key string) error {
	return p.DeleteIf(ctx, key, provider.AllowAll)
}

// DeleteIf is Delete, but only if allow returns nil.
func (p *Provider) DeleteIf(ctx context.Context, key string, allow func(*claviger.Metadata) error) error {
	const op = "hsm.Delete"
	ctx, unlock, k, err := p.lockKey(ctx, op, key)
	if err != nil {
		return err
	}
	defer unlock()
	if k != nil {
		if err := allow(sharedMetadata(&k.Metadata)); err != nil {
			return err
		}
	}
	if p.soft {
		return p.softDelete(ctx, op, key, k)
	}
	if k != nil { // check that before the key is deleted in the metastore
		if err := p.mayDestroy(ctx); err != nil {
			return err
		}
	}
	if _, err := p.clearPending(ctx, key, true); err != nil {
		return err
	}
	if k == nil {
		return p.missingKey(ctx, op, key)
	}
	intent, err := p.store.Remove(ctx, key)
	if err != nil {
		return err
	}
	// From here on no client can use the key. Its objects can still be destroyed later, by sweepSteps.
	err = p.destroyObjects(ctx, intent)
	if errors.Is(err, pkcs11.ErrOtherDestroyed) {
		return err
	}
	if err != nil {
		p.log.Warn("a deleted key's objects are still on the token; claviger tries again", "key", key, "err", err,
			"in", watchPause)
	}
	return nil
}

// refuseMaterial refuses key material that a client sends.
func refuseMaterial(op, key string, material secret.Bytes) error {
	if material == nil {
		return nil
	}
	return claviger.Errorf(op, claviger.Unsupported, key, "key material cannot be put into an HSM, where keys are "+
		"made and stay: create or roll key %q without material", key)
}
