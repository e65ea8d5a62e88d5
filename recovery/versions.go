package recovery

import (
	"context"

	"claviger"
	"claviger/metastore"
)

// storedVersion is a version of a store.
type storedVersion struct {
	name    string
	object  string // CKA_ID in hex
	deleted bool
}

// versionsOf returns all versions of a store, including those of deleted keys.
func versionsOf(ctx context.Context, s metastore.Store) (all []storedVersion, err error) {
	err = metastore.Each(ctx, s, func(k *metastore.Key) {
		for _, v := range k.List {
			all = append(all, storedVersion{claviger.VersionName(k.Name, v.ID), v.Object, false})
		}
	})
	if err != nil {
		return nil, err
	}
	deleted, err := s.DeletedKeys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range deleted {
		for _, v := range k.List {
			all = append(all, storedVersion{claviger.VersionName(k.Name, v.ID), v.Object, true})
		}
	}
	return all, nil
}

// state is the state of a version in a store.
type state int

const (
	absent state = iota
	deleted
	live
)

// versionStates returns the live keys of a store by name, and the state of each version.
func versionStates(ctx context.Context, s metastore.Store) (keys map[string]*metastore.Key,
	states map[storedVersion]state, err error) {
	keys, states = map[string]*metastore.Key{}, map[storedVersion]state{}
	if err := metastore.Each(ctx, s, func(k *metastore.Key) { keys[k.Name] = k }); err != nil {
		return nil, nil, err
	}
	all, err := versionsOf(ctx, s)
	for _, v := range all {
		at := live
		if v.deleted {
			at = deleted
		}
		v.deleted = false
		states[v] = at
	}
	return keys, states, err
}

// missingIn returns the versions of the store other that the store s does not have.
func missingIn(ctx context.Context, s, other metastore.Store) (missing []string, err error) {
	have, err := versionsOf(ctx, s)
	if err != nil {
		return nil, err
	}
	want, err := versionsOf(ctx, other)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, v := range have {
		known[v.name+" "+v.object] = true
	}
	for _, v := range want {
		if !known[v.name+" "+v.object] {
			missing = append(missing, v.name)
		}
	}
	return missing, nil
}

// cutVersion splits a version's name into key and id.
func cutVersion(version string) (key, id string, ok bool) {
	if key, ok = claviger.KeyOfVersion(version); !ok {
		return "", "", false
	}
	return key, version[len(key)+1:], true
}
