package keyring

import (
	"context"
	"maps"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/trace"
)

// Names returns all key names. The key-level rules do not guard names.
func (r *Ring) Names(ctx context.Context, c claviger.Caller) (_ []string, err error) {
	ctx, span := trace.Start(ctx, "keyring.Names")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GetKeys, nil, authz.GetKeys)
	if err != nil {
		return nil, err
	}
	names, err := r.primary.Keys(ctx)
	if err != nil {
		return nil, err
	}
	q.ok(ctx, "", "")
	return names, nil
}

// KeysMetadata returns one entry for each key, in order, nil for missing keys. If the caller may not read one of the
// keys, the whole request fails.
func (r *Ring) KeysMetadata(ctx context.Context, c claviger.Caller, keys []string) (_ []*claviger.Metadata, err error) {
	ctx, span := trace.Start(ctx, "keyring.KeysMetadata")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GetKeysMetadata, nil, authz.GetMetadata)
	if err != nil {
		return nil, err
	}
	ms := []*claviger.Metadata{}
	if len(keys) > 0 {
		if ms, err = r.primary.Metadata(ctx, keys...); err != nil {
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
func (r *Ring) Metadata(ctx context.Context, c claviger.Caller, key string) (_ *claviger.Metadata, err error) {
	ctx, span := trace.Start(ctx, "keyring.Metadata")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GetMetadata, &key, authz.GetMetadata)
	if err != nil {
		return nil, err
	}
	m, err := r.metadataHere(ctx, key)
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
	own.Name = key // in the spelling of the request: clients compare it
	own.Attributes = maps.Clone(m.Attributes)
	return &own, nil
}

// needKey checks the rules of a key by its name, for operations that show nothing of the key.
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

// needVersion checks the rules of the key to which the version belonged when it was read.
func (q *request) needVersion(ctx context.Context, v *claviger.KeyVersion, right authz.KeyOp) error {
	of := v.Of
	if of == nil {
		of = &claviger.Metadata{Name: v.Key}
	}
	return q.needKey(ctx, of, right)
}

// Current returns a key's current version; nil without an error for a missing key, which no rule guards. The rules
// are those of the key in the same reading. The caller owns the material, and wipes it.
func (r *Ring) Current(ctx context.Context, c claviger.Caller, key string) (_ *claviger.KeyVersion, err error) {
	ctx, span := trace.Start(ctx, "keyring.Current")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GetCurrentKey, &key, authz.Get)
	if err != nil {
		return nil, err
	}
	v, err := r.newest(ctx, key)
	if claviger.Is(err, claviger.KeyNotFound) {
		q.ok(ctx, key, "")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := q.needVersion(ctx, &v, authz.KeyRead); err != nil {
		return nil, err
	}
	q.did.version = v.Name
	q.ok(ctx, key, "")
	v = owned(v)
	return &v, nil
}

// Version returns the version of that full name; nil without an error for a missing version. As in Hadoop, this is the
// only case without an audit line. The caller owns the material, and wipes it. A version that only a source knows is
// returned without its material.
func (r *Ring) Version(ctx context.Context, c claviger.Caller, version string) (_ *claviger.KeyVersion, err error) {
	ctx, span := trace.Start(ctx, "keyring.Version")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GetKeyVersion, nil, authz.Get)
	if err != nil {
		return nil, err
	}
	q.did.version = version
	v, err := r.ownVersion(ctx, version)
	if claviger.Is(err, claviger.VersionNotFound) {
		return r.versionAtSource(ctx, &q, claviger.ParseVersion(version))
	}
	if err != nil {
		return nil, err
	}
	if err := q.needVersion(ctx, &v, authz.KeyRead); err != nil {
		return nil, err
	}
	q.ok(ctx, v.Key, "")
	v = owned(v)
	return &v, nil
}

// Versions returns all versions of a key, oldest first; none for a missing key.
// The caller owns the materials, and wipes them.
func (r *Ring) Versions(ctx context.Context, c claviger.Caller, key string) (_ []claviger.KeyVersion, err error) {
	ctx, span := trace.Start(ctx, "keyring.Versions")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GetKeyVersions, &key, authz.Get)
	if err != nil {
		return nil, err
	}
	here, err := r.nameHere(ctx, key)
	if err != nil {
		return nil, err
	}
	vs, err := r.ownVersions(ctx, here)
	if err != nil {
		return nil, err
	}
	if len(vs) > 0 {
		if err := q.needVersion(ctx, &vs[0], authz.KeyRead); err != nil {
			for _, v := range vs {
				v.Material.Wipe()
			}
			return nil, err
		}
	}
	q.ok(ctx, key, "")
	out := make([]claviger.KeyVersion, len(vs))
	for i, v := range vs {
		out[i] = owned(v)
	}
	return out, nil
}
