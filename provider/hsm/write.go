package hsm

import (
	"context"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/secret"
)

// Create makes a key in the HSM.
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
	vs, err := p.make(ctx, op, opCreate, m, 1, spec.First, nil)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	return vs[0], nil
}

// Import makes a key after another's metadata, with n versions.
func (p *Provider) Import(ctx context.Context, m claviger.Metadata, n, first int,
	step func(string) error) ([]claviger.KeyVersion, error) {
	const op = "hsm.Import"
	if err := provider.CheckImport(op, m.Name, n, first); err != nil {
		return nil, err
	}
	if err := provider.CheckSpec(op, provider.Spec{Name: m.Name, Cipher: m.Cipher,
		BitLength: m.BitLength}); err != nil {
		return nil, err
	}
	return p.make(ctx, op, opImport, m, n, first, step)
}

// Roll adds a version that the HSM makes.
func (p *Provider) Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error) {
	return p.RollIf(ctx, key, material, provider.Anyway)
}

// RollIf is Roll where may allows it.
func (p *Provider) RollIf(ctx context.Context, key string, material secret.Bytes,
	may func(*claviger.Metadata) error) (claviger.KeyVersion, error) {
	const op = "hsm.Roll"
	if err := refuseMaterial(op, key, material); err != nil {
		return claviger.KeyVersion{}, err
	}
	ctx, unlock, err := p.lock(ctx, op, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	defer unlock()
	k, err := p.key(ctx, key)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	if k == nil {
		return claviger.KeyVersion{}, p.noKey(ctx, op, key)
	}
	if err := may(shared(&k.Metadata)); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.mayMake(ctx); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.holdsCurrent(ctx, op, k); err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.unhide(ctx, op, key, k.List, 1); err != nil {
		return claviger.KeyVersion{}, err
	}
	intent, err := p.begin(ctx, opRoll, key, plan{Bits: k.BitLength}, 1, 0, k.List[len(k.List)-1].Object)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	v, err := p.ensure(ctx, op, key, intent.Refs[0], k.BitLength)
	if err != nil {
		return claviger.KeyVersion{}, err
	}
	if err := p.store.Append(ctx, key, v); err != nil {
		return claviger.KeyVersion{}, err
	}
	return p.remember(&k.Metadata, []metastore.Version{v})[0], nil
}

// Delete ends a key: first in the metastore, so that nobody uses it, then on the
// token, unless deleted keys are kept. What a crash leaves in between is destroyed at the next start, or by the
// next step with a key of that name.
func (p *Provider) Delete(ctx context.Context, key string) error {
	return p.DeleteIf(ctx, key, provider.Anyway)
}

// DeleteIf is Delete where may allows it.
func (p *Provider) DeleteIf(ctx context.Context, key string, may func(*claviger.Metadata) error) error {
	const op = "hsm.Delete"
	ctx, unlock, err := p.lock(ctx, op, key)
	if err != nil {
		return err
	}
	defer unlock()
	k, err := p.key(ctx, key)
	if err != nil {
		return err
	}
	if k != nil {
		if err := may(shared(&k.Metadata)); err != nil {
			return err
		}
	}
	if p.soft {
		return p.shelve(ctx, op, key, k)
	}
	if k != nil { // before it is gone for everybody
		if err := p.mayDestroy(ctx); err != nil {
			return err
		}
	}
	if _, err := p.clearPending(ctx, key, true); err != nil {
		return err
	}
	if k == nil {
		return p.noKey(ctx, op, key)
	}
	intent, err := p.store.Remove(ctx, key)
	if err != nil {
		return err
	}
	// From here on the key is gone for everybody; that its objects are, too, is
	// house-keeping that may be finished later.
	if err := p.clear(ctx, intent); err != nil {
		p.log.Warn("a deleted key's objects are still on the token; they are destroyed at the next start", "key", key,
			"err", err)
	}
	return nil
}

// refuseMaterial is the answer to given material.
func refuseMaterial(op, key string, material secret.Bytes) error {
	if material == nil {
		return nil
	}
	return claviger.Errorf(op, claviger.Unsupported, key, "key material cannot be put into an HSM, where keys are "+
		"made and stay: create or roll key %q without material", key)
}
