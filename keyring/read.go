package keyring

import (
	"context"
	"maps"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/provider"
)

// Names returns all key names. The key-level rules don't guard names.
func (r *Ring) Names(ctx context.Context, c claviger.Caller) ([]string, error) {
	q, err := r.enter(ctx, &c, audit.GetKeys, nil, authz.GetKeys)
	if err != nil {
		return nil, err
	}
	names, err := r.cfg.Primary.Keys(ctx)
	if err != nil {
		return nil, err
	}
	q.ok(ctx, "", "")
	return names, nil
}

// KeysMetadata returns one entry per key in order, nil for missing ones. One
// key that the caller may not read fails the whole.
func (r *Ring) KeysMetadata(ctx context.Context, c claviger.Caller, keys []string) ([]*claviger.Metadata, error) {
	q, err := r.enter(ctx, &c, audit.GetKeysMetadata, nil, authz.GetMetadata)
	if err != nil {
		return nil, err
	}
	ms := []*claviger.Metadata{}
	if len(keys) > 0 {
		if ms, err = r.cfg.Primary.Metadata(ctx, keys...); err != nil {
			return nil, err
		}
	}
	for _, m := range ms {
		if err := q.needKey(ctx, m, authz.KeyRead); err != nil {
			return nil, err
		}
	}
	q.ok(ctx, "", "")
	return ms, nil
}

// Metadata returns nil without an error for a missing key.
func (r *Ring) Metadata(ctx context.Context, c claviger.Caller, key string) (*claviger.Metadata, error) {
	q, err := r.enter(ctx, &c, audit.GetMetadata, &key, authz.GetMetadata)
	if err != nil {
		return nil, err
	}
	m, err := r.metadata(ctx, key)
	if err != nil {
		return nil, err
	}
	if err := q.needKey(ctx, m, authz.KeyRead); err != nil {
		return nil, err
	}
	q.ok(ctx, key, "")
	if m == nil {
		return nil, nil
	}
	own := *m
	own.Attributes = maps.Clone(m.Attributes)
	return &own, nil
}

// needRead lets in who may read a key's versions. A key that does not exist is
// not guarded.
func (r *Ring) needRead(ctx context.Context, c *claviger.Caller, op audit.Op, key string) (request, error) {
	q, err := r.enter(ctx, c, op, &key, authz.Get)
	if err != nil {
		return q, err
	}
	return q, r.needKey(ctx, &q, key, authz.KeyRead)
}

// needKey asks the rules of a key that is known by its name.
func (r *Ring) needKey(ctx context.Context, q *request, key string, right authz.KeyOp) error {
	if !r.cfg.KeyAuthorization {
		return nil
	}
	m, err := r.metadata(ctx, key)
	if err != nil {
		return err
	}
	return q.needKey(ctx, m, right)
}

// Current returns nil without an error for a missing key. The caller owns the
// material, and wipes it.
func (r *Ring) Current(ctx context.Context, c claviger.Caller, key string) (*provider.KeyVersion, error) {
	q, err := r.needRead(ctx, &c, audit.GetCurrentKey, key)
	if err != nil {
		return nil, err
	}
	if err := r.epochs.catchUp(ctx, key); err != nil {
		return nil, err
	}
	v, err := r.currentVersion(ctx, key)
	missing := claviger.Is(err, claviger.KeyNotFound)
	if err != nil && !missing {
		return nil, err
	}
	q.did.version = v.Name
	q.ok(ctx, key, "")
	if missing {
		return nil, nil
	}
	v = owned(v)
	return &v, nil
}

// Version returns nil without an error for a missing version; this alone leaves
// no audit line, as in Hadoop. The caller owns the material, and wipes it. A
// version that only a source knows is told of without its material.
func (r *Ring) Version(ctx context.Context, c claviger.Caller, version string) (*provider.KeyVersion, error) {
	q, err := r.enter(ctx, &c, audit.GetKeyVersion, nil, authz.Get)
	if err != nil {
		return nil, err
	}
	q.did.version = version
	v, err := r.ownVersion(ctx, version)
	if claviger.Is(err, claviger.VersionNotFound) {
		return r.versionAtSource(ctx, &q, version)
	}
	if err != nil {
		return nil, err
	}
	if err := r.needKey(ctx, &q, v.Key, authz.KeyRead); err != nil {
		return nil, err
	}
	q.ok(ctx, v.Key, "")
	v = owned(v)
	return &v, nil
}

// Versions returns all versions of a key, oldest first; none for a missing key.
// The caller owns the materials, and wipes them.
func (r *Ring) Versions(ctx context.Context, c claviger.Caller, key string) ([]provider.KeyVersion, error) {
	q, err := r.needRead(ctx, &c, audit.GetKeyVersions, key)
	if err != nil {
		return nil, err
	}
	vs, err := r.cfg.Primary.Versions(ctx, key)
	if err != nil {
		return nil, err
	}
	q.ok(ctx, key, "")
	out := make([]provider.KeyVersion, len(vs))
	for i, v := range vs {
		out[i] = owned(v)
	}
	return out, nil
}
