// Package provider is the contract between the key management service and
// whatever holds EZ keys: an HSM, a keystore file, another KMS, memory.
//
// A provider is a driver. Users of keys hold package keyring's Ring, which adds
// rights, caches, queues, sources and audit; only the Ring and the migration
// speak to a Provider. Every implementation passes the suite in
// provider/providertest.
package provider

import (
	"context"
	"errors"
	"time"

	"claviger"
	"claviger/secret"
)

// Spec is what a new key shall be.
type Spec struct {
	Name        string
	Cipher      string            // never empty; e.g. "AES/CTR/NoPadding"
	BitLength   int               // never 0
	Description *string           // nil = none
	Attributes  map[string]string // may be nil
	Material    secret.Bytes      // nil = the provider makes it
	// First is the lowest number that the version may have, of a provider that
	// numbers versions for good: lower ones name versions of that key elsewhere.
	First int
}

// Reader tells what keys there are.
//
// All methods of all interfaces here may be called at the same time from many
// goroutines, honour ctx, and return *claviger.Error with the kinds named.
// After Close they return kind Closed. Kind Unavailable, from any of them,
// means that the backing store cannot be reached now and that nothing changed.
type Reader interface {
	// Keys returns the names of all keys, in no particular order.
	Keys(ctx context.Context) ([]string, error)
	// Metadata returns one entry per name, in the order asked, nil for a key that
	// does not exist. Attributes is never nil in an entry.
	Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error)
	// Versions returns all versions of a key, oldest first; an empty slice and no
	// error where the key does not exist.
	Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error)
	// Current returns the newest version. Kind KeyNotFound.
	Current(ctx context.Context, key string) (claviger.KeyVersion, error)
	// Version returns the version of that full name. Kind VersionNotFound, also
	// for a name that no version can have.
	Version(ctx context.Context, version string) (claviger.KeyVersion, error)
}

// MayHave tells whether r has the version of that full name. A version that cannot be read
// now may be there: then it is true beside the error.
func MayHave(ctx context.Context, r Reader, version string) (bool, error) {
	v, err := r.Version(ctx, version)
	v.Material.Wipe()
	if claviger.Is(err, claviger.VersionNotFound) {
		return false, nil
	}
	return true, err
}

// Writer makes and ends keys. A call that fails has changed nothing that a
// Reader can see; after a crash in mid-call, the same call made again finishes
// the work without a second key.
type Writer interface {
	// Create makes a key with one version and returns that. Kinds KeyExists,
	// InvalidKeySize, MaterialLength, UnknownCipher, Unsupported (material given
	// to a provider that makes its own), Invalid (a name that it cannot hold).
	Create(ctx context.Context, spec Spec) (claviger.KeyVersion, error)
	// Roll adds a version, which becomes the current one. material nil: the
	// provider makes it. Kinds KeyNotFound, MaterialLength, Unsupported.
	Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error)
	// Delete ends a key with all its versions. Kind KeyNotFound.
	Delete(ctx context.Context, key string) error
}

// Conditional is implemented by a Writer that can have a change allowed in the very
// step that makes it: so the key that is changed is the one whose rules were asked,
// whatever other processes do. may gets the metadata of the key as it is changed,
// and is called while nobody else can change it; its error ends the call, is
// returned as it is, and nothing was changed. It does not call the provider.
type Conditional interface {
	RollIf(ctx context.Context, key string, material secret.Bytes, may func(*claviger.Metadata) error) (claviger.KeyVersion, error)
	DeleteIf(ctx context.Context, key string, may func(*claviger.Metadata) error) error
}

// ErrLost marks what is Unavailable because the records of a key are lost, while its
// versions are still held: asking again helps only when an operator has brought them
// back.
var ErrLost = errors.New("the records of the key are lost")

// ErrUnusable marks what is Unavailable because the provider lacks the key of a version
// that it counts, or has another in its place: what was encrypted under the version just
// now may never be opened.
var ErrUnusable = errors.New("the version cannot be used")

// ErrAnswered marks what is Unavailable by the word of a server that was reached: it may
// have refused one user for a limit of that user alone. It tells nothing against the
// server as a whole. See Answered.
var ErrAnswered = errors.New("the server answered that it cannot serve this now")

// ErrItself marks what a source cannot tell because it is the asking server itself, or
// another node of its metastore.
var ErrItself = errors.New("it is this server itself, or another node of its metastore, and no source of keys for it; " +
	"name the KMS from which keys were, or are, migrated")

// Answered marks an error with ErrAnswered, and leaves its text as it is. nil stays nil.
func Answered(err error) error {
	if err == nil {
		return nil
	}
	return answered{err}
}

// LoginError marks what ended a login at another server: credentials of ours that it or
// the KDC does not take, or a KDC that is away. It says nothing of whether that server
// serves others. Its text is Err's, which has the cure.
type LoginError struct{ Err error }

func (e *LoginError) Error() string { return e.Err.Error() }
func (e *LoginError) Unwrap() error { return e.Err }

// SeenAs is a refusal by another server that says as whom it saw this one, which its
// own rules decide: of a Kerberos principal its rules of auth_to_local make a name.
type SeenAs struct {
	User string
	Err  error
}

func (e *SeenAs) Error() string { return e.Err.Error() }
func (e *SeenAs) Unwrap() error { return e.Err }

type answered struct{ error }

func (a answered) Is(target error) bool { return target == ErrAnswered } //nolint:errorlint // the mark itself

func (a answered) Unwrap() error { return a.error }

// Losses is implemented by a provider that finds out by itself that it lacks the key of a
// version which it counts, also while nothing is asked of that version.
type Losses interface {
	// OnLost sets what is called with the name of a key of which a version was newly found
	// to be lost. It is set before the provider is used.
	OnLost(f func(key string))
}

