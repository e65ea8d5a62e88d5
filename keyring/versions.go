package keyring

import (
	"context"
	"slices"

	"claviger"
	"claviger/provider"
)

// metadata returns what is known of a key here; nil without an error for a key
// that does not exist. It is shared: callers of the Ring get copies.
func (r *Ring) metadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	if m, ok := r.keys.get(key); ok {
		return m, nil
	}
	m, err := r.keys.fetch(ctx, key, r.askMetadata)
	if claviger.Is(err, claviger.KeyNotFound) {
		return nil, nil
	}
	return m, err
}

// askMetadata has an error for an absent key, so that this isn't remembered.
func (r *Ring) askMetadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	return oneMetadata(ctx, r.cfg.Primary, key)
}

func oneMetadata(ctx context.Context, from provider.Reader, key string) (*claviger.Metadata, error) {
	ms, err := from.Metadata(ctx, key)
	switch {
	case err != nil:
		return nil, err
	case len(ms) != 1:
		return nil, claviger.Errorf("keyring.metadata", claviger.Internal, key, "provider told of %d keys where it was asked for one", len(ms))
	case ms[0] == nil:
		return nil, claviger.E("keyring.metadata", claviger.KeyNotFound, key, nil)
	}
	return ms[0], nil
}

// currentVersion returns a key's newest version. Kind KeyNotFound.
func (r *Ring) currentVersion(ctx context.Context, key string) (provider.KeyVersion, error) {
	if v, ok := r.current.get(key); ok {
		return v, nil
	}
	return r.current.fetch(ctx, key, r.cfg.Primary.Current)
}

// ownVersion returns a version of the primary. Kind VersionNotFound.
func (r *Ring) ownVersion(ctx context.Context, version string) (provider.KeyVersion, error) {
	if v, ok := r.versions.get(version); ok {
		return v, nil
	}
	return r.versions.fetch(ctx, version, r.cfg.Primary.Version)
}

// forget drops what is remembered of a key, then its ready-made EDEKs: in this
// order, so that EDEKs made from then on are made under what is true now.
func (r *Ring) forget(key string) {
	ofKey := func(version string) bool {
		k, _ := claviger.KeyOfVersion(version)
		return k == key
	}
	r.keys.drop(key)
	r.current.drop(key)
	r.versions.dropAll(ofKey)
	r.foreign.drop(key)
	r.missing.dropAll(ofKey)
	if r.queue != nil {
		r.queue.Drain(key)
	}
}

// forgetAll is forget for all keys.
func (r *Ring) forgetAll() {
	all := func(string) bool { return true }
	r.keys.dropAll(all)
	r.current.dropAll(all)
	r.versions.dropAll(all)
	r.foreign.dropAll(all)
	r.missing.dropAll(all)
	if r.queue != nil {
		r.queue.DrainAll()
	}
}

// owned returns a copy whose material is the caller's own to wipe: what was
// returned to us may be remembered.
func owned(v provider.KeyVersion) provider.KeyVersion {
	v.Material = slices.Clone(v.Material)
	return v
}
