package keyring

import (
	"context"
	"sync"
	"time"

	"claviger"
)

// Origin is what a migration's journal says of one key.
type Origin struct {
	Key    string // the key's name at the source as it lists it
	Source string // URI
	// TakenOver: the key was made here for the source's; it may have been deleted since.
	// Else the source had it, and it was not taken over yet.
	TakenOver bool
	// Created and ACLName are the source's, and the taken-over key's.
	Created time.Time
	ACLName string
	// Folded: the source answers to every spelling of the name.
	Folded bool
	// Numbered: versions were made here, and the source numbers its own. Counted is how
	// many it counted then, whatever it names them; Rolled is how many it had when the journal noted that one of
	// them has the name of one here, 0 where it noted no such thing.
	Numbered        bool
	Counted, Rolled int
	// Freed: an administrator lets others have the name, once no key here has it.
	Freed bool
	// Made are the full names of the versions that were made here for the source's key.
	Made []string
	// MadeThere are the full names of versions that a migration into Source, which was the
	// primary then, has made: numbers, which may be those of another source's versions too.
	MadeThere []string
	// Finished is when the operator ended the migration; zero: it goes on.
	Finished time.Time
}

// History is what migrations have left behind: where keys came from.
type History interface {
	// Origins returns one record a key and source, the newest.
	Origins(ctx context.Context) ([]Origin, error)
	// Alias returns the name under which a key is here that came from a source which
	// does not tell upper from lower case; ok is false where there is none of that
	// name, however it is spelt.
	Alias(ctx context.Context, name string) (here string, ok bool, err error)
}

// originsTimeout is how long the journal is believed. It is asked when a key is
// made, when a source's EDEKs are re-encrypted, and for the texts of errors.
const originsTimeout = 5 * time.Second

// origins is the journal, read now and then.
type origins struct {
	history History // nil: nothing was ever migrated here

	mu    sync.Mutex // held while the journal is read: who comes meanwhile needs the same
	read  time.Time
	byKey map[string][]Origin // by FoldName of the key
}

// of returns what the journal says of keys of that name, however it is spelt.
func (o *origins) of(ctx context.Context, key string) ([]Origin, error) {
	byKey, err := o.all(ctx)
	return byKey[claviger.FoldName(key)], err
}

// all is what the journal says, by FoldName of the key. It is shared and not changed.
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

// forget has the journal read again.
func (o *origins) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.byKey = nil
}

// alias returns the name under which a key is here that is asked for by another
// spelling of its name; the name itself in all other cases. It is asked when
// there is no key of the name.
func (r *Ring) alias(ctx context.Context, name string) (string, error) {
	if r.origins.history == nil || name == "" {
		return name, nil
	}
	here, err := r.aliases.fetch(ctx, name, func(ctx context.Context, name string) (string, error) {
		here, ok, err := r.origins.history.Alias(ctx, name)
		if err == nil && !ok {
			err = claviger.E("keyring.alias", claviger.KeyNotFound, name, nil) // so that it isn't remembered
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

// resolve is alias by what is remembered: it costs nothing where there are none.
func (r *Ring) resolve(name string) string {
	if r.aliased.Load() {
		if here, ok := r.aliases.get(name); ok {
			return here
		}
	}
	return name
}

// metadataHere is metadata under whichever spelling the key is here.
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

// nameHere is the name of the key that is meant by a spelling: the name itself
// where there is no such key.
func (r *Ring) nameHere(ctx context.Context, name string) (string, error) {
	m, err := r.metadataHere(ctx, name)
	if m == nil || err != nil {
		return name, err
	}
	return m.Name, nil
}

// newest returns the current version of a key, as new as the store that nodes
// share, under whichever spelling the key is here. Kind KeyNotFound.
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

// takenOver reports whether a key that is here was made by a migration for the
// source's key, which is as it was then. A key that a user made under the name, or
// that was deleted and made anew on either side, has another time of creation, which
// nobody chooses.
func (r *Ring) takenOver(ctx context.Context, ours, theirs *claviger.Metadata) (bool, error) {
	if !sameOrigin(ours, theirs.Created, theirs.ACLName()) {
		return false, nil
	}
	list, err := r.origins.of(ctx, ours.Name)
	if err != nil {
		return false, err
	}
	for _, o := range list {
		if o.TakenOver && sameOrigin(ours, o.Created, o.ACLName) {
			return true, nil
		}
	}
	return false, nil
}

// madeHere reports whether a key, live or deleted, is the one that the migration made, also
// where its source has rolled it since so that the two are in conflict.
func (o Origin) madeHere(m *claviger.Metadata) bool {
	return (o.TakenOver || o.Rolled > 0) && sameOrigin(m, o.Created, o.ACLName)
}

// opaqueAt reports whether the key was taken over from that source, which names its versions by opaque ids.
func (o Origin) opaqueAt(s *source) bool { return o.TakenOver && !o.Numbered && o.Source == s.URI() }

func sameOrigin(m *claviger.Metadata, created time.Time, aclName string) bool {
	return m.Created.UnixMilli() == created.UnixMilli() && m.ACLName() == aclName
}
