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

// Shelf keeps deleted keys. Names, Get and ByVersion of Keys do not find them, and their names are free:
// several shelved keys may have one name.
type Shelf interface {
	// Shelve moves a key, with its versions, to the shelf. Since is the later of this
	// process's clock and the store's (see Clock). Kinds KeyNotFound; Unavailable where a
	// step of a key of that name is not finished.
	Shelve(ctx context.Context, key string) error
	// Shelved returns the shelved keys of these names, or all without names, longest
	// shelved first.
	Shelved(ctx context.Context, names ...string) ([]Shelved, error)
	// Unshelve brings back the shelved key of that name that has the version of that
	// ID. Kinds KeyNotFound where there is none, KeyExists where a live key has that
	// name; Unavailable as in Shelve.
	Unshelve(ctx context.Context, key, id string) error
	// Discard removes the shelved keys of that name that have a version of one of these
	// IDs, and writes an intent of Op "delete" with the refs of all of their versions, as
	// Keys.Remove does. Kinds KeyNotFound where there is no such key; Unavailable where a
	// step of another Op is not finished.
	Discard(ctx context.Context, key string, ids ...string) (Intent, error)
}

// LastUse is when any node last used a version.
type LastUse struct {
	Version string    // full version name
	Last    time.Time // whole milliseconds
}

// LastUses keeps when each version of this store was last used to wrap or unwrap. The time of a version is
// removed when the version is destroyed.
type LastUses interface {
	// Touch moves the times forward, never back, and not beyond the store's clock, if the
	// store has one.
	Touch(ctx context.Context, uses []LastUse) error
	// LastUses returns one time per version, in order, zero where no use is known.
	// since is when the recording of uses began: older versions may have been used
	// before that.
	LastUses(ctx context.Context, versions ...string) (last []time.Time, since time.Time, err error)
	// NeverUsed reports whether it is certain that no version of that full name was ever used
	// here: Begin has given its number, and Touch has recorded no use. The store remembers this
	// when the version is destroyed. False where nothing is known: of a version that no Begin of
	// this store numbered, or that is older than the record.
	NeverUsed(ctx context.Context, version string) (bool, error)
	// ForgetUnused makes NeverUsed false for every version that exists or existed: the store
	// lacks what was written to a newer state of it.
	ForgetUnused(ctx context.Context) error
}

// SettingLastUsesSince is the setting with the time at which the recording of last uses began: milliseconds
// since 1970, UTC, in decimal.
const SettingLastUsesSince = "version.use.since"
