// Package metastore is the contract of the store beside an HSM: which keys
// there are, which versions they have and in which order, their check values,
// what is half-made, the migration's journal, and who still uses a source.
// It never holds material. Every implementation passes the suite in
// metastore/storetest.
//
// Deleted keys (deleted.go) have tables of their own, so no query for a live key can
// return a deleted one by oversight. cluster.go is the contract of what nodes share
// beside the keys: secrets and delegation tokens. content.go names the tables that a
// copy takes from one store to another, row by row.
package metastore

import (
	"context"
	"time"

	"claviger"
)

// Version is one key version. Its place among its key's versions is told by the
// order of the slice that holds it, oldest first.
type Version struct {
	// ID is the part after '@': a number in decimal (claviger.NumberOfID), or 16 hex
	// digits in keys that were made before versions were numbered.
	ID      string
	Object  string // the HSM object's CKA_ID in hex; unique in the store
	Created time.Time
	// Check is the key check value: the first 8 bytes of SHA-256 over the
	// encryption of a fixed block. It tells a wrong key, and nothing else.
	Check []byte
}

// Key is a key with all its versions, oldest first.
type Key struct {
	claviger.Metadata // Versions is CountVersions of the field below, and is kept so by the store
	List              []Version
}

// CountVersions returns claviger.CountVersions of a list, oldest first.
func CountVersions(list []Version) int {
	if len(list) == 0 {
		return 0
	}
	return claviger.CountVersions(list[len(list)-1].ID, len(list))
}

// Ref names a version, and the HSM object that holds its key.
type Ref struct {
	ID     string // of the version, as in Version
	Object string // of its HSM object, as in Version
}

// Intent is a step that was begun: versions that may or may not exist in the
// HSM yet. It is written before the HSM is touched, and goes in the same
// transaction that makes the versions visible.
type Intent struct {
	Key     string
	Op      string // "create", "roll", "import", "delete"
	Refs    []Ref
	Begun   time.Time
	Payload []byte // JSON of the caller's own, for whoever finishes the step
}

// Keys is what the HSM provider needs. Errors are *claviger.Error.
//
// Insert and Append raise the key name's next number (see Numbers) above the
// numbers that they write, so that a key that was not numbered here (made by an
// older program, rebuilt from the token) cannot share one. A version without an
// Object is refused.
type Keys interface {
	// Names returns all key names, sorted.
	Names(ctx context.Context) ([]string, error)
	// Get returns one entry per name in order, nil for missing ones.
	Get(ctx context.Context, names ...string) ([]*Key, error)
	// ByVersion returns the key that has the version with that full name, and
	// that version. Kind VersionNotFound.
	ByVersion(ctx context.Context, version string) (*claviger.Metadata, Version, error)
	// Insert adds a key with its versions and drops the key's intent. Kind
	// KeyExists.
	Insert(ctx context.Context, k Key) error
	// Append adds a version, which becomes the newest, and drops the key's
	// intent. Kind KeyNotFound.
	Append(ctx context.Context, key string, v Version) error
	// Prepend adds a version that was lost, before all others of its key: which is the
	// newest does not change. Kinds KeyNotFound; Invalid as in Append.
	Prepend(ctx context.Context, key string, v Version) error
	// Amend gives a key the description, attributes and creation time of m, whose name
	// it has. Its versions, cipher and length stay. Kind KeyNotFound.
	Amend(ctx context.Context, m claviger.Metadata) error
	// Remove takes away a key with its versions and keeps an intent of Op
	// "delete" with their refs in its place, in one transaction; an intent to
	// delete that is there already takes the refs in. Kinds KeyNotFound;
	// Unavailable where a step of another Op is under way, as in Begin.
	Remove(ctx context.Context, key string) (Intent, error)
}

// Numbers keeps, for each name that a key ever had here, the next number of a
// version. It only rises: no number is given twice for a name, also not after the
// step that reserved it was dropped, nor after the key was deleted, shelved,
// discarded or made anew. The names of such versions stand in EDEKs for ever.
type Numbers interface {
	// NextNumber returns the lowest number that no version of that name has had or
	// was promised; 0 for a name that was never numbered.
	NextNumber(ctx context.Context, key string) (int, error)
	// SkipNumbers raises the next number of a name to next at least: lower ones name
	// versions elsewhere. Kind Invalid where next is negative or above
	// claviger.MaxVersion.
	SkipNumbers(ctx context.Context, key string, next int) error
	// Numbered tells whether this store has given the number to a version of that
	// name: by Begin, Insert or Append. A number that was skipped was not given.
	Numbered(ctx context.Context, key string, n int) (bool, error)
}

// Intents are the steps under way or left over from a crash: at most one per
// key.
type Intents interface {
	// Begin writes an intent, and in the same transaction gives each of its refs that
	// has no ID the next number of the key's name, in order. If an intent of the same
	// key and Op is there it is left as it is and returned instead, and no number is
	// used up; one of another Op is an error of kind Unavailable that says which step
	// must be finished first. Kind Unsupported where the name has no number left.
	Begin(ctx context.Context, i Intent) (Intent, error)
	// Pending returns all intents, oldest first.
	Pending(ctx context.Context) ([]Intent, error)
	// Drop ends an intent whose HSM objects are gone.
	Drop(ctx context.Context, key string) error
}

// Use says how often and when last a key version of a source was asked for.
type Use struct {
	Source  string // URI
	Version string // full version name
	Op      string // "decrypt" or "reencrypt"; "unserved": the source was not configured
	Count   int64  // number of EDEKs
	Last    time.Time
}

// Usage keeps the counters by which a source is proved idle.
type Usage interface {
	// AddUse adds Count to each counter and moves Last forward, never back.
	AddUse(ctx context.Context, uses []Use) error
	// Uses returns all counters, by source, version, op.
	Uses(ctx context.Context) ([]Use, error)
}

// Journal is what a migration writes down. Records are small JSON documents of
// package migrate's making.
type Journal interface {
	// Put writes or replaces the record under (run, item). run "" is not allowed;
	// item "" is the run's own record.
	Put(ctx context.Context, run, item string, record []byte) error
	// Records returns the run's records by item, in order of first writing.
	Records(ctx context.Context, run string) ([]Record, error)
	// Runs returns all run names, oldest first.
	Runs(ctx context.Context) ([]string, error)
}

// Record is one record of the journal.
type Record struct {
	Item string
	Data []byte
	At   time.Time // of the last Put
}

// Settings are a few named values: which token the store belongs to, for one.
type Settings interface {
	Setting(ctx context.Context, name string) (value string, ok bool, err error)
	SetSetting(ctx context.Context, name, value string) error
}

// Store is a whole metastore. It has many methods because a store is one file
// or one database; users take the narrow interface that they need.
type Store interface {
	Keys
	Numbers
	Intents
	Usage
	Journal
	Settings
	Shelf
	LastUses
	Clock
	Claims
	// Lock takes a named lock that all processes on this store respect, and that
	// is free again soon after its holder's process ends, however it ends. It waits
	// until ctx is done (then: kind Unavailable, naming the lock).
	Lock(ctx context.Context, name string) (unlock func(), err error)
	// TryLock is Lock without waiting; ok is false where another holds it.
	TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error)
	// URI names the store in messages, without secrets.
	URI() string
	// Check makes one round trip to the store.
	Check(ctx context.Context) error
	Close() error
}
