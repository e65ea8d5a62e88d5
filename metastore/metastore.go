// Package metastore is the contract of the store beside an HSM: which keys
// there are, which versions they have and in which order, their check values,
// what is half-made, the migration's journal, and who still uses a source.
// It never holds material. Every implementation passes the suite in
// metastore/storetest.
package metastore

import (
	"context"
	"time"

	"claviger"
)

// Version is one key version. Its place among its key's versions is told by the
// order of the slice that holds it, oldest first; ids sort by nothing.
type Version struct {
	ID      string // the part after '@', also the HSM object's CKA_ID in hex
	Created time.Time
	// Check is the key check value: the first 8 bytes of SHA-256 over the
	// encryption of a fixed block. It tells a wrong key, and nothing else.
	Check []byte
}

// Key is a key with all its versions, oldest first.
type Key struct {
	claviger.Metadata // Versions equals len of the field below, and is kept so by the store
	List              []Version
}

// Intent is a step that was begun: version ids that may or may not exist in the
// HSM yet. It is written before the HSM is touched, and goes in the same
// transaction that makes the versions visible.
type Intent struct {
	Key     string
	Op      string // "create", "roll", "import", "delete"
	IDs     []string
	Begun   time.Time
	Payload []byte // JSON of the caller's own, for whoever finishes the step
}

// Keys is what the HSM provider needs. Errors are *claviger.Error.
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
	// Remove takes away a key with its versions and keeps an intent of Op
	// "delete" with their ids in its place, in one transaction; an intent to
	// delete that is there already takes the ids in. Kinds KeyNotFound;
	// Unavailable where a step of another Op is under way, as in Begin.
	Remove(ctx context.Context, key string) (Intent, error)
}

// Intents are the steps under way or left over from a crash: at most one per
// key.
type Intents interface {
	// Begin writes an intent. If one of the same key and Op is there it is left as
	// it is and returned instead; one of another Op is an error of kind
	// Unavailable that says which step must be finished first.
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
	Op      string // "decrypt" or "reencrypt"
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
	Intents
	Usage
	Journal
	Settings
	Shelf
	LastUses
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
