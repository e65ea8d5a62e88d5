// Package metastore is the contract of the store beside an HSM: the keys, their versions in order, the check values of
// the versions, unfinished steps, the journal of migrations, and the uses of sources. The store never holds key
// material. Every implementation passes the suite in metastore/storetest.
//
// Deleted keys (deleted.go) have tables of their own, so that no query for a live key can return a deleted one
// by mistake. cluster.go is the contract of the data that nodes share beside the keys: secrets and delegation
// tokens. content.go lists the tables that are copied from one store to another, row by row.
package metastore

import (
	"context"
	"slices"
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
	// Check is the key check value: the first 8 bytes of SHA-256 over the encryption of a fixed block. It shows that an
	// HSM object has another key than expected, and reveals nothing about the key.
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

// Ref names a version, and the HSM object that holds its key. The fields are those of Version.
type Ref struct {
	ID     string
	Object string
}

// Intent is a step that was begun. Its versions may exist in the HSM or not. The intent is written before the HSM is
// changed, and removed in the transaction that makes the versions visible. A process that lost the lock of the key may
// go on with a step without noticing; Begun says whether another process has taken the step since, see Intents.Take.
type Intent struct {
	Key     string
	Op      string // "create", "roll", "import", "delete"
	Refs    []Ref
	Begun   time.Time
	Payload []byte // JSON, whose form the caller defines, for the process that finishes the step
}

// Keys has the methods that the HSM provider needs. Errors are *claviger.Error.
//
// Insert and Append raise the next number of the key's name (see Numbers) above the numbers that they write. So no
// number is given twice, also if an older release made the key, or if the key was recovered from the token. Both refuse
// a version without an Object.
type Keys interface {
	// Names returns all key names, sorted.
	Names(ctx context.Context) ([]string, error)
	// Page returns the names of up to n keys, and where the next page begins: "" after the
	// last one. from is "" for the first page. The order is the store's own: each key that
	// exists during all pages is on one of them. A page takes no longer if there are many
	// keys.
	Page(ctx context.Context, from string, n int) (names []string, next string, err error)
	// Get returns one entry per name in order, nil for missing ones.
	Get(ctx context.Context, names ...string) ([]*Key, error)
	// ByVersion returns the key that has the version with that full name, and
	// that version. Kind VersionNotFound.
	ByVersion(ctx context.Context, version string) (*claviger.Metadata, Version, error)
	// Insert adds a key with its versions, and drops the key's intent. Kinds KeyExists;
	// Invalid if there is no version, or a version without an ID or Object.
	Insert(ctx context.Context, k Key) error
	// Append adds a version, which becomes the newest, and drops the key's intent. Kinds
	// KeyNotFound; Invalid if the version has no ID or Object.
	Append(ctx context.Context, key string, v Version) error
	// Prepend adds a version that was lost, before all other versions of its key. The newest
	// version stays the newest. Kinds KeyNotFound; Invalid as in Append.
	Prepend(ctx context.Context, key string, v Version) error
	// Amend gives the key m.Name the description, attributes and creation time of m. Its
	// versions, cipher and length stay. Kind KeyNotFound.
	Amend(ctx context.Context, m claviger.Metadata) error
	// Remove removes a key with its versions. In the same transaction it writes an intent of
	// Op "delete" with their refs, or adds the refs to such an intent that exists already.
	// Kinds KeyNotFound; Unavailable if a step of another Op is unfinished, as in Begin.
	Remove(ctx context.Context, key string) (Intent, error)
	// RemoveVersion removes the version with that ID of a key, if the key has a newer one, and
	// writes the same intent as Remove for that version alone. The number of the version is
	// never given again. Kinds KeyNotFound; VersionNotFound; Invalid for the newest version;
	// Unavailable as in Remove.
	RemoveVersion(ctx context.Context, key, id string) (Intent, error)
}

// OldVersion returns the ref of the version with that ID among all versions of a key, oldest first. Its errors are
// those of Keys.RemoveVersion.
func OldVersion(op, key, id string, all []Ref) (Ref, error) {
	at := slices.IndexFunc(all, func(r Ref) bool { return r.ID == id })
	switch {
	case len(all) == 0:
		return Ref{}, claviger.E(op, claviger.KeyNotFound, key, nil)
	case at < 0:
		return Ref{}, claviger.E(op, claviger.VersionNotFound, claviger.VersionName(key, id), nil)
	case at == len(all)-1:
		return Ref{}, claviger.Errorf(op, claviger.Invalid, claviger.VersionName(key, id),
			"the newest version of a key cannot be removed: new EDEKs are made under it; roll the key first")
	}
	return all[at], nil
}

// Numbers keeps the next version number of each name that a key ever had in this store. The next number only rises. No
// number is given twice for a name, also not after the step that reserved it was dropped, or after the key was deleted,
// discarded or created again, because EDEKs keep the names of such versions for ever.
type Numbers interface {
	// NextNumber returns the lowest number that no version of that name has had or
	// reserved; 0 for a name that was never numbered.
	NextNumber(ctx context.Context, key string) (int, error)
	// SkipNumbers raises the next number of a name to at least next, because lower numbers
	// name versions elsewhere. Kind Invalid if next is negative or above
	// claviger.MaxVersion.
	SkipNumbers(ctx context.Context, key string, next int) error
	// Numbered reports whether Begin, Insert or Append has given the number to a version
	// of that name. A number that was skipped was not given.
	Numbered(ctx context.Context, key string, n int) (bool, error)
}

// Intents keeps the unfinished steps, at most one per key. After a crash a step stays unfinished until a process
// finishes it.
//
// Take, FinishCreate and FinishRoll need the intent as Begin, Take or Pending returned it: the store must still have an
// intent with its Key, Op, Refs and Begun. Otherwise another process has taken or ended the step, and may have
// destroyed its objects. Then they change nothing, and the error is ErrTaken, of kind Unavailable: the caller may begin
// another step.
type Intents interface {
	// Begin writes an intent, and in the same transaction gives each of its refs that
	// has no ID the next number of the key's name, in order. If an intent of the same key
	// and Op exists, Begin returns it unchanged and uses no number. If an intent of another
	// Op exists, the error of kind Unavailable says which step must be finished first. Kind
	// Unsupported if the name has no number left.
	Begin(ctx context.Context, i Intent) (Intent, error)
	// Pending returns the intents of these keys, or all intents if no key is given, oldest
	// first.
	Pending(ctx context.Context, keys ...string) ([]Intent, error)
	// Take gives the step i to the caller, who may have read it by Pending: a process that
	// had it before can no longer finish it. The intent gets a later Begun, and op as its
	// Op: i.Op to go on with the step, "delete" to destroy its objects.
	Take(ctx context.Context, i Intent, op string) (Intent, error)
	// FinishCreate ends the step i: it adds the key as Insert does. Kinds KeyExists; Invalid
	// if k is not the key of i, with exactly the versions of i.
	FinishCreate(ctx context.Context, i Intent, k Key) error
	// FinishRoll ends the step i: it adds the version to the key of i, as Append does. Kinds
	// KeyNotFound; Invalid if v is not the only version of i.
	FinishRoll(ctx context.Context, i Intent, v Version) error
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
	// Put writes or replaces the record of (run, item). run must not be ""; item "" is the
	// record of the run itself.
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
	At   time.Time // when Put last wrote it
}

// Settings are a few named values, for example the token to which the store belongs.
type Settings interface {
	Setting(ctx context.Context, name string) (value string, ok bool, err error)
	SetSetting(ctx context.Context, name, value string) error
}

// Store is a complete metastore. It has many methods because one file or database implements all of them. Code that
// uses a store declares the smaller interface that it needs.
type Store interface {
	Keys
	Numbers
	Intents
	Usage
	Journal
	Settings
	DeletedKeys
	LastUses
	Clock
	Claims
	// Lock takes a named lock. Only one holder, in all processes that use the store, has the
	// lock. If the process of the holder ends, the lock is free soon after. Lock waits until
	// ctx is done; then the error of kind Unavailable names the lock.
	Lock(ctx context.Context, name string) (unlock func(), err error)
	// TryLock is Lock without waiting; ok is false if the lock is taken.
	TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error)
	// URI names the store in messages, without secrets.
	URI() string
	// Check makes one round trip to the store.
	Check(ctx context.Context) error
	Close() error
}
