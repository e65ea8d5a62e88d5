// Package provider is the contract between the key management service and the holders of EZ keys: an HSM, a keystore
// file, another KMS, memory.
//
// A provider is a driver. Users of keys hold package keyring's Ring, which adds rights, caches, queues, sources and
// audit. Only the Ring and the migration call a Provider. Every implementation passes the suite in
// provider/providertest.
package provider

import (
	"context"
	"errors"
	"time"

	"claviger"
	"claviger/secret"
)

// Spec describes a new key.
type Spec struct {
	Name        string
	Cipher      string            // never empty; e.g. "AES/CTR/NoPadding"
	BitLength   int               // never 0
	Description *string           // nil = none
	Attributes  map[string]string // may be nil
	Material    secret.Bytes      // nil = the provider makes it
	// First is the lowest number that the version may have, for a provider that never gives a number twice: lower
	// numbers name versions of that key elsewhere.
	First int
}

// Reader reads keys, their metadata and their versions.
//
// All methods of all interfaces here may be called at the same time from many
// goroutines, honour ctx, and return *claviger.Error with the kinds named.
// After Close they return kind Closed. Kind Unavailable, from any of them, means that the backing store cannot be
// reached now and that nothing changed.
type Reader interface {
	// Keys returns the names of all keys, in no particular order.
	Keys(ctx context.Context) ([]string, error)
	// Metadata returns one entry for each name, in the order of the names, nil for a key that does not exist.
	// Attributes is never nil in an entry.
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

// MayHave reports whether r may have the version of that full name. Where the version cannot be read now, the result
// is true beside the error.
func MayHave(ctx context.Context, r Reader, version string) (bool, error) {
	v, err := r.Version(ctx, version)
	v.Material.Wipe()
	if claviger.Is(err, claviger.VersionNotFound) {
		return false, nil
	}
	return true, err
}

// Writer makes and deletes keys. A call that fails has changed nothing that a Reader can see. After a crash in
// mid-call, the same call made again finishes the work without a second key.
type Writer interface {
	// Create makes a key with one version and returns the version. Kinds KeyExists, InvalidKeySize, MaterialLength,
	// UnknownCipher, Unsupported (material given to a provider that makes its own), Invalid (a name that the provider
	// cannot hold).
	Create(ctx context.Context, spec Spec) (claviger.KeyVersion, error)
	// Roll adds a version, which becomes the current one. material nil: the
	// provider makes it. Kinds KeyNotFound, MaterialLength, Unsupported.
	Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error)
	// Delete deletes a key with all its versions. Kind KeyNotFound.
	Delete(ctx context.Context, key string) error
}

// Conditional is implemented by a Writer that can check a change in the very step that makes it. So the changed key
// is the one whose rules were asked, whatever other processes do. The Writer calls may with the metadata of the key,
// while no other call can change the key. An error of may ends the call, is returned as it is, and nothing has
// changed. may does not call the provider.
type Conditional interface {
	RollIf(ctx context.Context, key string, material secret.Bytes,
		may func(*claviger.Metadata) error) (claviger.KeyVersion, error)
	DeleteIf(ctx context.Context, key string, may func(*claviger.Metadata) error) error
}

// ErrLost marks an error of kind Unavailable: the records of a key are lost, while its versions still exist. Another
// try helps only after an operator has restored the records.
var ErrLost = errors.New("the records of the key are lost")

// ErrUnusable marks an error of kind Unavailable: the provider lacks the key of a version that it counts, or has
// another key in its place. EDEKs that were made under the version just now may never be opened.
var ErrUnusable = errors.New("the version cannot be used")

// ErrAnswered marks an error of kind Unavailable with which a server answered: it may have refused one user for a
// limit of that user alone. The error does not mean that the server is away. See Answered.
var ErrAnswered = errors.New("the server answered that it cannot serve this now")

// ErrItself marks the error of a source that is this server itself, or another node of its metastore.
var ErrItself = errors.New("it is this server itself, or another node of its metastore, and no source of keys for it; " +
	"name the KMS from which keys were, or are, migrated")

// Answered marks an error with ErrAnswered, and leaves its text as it is. nil stays nil.
func Answered(err error) error {
	if err == nil {
		return nil
	}
	return answered{err}
}

// LoginError marks the error that ended a login at another server: the server or the KDC refused our credentials, or
// the KDC is away. That server may serve others. The text is Err's, which has the cure.
type LoginError struct{ Err error }

func (e *LoginError) Error() string { return e.Err.Error() }
func (e *LoginError) Unwrap() error { return e.Err }

// SeenAs is a refusal by another server with the user name that it gave this server: its own rules of auth_to_local
// make the name of a Kerberos principal.
type SeenAs struct {
	User string
	Err  error
}

func (e *SeenAs) Error() string { return e.Err.Error() }
func (e *SeenAs) Unwrap() error { return e.Err }

type answered struct{ error }

func (a answered) Is(target error) bool { return target == ErrAnswered } //nolint:errorlint // the mark itself

func (a answered) Unwrap() error { return a.error }

