package keyring

import (
	"context"
	"slices"
	"sync"
	"time"

	"claviger"
)

// Origin is the record of one key in a migration's journal.
type Origin struct {
	Key    string // the key's name as the source lists it
	Source string // URI
	// TakenOver: the key was made here for the source's key; it may have been deleted since. Otherwise the source had
	// the key, and no migration has taken it over yet.
	TakenOver bool
	// Created and ACLName belong to the source's key. The key here has the same ones.
	Created time.Time
	ACLName string
	// Folded: the source answers to every spelling of the name, in upper and lower case, with this key.
	Folded bool
	// Numbered: versions were made here, and the source numbers its versions. Counted is the source's number of
	// versions at that time, even if its ids are opaque. Rolled is its number of versions when the journal recorded
	// that one of them has the name of a version here; 0 without such a record.
	Numbered        bool
	Counted, Rolled int
	// Freed: an administrator allows new keys of the name, if no key here has it.
	Freed bool
	// Made has the full names of the versions that were made here for the source's key.
	Made []string
	// MadeThere has the full names of versions that a migration into Source made, when Source was the primary.
	// Another source's versions may have the same numbers.
	MadeThere []string
	// Finished is the time at which the operator ended the migration; zero: not yet.
	Finished time.Time
}

// History reads the records of migrations: where keys came from.
type History interface {
	// Origins returns the newest record of each key and source.
	Origins(ctx context.Context) ([]Origin, error)
	// Alias returns the name here of a key that came from a source which ignores case; ok is false if no such key has
	// that name in any spelling.
	Alias(ctx context.Context, name string) (here string, ok bool, err error)
}

// originsTimeout is the time for which a reading of the journal is used: when a key is made, when EDEKs of a source are
// re-encrypted, and for the texts of errors.
const originsTimeout = 5 * time.Second

// origins is the journal, read again after originsTimeout.
type origins struct {
	history History // nil: nothing was ever migrated here

	mu    sync.Mutex // held while the journal is read: other requests need the same reading
	read  time.Time
	byKey map[string][]Origin // by FoldName of the key
}

// of returns the journal's records of keys of that name, in any spelling.
func (o *origins) of(ctx context.Context, key string) ([]Origin, error) {
	byKey, err := o.all(ctx)
	return byKey[claviger.FoldName(key)], err
}

// all returns the journal's records, by FoldName of the key. The map must not be changed.
func (o *origins) all(ctx context.Context) (map[string][]Origin, error) {
	if o.history == nil {
		return nil, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byKey == nil || time.Since(o.read) >= originsTimeout {
		list, err := o.history.Origins(ctx)
		if err != nil {
			return nil, err
		}
		o.byKey = make(map[string][]Origin, len(list))
		for _, origin := range list {
			name := claviger.FoldName(origin.Key)
			o.byKey[name] = append(o.byKey[name], origin)
		}
		o.read = time.Now()
	}
	return o.byKey, nil
}

// forget makes the next request read the journal again.
func (o *origins) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.byKey = nil
}

// alias returns the name here of a key that was requested under another spelling, and otherwise the name itself. It is
// called if no key has the name.
func (r *Ring) alias(ctx context.Context, name string) (string, error) {
	if r.origins.history == nil || name == "" {
		return name, nil
	}
	here, err := r.aliases.fetch(ctx, name, func(ctx context.Context, name string) (string, error) {
		here, ok, err := r.origins.history.Alias(ctx, name)
		if err == nil && !ok {
			err = claviger.E("keyring.alias", claviger.KeyNotFound, name, nil) // so that the cache does not keep it
		}
		return here, err
	})
	if claviger.Is(err, claviger.KeyNotFound) {
		return name, nil
	}
	if err == nil && here != name {
		r.aliased.Store(true)
	}
	return here, err
}

// resolve returns the same as alias, but it uses the cache alone. It costs nothing while no alias was found yet.
func (r *Ring) resolve(name string) string {
	if r.aliased.Load() {
		if here, ok := r.aliases.get(name); ok {
			return here
		}
	}
	return name
}

// metadataHere returns the metadata of the key here that has the name, or that has it in another spelling.
func (r *Ring) metadataHere(ctx context.Context, name string) (*claviger.Metadata, error) {
	name = r.resolve(name)
	m, err := r.metadata(ctx, name)
	if m != nil || err != nil {
		return m, err
	}
	here, err := r.alias(ctx, name)
	if err != nil || here == name {
		return nil, err
	}
	return r.metadata(ctx, here)
}

// nameHere returns the name of the key here that has the name, or that has it in another spelling. If there is no such
// key, it returns the name itself.
func (r *Ring) nameHere(ctx context.Context, name string) (string, error) {
	m, err := r.metadataHere(ctx, name)
	if m == nil || err != nil {
		return name, err
	}
	return m.Name, nil
}

// newest returns the current version of the key here that has the name, or that has it in another spelling. The version
// is as new as the store that nodes share. Kind KeyNotFound.
func (r *Ring) newest(ctx context.Context, name string) (claviger.KeyVersion, error) {
	var none claviger.KeyVersion
	name = r.resolve(name)
	if err := r.epochs.catchUp(ctx, name); err != nil {
		return none, err
	}
	v, err := r.currentVersion(ctx, name)
	if !claviger.Is(err, claviger.KeyNotFound) {
		return v, err
	}
	here, aliasErr := r.alias(ctx, name)
	if aliasErr != nil {
		return none, aliasErr
	}
	if here == name {
		return none, err
	}
	if err := r.epochs.catchUp(ctx, here); err != nil {
		return none, err
	}
	return r.currentVersion(ctx, here)
}

// takenOver reports whether a migration made a key here for the source's key, and the source still has that key. A key
// that a user made under the name, or that was deleted and made again on either side, has another time of creation,
// which no user can choose.
func (r *Ring) takenOver(ctx context.Context, ownKey, sourceKey *claviger.Metadata) (bool, error) {
	if !sameOrigin(ownKey, sourceKey.Created, sourceKey.ACLName()) {
		return false, nil
	}
	list, err := r.origins.of(ctx, ownKey.Name)
	if err != nil {
		return false, err
	}
	for _, o := range list {
		if o.TakenOver && sameOrigin(ownKey, o.Created, o.ACLName) {
			return true, nil
		}
	}
	return false, nil
}

// madeHere reports whether the migration made the key, live or deleted. It may be in conflict with the source's key,
// which was rolled since.
func (o Origin) madeHere(m *claviger.Metadata) bool {
	return (o.TakenOver || o.Rolled > 0) && sameOrigin(m, o.Created, o.ACLName)
}

// OriginOf returns the record of the migration that made a key here, live or deleted; ok is false if no migration did.
// Another process's migration may be missing for originsTimeout.
func (r *Ring) OriginOf(ctx context.Context, m *claviger.Metadata) (o Origin, ok bool, err error) {
	list, err := r.origins.of(ctx, m.Name)
	if i := slices.IndexFunc(list, func(o Origin) bool { return o.madeHere(m) }); i >= 0 {
		return list[i], true, nil
	}
	return Origin{}, false, err
}

// opaqueAt reports whether the key was taken over from that source, which names its versions by opaque ids.
func (o Origin) opaqueAt(s *source) bool { return o.TakenOver && !o.Numbered && o.Source == s.URI() }

func sameOrigin(m *claviger.Metadata, created time.Time, aclName string) bool {
	return m.Created.UnixMilli() == created.UnixMilli() && m.ACLName() == aclName
}
