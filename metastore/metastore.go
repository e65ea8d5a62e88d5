// Package metastore is the contract of the store beside an HSM: the keys, their versions in order, the check
// values of the versions, the steps that are not finished, the migration's journal, and the uses of sources.
// It never holds key material. Every implementation passes the suite in metastore/storetest.
//
// Deleted keys (deleted.go) have tables of their own, so that no query for a live key can return a deleted one
// by mistake. cluster.go is the contract of the data that nodes share beside the keys: secrets and delegation
// tokens. content.go lists the tables that are copied from one store to another, row by row.
package metastore

import (
	"context"
	"time"

	"claviger"
)

// Version is one key version. A slice of versions has the oldest first.
type Version struct {
	// ID is the part after '@': a number in decimal (claviger.NumberOfID), or 16 hex
	// digits in keys that were made before versions were numbered.
	ID      string
	Object  string // the HSM object's CKA_ID in hex; unique in the store
	Created time.Time
	// Check is the key check value: the first 8 bytes of SHA-256 over the
	// encryption of a fixed block. It shows that a key is the wrong one, and nothing else.
	Check []byte
}

// Key is a key with all its versions, oldest first.
type Key struct {
	claviger.Metadata // the store keeps Versions equal to CountVersions(List)
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

// Intent is a step that was begun: its versions may or may not exist in the HSM yet. The intent is written
// before the HSM is changed, and removed in the transaction that makes the versions visible.
type Intent struct {
	Key     string
	Op      string // "create", "roll", "import", "delete"
	Refs    []Ref
	Begun   time.Time
	Payload []byte // JSON of the caller's own, for the process that finishes the step
}

// Keys is what the HSM provider needs. Errors are *claviger.Error.
//
// Insert and Append raise the key name's next number (see Numbers) above the numbers that they write. So a key
// that this store did not number (an older program made it, or it was adopted from the token) gets no number
// twice. Both refuse a version without an Object.
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
	// Prepend adds a version that was lost, before all others of its key: the newest version
	// stays the newest. Kinds KeyNotFound; Invalid as in Append.
	Prepend(ctx context.Context, key string, v Version) error
	// Amend gives the key m.Name the description, attributes and creation time of m. Its
	// versions, cipher and length stay. Kind KeyNotFound.
	Amend(ctx context.Context, m claviger.Metadata) error
	// Remove removes a key with its versions, and in the same transaction writes an intent
	// of Op "delete" with their refs, or adds the refs to such an intent that exists.
	// Kinds KeyNotFound; Unavailable where a step of another Op is not finished, as in Begin.
	Remove(ctx context.Context, key string) (Intent, error)
}

// Numbers keeps, for each name that a key ever had here, the next number of a version. The number only rises:
// no number is given twice for a name, not after the step that reserved it was dropped, nor after the key was
// deleted, shelved, discarded or made anew. EDEKs hold the names of such versions for ever.
type Numbers interface {
	// NextNumber returns the lowest number that no version of that name has had or
	// reserved; 0 for a name that was never numbered.
	NextNumber(ctx context.Context, key string) (int, error)
	// SkipNumbers raises the next number of a name to at least next, because lower numbers
	// name versions elsewhere. Kind Invalid where next is negative or above
	// claviger.MaxVersion.
	SkipNumbers(ctx context.Context, key string, next int) error
	// Numbered reports whether Begin, Insert or Append has given the number to a version
	// of that name. A number that was skipped was not given.
	Numbered(ctx context.Context, key string, n int) (bool, error)
}

// Intents are the steps that are not finished, some of them left over from a crash: at most one per key.
type Intents interface {
	// Begin writes an intent, and in the same transaction gives each of its refs that
	// has no ID the next number of the key's name, in order. Where an intent of the same
	// key and Op exists, Begin returns that one unchanged and uses no number. Where one of
	// another Op exists, the error of kind Unavailable says which step must be finished
	// first. Kind Unsupported where the name has no number left.
	Begin(ctx context.Context, i Intent) (Intent, error)
	// Pending returns all intents, oldest first.
	Pending(ctx context.Context) ([]Intent, error)
	// Drop ends an intent whose HSM objects are gone.
	Drop(ctx context.Context, key string) error
}

// Use counts the requests for a key version of a source.
type Use struct {
	Source  string // URI
	Version string // full version name
	Op      string // "decrypt" or "reencrypt"; "unserved": the source was not configured
	Count   int64  // number of EDEKs
	Last    time.Time
}

// Usage keeps the counters that prove that a source is idle.
type Usage interface {
	// AddUse adds Count to each counter and moves Last forward, never back.
	AddUse(ctx context.Context, uses []Use) error
	// Uses returns all counters, by source, version, op.
	Uses(ctx context.Context) ([]Use, error)
}

// Journal keeps the records of migrations. They are small JSON documents that package migrate makes.
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

// Settings are a few named values, as the token that the store belongs to.
type Settings interface {
	Setting(ctx context.Context, name string) (value string, ok bool, err error)
	SetSetting(ctx context.Context, name, value string) error
}

// Store is a whole metastore. It has many methods because a store is one file or one database; code that uses
// it takes the narrow interface that it needs.
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
	// Lock takes a named lock that all processes on this store respect. The lock is free
	// again soon after its holder's process ends, however that ends. Lock waits until ctx
	// is done; then the error of kind Unavailable names the lock.
	Lock(ctx context.Context, name string) (unlock func(), err error)
	// TryLock is Lock without waiting; ok is false where the lock is taken.
	TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error)
	// URI names the store in messages, without secrets.
	URI() string
	// Check makes one round trip to the store.
	Check(ctx context.Context) error
	Close() error
}
