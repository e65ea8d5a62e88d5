package keyring

import (
	"context"
	"errors"
	"slices"

	"claviger"
	"claviger/eek"
	"claviger/provider"
)

// metadata returns the metadata of a key here; nil without an error for a key that does not exist. The result is
// shared: callers of the Ring get copies.
func (r *Ring) metadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	keys := leased(r, r.keys)
	if m, ok := keys.get(key); ok {
		return m, nil
	}
	m, err := keys.fetch(ctx, key, r.readMetadata)
	if claviger.Is(err, claviger.KeyNotFound) {
		return nil, nil
	}
	return m, err
}

// readMetadata reads a key's metadata without the cache. Kind KeyNotFound, which no cache keeps.
func (r *Ring) readMetadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	return oneMetadata(ctx, &r.primary, key)
}

func oneMetadata(ctx context.Context, from provider.Reader, key string) (*claviger.Metadata, error) {
	ms, err := from.Metadata(ctx, key)
	switch {
	case err != nil:
		return nil, err
	case len(ms) != 1:
		return nil, claviger.Errorf("keyring.metadata", claviger.Internal, key,
			"the provider returned %d keys for a request for one key", len(ms))
	case ms[0] == nil:
		return nil, claviger.E("keyring.metadata", claviger.KeyNotFound, key, nil)
	}
	return ms[0], nil
}

// currentVersion returns a key's newest version. Kind KeyNotFound.
func (r *Ring) currentVersion(ctx context.Context, key string) (claviger.KeyVersion, error) {
	current := leased(r, r.current)
	if v, ok := current.get(key); ok {
		return v, nil
	}
	return current.fetch(ctx, key, r.readCurrent)
}

func (r *Ring) readCurrent(ctx context.Context, key string) (claviger.KeyVersion, error) {
	v, err := withMetadata(ctx, r, key, func() (claviger.KeyVersion, error) { return r.primary.Current(ctx, key) },
		func(v *claviger.KeyVersion, of *claviger.Metadata) bool { return attach(v, of) })
	if err == nil {
		r.used.preload(ctx, v.Name)
	}
	return v, err
}

// ownVersion returns a version of the primary. Kind VersionNotFound.
func (r *Ring) ownVersion(ctx context.Context, version string) (claviger.KeyVersion, error) {
	versions := leased(r, r.versions)
	if v, ok := versions.get(version); ok {
		return v, nil
	}
	return versions.fetch(ctx, version, r.readVersion)
}

func (r *Ring) readVersion(ctx context.Context, version string) (claviger.KeyVersion, error) {
	key, _ := claviger.KeyOfVersion(version)
	v, err := withMetadata(ctx, r, key, func() (claviger.KeyVersion, error) { return r.primary.Version(ctx, version) },
		func(v *claviger.KeyVersion, of *claviger.Metadata) bool { return attach(v, of) })
	if err == nil {
		r.used.preload(ctx, v.Name)
	}
	return v, err
}

// ownVersions returns all versions of a key of the primary, oldest first.
func (r *Ring) ownVersions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	return withMetadata(ctx, r, key, func() ([]claviger.KeyVersion, error) { return r.primary.Versions(ctx, key) },
		func(vs *[]claviger.KeyVersion, of *claviger.Metadata) bool {
			all := true
			for i := range *vs {
				all = attach(&(*vs)[i], of) && all
			}
			return all
		})
}

// attach gives a version the metadata, if it has none. It reports whether the version has metadata now.
func attach(v *claviger.KeyVersion, of *claviger.Metadata) bool {
	if v.Of == nil {
		v.Of = of
	}
	return v.Of != nil
}

// readings is the number of attempts to read versions and metadata, without a change between the two, from a provider
// that cannot read both at once.
const readings = 5

// withMetadata reads versions of a key together with the metadata that guards them. Most providers give both in one
// reading. Another KMS cannot. Then the metadata is read before and after the versions, and both must be of the same
// key. Without key authorization no metadata is needed.
func withMetadata[T any](ctx context.Context, r *Ring, key string, read func() (T, error),
	attached func(*T, *claviger.Metadata) bool) (T, error) {
	v, err := read()
	if err != nil || !r.cfg.KeyAuthorization || attached(&v, nil) {
		return v, err
	}
	var none T
	for range readings {
		before, err := r.metadataNow(ctx, key)
		if err != nil {
			return none, err
		}
		if v, err = read(); err != nil {
			return none, err
		}
		after, err := r.metadataNow(ctx, key)
		if err != nil {
			return none, err
		}
		if sameKey(before, after) {
			if after == nil { // a version without a key: the rules of its name guard it
				after = &claviger.Metadata{Name: key}
			}
			attached(&v, after)
			return v, nil
		}
	}
	return none, claviger.Errorf("keyring.read", claviger.Unavailable, key, "the key was deleted and made again %d "+
		"times while it was read", readings)
}

// metadataNow is metadata without the cache.
func (r *Ring) metadataNow(ctx context.Context, key string) (*claviger.Metadata, error) {
	m, err := r.readMetadata(ctx, key)
	if claviger.Is(err, claviger.KeyNotFound) {
		return nil, nil
	}
	return m, err
}

// sameKey reports whether two readings are of one key, not of two keys that had the name one after the other. A key's
// creation time and attributes never change. Two keys with the same values have the same rules, so a confusion of these
// two discloses nothing.
func sameKey(a, b *claviger.Metadata) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && a.Created.Equal(b.Created) && a.ACLName() == b.ACLName() && a.Cipher == b.Cipher &&
		a.BitLength == b.BitLength
}

// replaced reports whether a version that was read can no longer be used, because another version may have its name.
// Then it drops the key from the caches, and the caller can try again.
func (r *Ring) replaced(err error, key string) bool {
	if !errors.Is(err, eek.ErrReplaced) {
		return false
	}
	r.forget(key)
	return true
}

// forget drops a key from the caches, then its ready-made EDEKs. The order matters: the queue is then filled again
// under the current version.
func (r *Ring) forget(key string) {
	ofKey := func(version string) bool {
		k, _ := claviger.KeyOfVersion(version)
		return k == key
	}
	r.keys.drop(key)
	r.current.drop(key)
	r.versions.dropAll(ofKey)
	r.sources.forget(key)
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
	r.sources.forgetAll()
	r.aliases.dropAll(all)
	r.origins.forget()
	if r.queue != nil {
		r.queue.DrainAll()
	}
}

// owned returns a copy of v with material that its caller may wipe: the material of v may be in the cache.
func owned(v claviger.KeyVersion) claviger.KeyVersion {
	v.Material = slices.Clone(v.Material)
	return v
}
