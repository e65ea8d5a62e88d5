package metastore

import (
	"context"
	"time"
)

// DeletedKey is a key that was deleted and whose HSM objects are kept.
type DeletedKey struct {
	Key
	Since time.Time // when the key was deleted; whole milliseconds
}

// DeletedKeys keeps deleted keys. Names, Get and ByVersion of Keys do not find them, and their names are free:
// several deleted keys may have one name.
type DeletedKeys interface {
	// SoftDelete moves a key, with its versions, to the deleted keys. Since is the later of this
	// process's clock and the store's clock (see Clock). Kinds KeyNotFound; Unavailable if a
	// step of a key of that name is unfinished.
	SoftDelete(ctx context.Context, key string) error
	// DeletedKeys returns the deleted keys of these names, in the order in which they were
	// deleted. Without names it returns all deleted keys.
	DeletedKeys(ctx context.Context, names ...string) ([]DeletedKey, error)
	// Undelete brings back the deleted key that has this name and a version with this ID.
	// Kinds KeyNotFound if there is no such key; KeyExists if a live key has the name;
	// Unavailable as in SoftDelete.
	Undelete(ctx context.Context, key, id string) error
	// Discard removes the deleted keys that have this name and a version with one of these
	// IDs. Like Keys.Remove it writes an intent of Op "delete" with the refs of all their
	// versions. Kinds KeyNotFound if there is no such key; Unavailable if a step of another
	// Op is unfinished.
	Discard(ctx context.Context, key string, ids ...string) (Intent, error)
}

// LastUse is the time of the last use of a version, on any node.
type LastUse struct {
	Version string    // full version name
	Last    time.Time // whole milliseconds
}

// LastUses keeps when each version of this store was last used to wrap or unwrap. The time of a version is
// removed when the version is destroyed.
type LastUses interface {
	// RecordUses moves the times forward, never back. If the store has a clock, no time moves
	// beyond that clock.
	RecordUses(ctx context.Context, uses []LastUse) error
	// LastUses returns one time per version, in order; zero if no use is known. since is when
	// the recording of uses began: older versions may have been used before that.
	LastUses(ctx context.Context, versions ...string) (last []time.Time, since time.Time, err error)
	// NeverUsed reports whether it is certain that no version with this full name was ever used
	// here: Begin has given its number, and RecordUses has recorded no use. The store remembers
	// this after the version is destroyed. The result is false if nothing is known: for a
	// version that no Begin of this store numbered, or that is older than this record.
	NeverUsed(ctx context.Context, version string) (bool, error)
	// ForgetUnused makes NeverUsed false for every version that exists or existed. It is for
	// a store that was replaced by an older copy, and so lacks uses that were recorded later.
	ForgetUnused(ctx context.Context) error
}

// SettingLastUsesSince is the setting with the time at which the recording of last uses began: milliseconds
// since 1970, UTC, in decimal.
const SettingLastUsesSince = "version.use.since"
