package metastore

import (
	"context"
	"time"
)

// Shelved is a key that was deleted and whose HSM objects are kept.
type Shelved struct {
	Key
	Since time.Time // of its deletion; whole milliseconds
}

// Shelf keeps deleted keys. Names, Get and ByVersion of Keys don't see them, and
// their names are free: several shelved keys may have one name.
type Shelf interface {
	// Shelve takes a key away, with its versions, and keeps it. Since is the later of this
	// process's clock and the store's (see Clock). Kinds KeyNotFound; Unavailable where a
	// step of a key of that name is under way.
	Shelve(ctx context.Context, key string) error
	// Shelved returns the keys that were shelved, longest shelved first: those of the
	// names given, all where no name is given.
	Shelved(ctx context.Context, names ...string) ([]Shelved, error)
	// Unshelve brings back the shelved key of that name that has the version of that
	// ID. Kinds KeyNotFound where there is none, KeyExists where a key of that name is
	// there; Unavailable as in Shelve.
	Unshelve(ctx context.Context, key, id string) error
	// Discard takes away the shelved keys of that name that have a version of one of
	// these IDs, and keeps an intent of Op "delete" with the refs of all of their
	// versions in their place, as Keys.Remove does. Kinds KeyNotFound where there is
	// no such key; Unavailable where a step of another Op is under way.
	Discard(ctx context.Context, key string, ids ...string) (Intent, error)
}

// LastUse is when a version was last used, by whichever node.
type LastUse struct {
	Version string    // full version name
	Last    time.Time // whole milliseconds
}

// LastUses keeps when each version of ours was last used to wrap or unwrap. What
// is known of a version goes when it goes for ever.
type LastUses interface {
	// Touch moves the times forward, never back, and not beyond the store's clock where it
	// has one.
	Touch(ctx context.Context, uses []LastUse) error
	// LastUses returns one time per version, in order, zero where no use is known.
	// since is when the keeping of these times began: what is older may have been
	// used before.
	LastUses(ctx context.Context, versions ...string) (last []time.Time, since time.Time, err error)
	// NeverUsed tells whether it is certain that no version of that full name was ever used
	// here: Begin has given its number, and Touch was not told of it. That stays known when the
	// version goes for ever. False where nothing is known: of a version that no Begin of this
	// store numbered, or that is older than the record.
	NeverUsed(ctx context.Context, version string) (bool, error)
	// ForgetUnused has each version that is there now, or was there, count as one that may
	// have been used: the store lacks what was written to a newer state of it.
	ForgetUnused(ctx context.Context) error
}

// SettingLastUsesSince is the setting by which a store remembers when the keeping
// of last uses began: milliseconds since 1970, UTC, in decimal.
const SettingLastUsesSince = "version.use.since"