// Losses is implemented by a provider that finds out by itself that it lacks the key of a version which it counts,
// also while no request uses that version.
type Losses interface {
	// OnLost sets the function that is called with the name of a key of which a version is newly lost. Call OnLost
	// before the provider is used.
	OnLost(f func(key string))
}

// Anyway is a may that allows every change.
func Anyway(*claviger.Metadata) error { return nil }

// Provider is a Reader and a Writer, and also exactly one of BlockEncrypter and
// EDEKService. It has more than eight methods because Hadoop's KeyProvider has.
type Provider interface {
	Reader
	Writer
	// URI names the provider in messages, as in the configuration, without secrets.
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
	// It is one call to the HSM however long blocks is, as far as the HSM's own limit allows, and may share that call
	// with others at the same time. Kind VersionNotFound. On an error the content of blocks is undefined.
	//
	// Package eek passes counter blocks only, so no provider ever sees a DEK.
	EncryptBlocks(ctx context.Context, version string, blocks []byte) error
}

// Pinned is implemented by a BlockEncrypter that may give the name of a version
// to another key's version after a deletion, as a Java keystore does.
type Pinned interface {
	// EncryptBlocksOf is EncryptBlocks under the very version of an earlier reading. Kind VersionNotFound also where
	// its name belongs to another version by now.
	EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error
}

// EDEKService is implemented by a provider that does not give access to its keys: a KMS elsewhere.
type EDEKService interface {
	// Generate makes n EDEKs under the key's current version. Kind KeyNotFound.
	Generate(ctx context.Context, key string, n int) ([]claviger.EDEK, error)
	// Unwrap returns one DEK for each EDEK, in order. key is their key. as is the short name of the user on whose
	// behalf they are opened (Hadoop's doAs); empty means in our own name. It fails as a whole. Kinds
	// VersionNotFound, WrongKey, Denied, KeyDenied (both: the far side refused).
	Unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error)
	// Reencrypt returns one EDEK for each EDEK, in order, under the key's current version at the far side.
	Reencrypt(ctx context.Context, key string, edeks []claviger.EDEK) ([]claviger.EDEK, error)
}

// Importer is implemented by a provider that can take over a key's metadata from elsewhere, with versions that it
// makes itself.
//
// It numbers versions: their names are NAME@N. N counts up for a name and is never given twice for it, not even after
// the key was deleted and made anew. Metadata.Versions is the newest N + 1. (A keystore file, whose format is Java's,
// does not keep a deleted key's numbers.)
type Importer interface {
	// Import makes a key with m's name, cipher, length, description, attributes and creation time, and n fresh
	// versions (n >= 1), and returns the versions oldest first. Their numbers begin at first, or above it where the
	// name has had higher numbers here: lower numbers name versions elsewhere. m.Versions is not used. Import may be
	// called again after a crash or an error: it uses the versions that an earlier call made. step, if not nil, is
	// called after each durable step with its short name ("intent", "generated 2 of 3", "committed"); an error from
	// step aborts the import, as a crash there would. Kind KeyExists where a key of that name exists already and was
	// not left half-made.
	Import(ctx context.Context, m claviger.Metadata, n, first int, step func(string) error) ([]claviger.KeyVersion,
		error)
}

// Deleted is a deleted key that its provider keeps. Its Metadata is as before the deletion, its attributes never nil.
type Deleted struct {
	claviger.Metadata
	Since time.Time // of its deletion; whole milliseconds
	List  []string  // the full names of its versions, oldest first
}

// SoftDeleter is implemented by a provider that can keep deleted keys. Delete, of Writer, then hides a key from every
// Reader and user, and its name is free for a new key; material and HSM objects stay until Purge. Several deleted
// keys may have one name.
type SoftDeleter interface {
	// Deleted returns the keys that can be undeleted, longest deleted first: those of the given names; all keys where
	// no name is given.
	Deleted(ctx context.Context, names ...string) ([]Deleted, error)
	// Undelete brings back the deleted key of that name that has the version of that
	// full name, with all of its versions, so that what they encrypted can be read
	// again. Kinds KeyNotFound where there is no such deleted key, KeyExists where a
	// key of that name is there now (which must be deleted first; two keys never
	// become one).
	Undelete(ctx context.Context, key, version string) error
	// Purge destroys the deleted keys of that name that have a version of one of these full names. All other keys of
	// that name, deleted or not, stay. It also finishes an interrupted purge of that name; a call without versions
	// does only that. Kind KeyNotFound where there was nothing to do.
	Purge(ctx context.Context, key string, versions ...string) error
}

// VersionFacts describes a version without its key. It holds no secret.
type VersionFacts struct {
	Name    string    // full version name
	Created time.Time // zero: not known
	Label   string    // of its object in the HSM (CKA_LABEL)
	ID      string    // of its object in the HSM (CKA_ID), in hex
}

// Describer is implemented by a provider that knows more of a version than its name. It is for operators.
type Describer interface {
	// Describe returns the versions of a key, oldest first; an empty slice and no
	// error where the key does not exist.
	Describe(ctx context.Context, key string) ([]VersionFacts, error)
}

// Health is implemented by a provider whose backing can fail by itself.
type Health interface {
	// Check makes one cheap round trip to the backing. Its error is for an operator.
	Check(ctx context.Context) error
}
