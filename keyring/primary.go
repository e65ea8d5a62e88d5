package keyring

import (
	"context"
	"slices"
	"time"

	"claviger"
	"claviger/eek"
	"claviger/provider"
	"claviger/secret"
)

// primary is the primary provider with its optional abilities. newPrimary finds them out once; the rest of the package
// does not distinguish kinds of providers.
type primary struct {
	provider.Provider
	crypter
	scheme string // of the provider's URI
	// makesEDEKs: fresh EDEKs are made here. Another KMS makes its own.
	makesEDEKs bool
	// reuses: a version of another key may get the name of a deleted key's version.
	reuses bool
	soft   provider.SoftDeleter // nil: a deleted key is gone
	strict provider.Conditional // nil: the rules of a key cannot be checked in the step that changes it
	facts  provider.Describer   // nil: only a version's name is known
	health provider.Health      // nil: it cannot fail by itself
	losses provider.Losses      // nil: it does not report losses
}

// newPrimary makes the primary. check is the check of its re-encryptions. If lease is above 0, fresh EDEKs are implied,
// under leases of that length.
func newPrimary(p provider.Provider, check eek.SelfCheck, lease time.Duration) (primary, error) {
	c, err := crypterOf(p, true, check)
	if err != nil {
		return primary{}, err
	}
	if lease > 0 {
		service, makes := c.(*eek.Service)
		leaser, leases := p.(provider.Leaser)
		if !makes || !leases {
			return primary{}, claviger.Errorf("keyring.New", claviger.Internal, "", "provider %s gives no leases",
				p.URI())
		}
		service.Imply(func(ctx context.Context, version string) error { return leaser.Lease(ctx, version, lease) })
	}
	r := primary{Provider: p, crypter: c, scheme: schemeOf(p)}
	_, r.makesEDEKs = p.(provider.BlockEncrypter)
	_, r.reuses = p.(provider.Pinned)
	r.soft, _ = p.(provider.SoftDeleter)
	r.strict, _ = p.(provider.Conditional)
	r.facts, _ = p.(provider.Describer)
	r.health, _ = p.(provider.Health)
	r.losses, _ = p.(provider.Losses)
	return r, nil
}

// rollIf adds a version, if may allows that in the same step. If the provider cannot call may there, may is not called.
func (p *primary) rollIf(ctx context.Context, key string, material secret.Bytes,
	may func(*claviger.Metadata) error) (_ claviger.KeyVersion, err error) {
	ctx, span := p.step(ctx, "provider.Roll")
	defer span.EndWith(&err)
	if p.strict == nil {
		return p.Roll(ctx, key, material)
	}
	return p.strict.RollIf(ctx, key, material, may)
}

// deleteIf is rollIf for a deletion.
func (p *primary) deleteIf(ctx context.Context, key string, may func(*claviger.Metadata) error) (err error) {
	ctx, span := p.step(ctx, "provider.Delete")
	defer span.EndWith(&err)
	if p.strict == nil {
		return p.Delete(ctx, key)
	}
	return p.strict.DeleteIf(ctx, key, may)
}

// keepsDeleted reports whether deleted keys are kept.
func (p *primary) keepsDeleted() bool { return p.soft != nil }

// deletedOf returns the deleted keys of that name, in the order of their deletion. If version is not "", it returns
// only the key that has this version. It returns none if deleted keys are not kept.
func (p *primary) deletedOf(ctx context.Context, key, version string) ([]provider.Deleted, error) {
	if p.soft == nil {
		return nil, nil
	}
	keys, err := p.soft.Deleted(ctx, key)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(keys, func(k provider.Deleted) bool {
		return k.Name != key || version != "" && !slices.Contains(k.List, version)
	}), nil
}

// softDeleter returns the interface to deleted keys. Kind Unsupported if they are not kept.
func (p *primary) softDeleter(op, key string) (provider.SoftDeleter, error) {
	if p.soft == nil {
		return nil, claviger.Errorf(op, claviger.Unsupported, key,
			"the provider %s destroys a key when it is deleted, so that there is nothing to undelete or purge", p.URI())
	}
	return p.soft, nil
}

// describe returns the facts about a key's versions, oldest first.
func (p *primary) describe(ctx context.Context, key string) ([]provider.VersionFacts, error) {
	if p.facts != nil {
		return p.facts.Describe(ctx, key)
	}
	names, err := p.versionNames(ctx, key)
	facts := make([]provider.VersionFacts, len(names))
	for i, name := range names {
		facts[i].Name = name
	}
	return facts, err
}

// versionNames returns the full names of a key's versions, oldest first.
func (p *primary) versionNames(ctx context.Context, key string) ([]string, error) {
	versions, err := p.Versions(ctx, key)
	names := make([]string, len(versions))
	for i := range versions {
		versions[i].Material.Wipe()
		names[i] = versions[i].Name
	}
	return names, err
}

// onLost registers f. It is called with the name of a key when the provider finds that a version of the key is lost.
func (p *primary) onLost(f func(key string)) {
	if p.losses != nil {
		p.losses.OnLost(f)
	}
}

// check makes one cheap round trip to the provider's backend, if there is one.
func (p *primary) check(ctx context.Context) error {
	if p.health == nil {
		return nil
	}
	return p.health.Check(ctx)
}