// Anyway is the may of who asks nothing.
func Anyway(*claviger.Metadata) error { return nil }

// Provider is a Reader and a Writer, and also exactly one of BlockEncrypter and
// EDEKService. It has more than eight methods because Hadoop's KeyProvider has.
type Provider interface {
	Reader
	Writer
	// URI names the provider in messages, in the form that the configuration
	// gave it, without secrets.
	URI() string
	// Close releases what the provider holds. Calls under way may fail with kind
	// Closed. A second Close does nothing.
	Close() error
}

// BlockEncrypter is implemented by a provider that can use a version's key
// itself: from material, or inside an HSM.
type BlockEncrypter interface {
	// EncryptBlocks encrypts blocks in place under the version's key, each
	// 16-byte block by itself (AES in ECB mode). len(blocks) is a multiple of 16.
	// It is one call to the HSM however long blocks is, as far as the HSM's own
	// limit allows, and may share that call with others who ask at the same time.
	// Kind VersionNotFound. On an error the content of blocks is undefined.
	//
	// Package eek feeds it counter blocks only, which is why no provider ever sees
	// a DEK.
	EncryptBlocks(ctx context.Context, version string, blocks []byte) error
}

// Pinned is implemented by a BlockEncrypter that may give the name of a version
// to another key's version after a deletion, as a Java keystore does.
type Pinned interface {
	// EncryptBlocksOf is EncryptBlocks under the very version that an earlier
	// reading gave. Kind VersionNotFound also where its name belongs to another
	// version by now.
	EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error
}

// EDEKService is implemented by a provider that lets nobody near its keys: a
// KMS elsewhere.
type EDEKService interface {
	// Generate makes n EDEKs under the key's current version. Kind KeyNotFound.
	Generate(ctx context.Context, key string, n int) ([]claviger.EDEK, error)
	// Unwrap returns one DEK per EDEK, in order. key is the key they belong to. as
	// is the short name of the user on whose behalf it is asked (Hadoop's doAs);
	// empty means in our own name. It fails as a whole. Kinds VersionNotFound,
	// WrongKey, Denied, KeyDenied (both: the far side refused).
	Unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error)
	// Reencrypt returns one EDEK per EDEK, in order, under the key's current
	// version at the far side.
	Reencrypt(ctx context.Context, key string, edeks []claviger.EDEK) ([]claviger.EDEK, error)
}

// Importer is implemented by a provider that can take over a key's metadata
// from elsewhere, with versions of its own making.
//
// It numbers versions: their names are NAME@N, N counts up for a name and is never
// given twice for it, not even after the key was deleted and made anew; and
// Metadata.Versions is the newest N + 1. (Of a keystore file, whose format is
// Java's, a deleted key's numbers are forgotten.)
type Importer interface {
	// Import makes a key with m's name, cipher, length, description, attributes
	// and creation time, and n fresh versions (n >= 1), and returns them oldest
	// first. Their numbers begin at first, or above where the name has had higher
	// ones here: lower ones name versions elsewhere. m.Versions is not used. It is safe to call again after a crash or an error: what an earlier
	// call made is used, not made twice. step, if not nil, is called after each
	// durable step with a short name of it ("intent", "generated 2 of 3",
	// "committed"); an error from it aborts the import, as a crash there would.
	// Kind KeyExists where a key of that name is there already and was not left
	// half-made.
	Import(ctx context.Context, m claviger.Metadata, n, first int, step func(string) error) ([]claviger.KeyVersion, error)
}

// Deleted is a key that was deleted softly. Its Metadata is as it was, its
// attributes never nil.
type Deleted struct {
	claviger.Metadata
	Since time.Time // of its deletion; whole milliseconds
	List  []string  // the full names of its versions, oldest first
}

// SoftDeleter is implemented by a provider that can keep deleted keys. Delete, of
// Writer, then takes a key out of every Reader's and user's sight, and its name is
// free for a new key; material and HSM objects stay until Purge. Several deleted
// keys may have one name.
type SoftDeleter interface {
	// Deleted returns the keys that can be brought back, longest deleted first: those
	// of the names given, all where no name is given.
	Deleted(ctx context.Context, names ...string) ([]Deleted, error)
	// Undelete brings back the deleted key of that name that has the version of that
	// full name, with all of its versions, so that what they encrypted can be read
	// again. Kinds KeyNotFound where there is no such deleted key, KeyExists where a
	// key of that name is there now (which must be deleted first; two keys never
	// become one).
	Undelete(ctx context.Context, key, version string) error
	// Purge ends for ever the deleted keys of that name that have a version of one of
	// these full names; all others of that name, deleted or not, are not touched. It
	// also finishes a purge of that name that was broken off: the same call does,
	// and a call without versions does nothing else. Kind KeyNotFound where there was
	// nothing to do.
	Purge(ctx context.Context, key string, versions ...string) error
}

// VersionFacts is what is known of a version beside its key; none of it is secret.
type VersionFacts struct {
	Name    string    // full version name
	Created time.Time // zero: not known
	Label   string    // of its object in the HSM (CKA_LABEL)
	ID      string    // of its object in the HSM (CKA_ID), in hex
}

// Describer is implemented by a provider that knows more of a version than its
// name, for operators who look.
type Describer interface {
	// Describe returns the versions of a key, oldest first; an empty slice and no
	// error where the key does not exist.
	Describe(ctx context.Context, key string) ([]VersionFacts, error)
}

// Health is implemented by a provider whose backing can fail by itself.
type Health interface {
	// Check makes one cheap round trip to the backing, and says what is wrong in
	// words for an operator.
	Check(ctx context.Context) error
}
