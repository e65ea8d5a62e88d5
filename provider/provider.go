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
	Description *string           // nil for none
	Attributes  map[string]string // may be nil
	Material    secret.Bytes      // nil if the provider makes it
	// First is the lowest allowed number of the version, for a provider that never uses a number twice: versions of the
	// key elsewhere have lower numbers.
	First int
}

// AdvisedLatency is the highest latency of an HSM that Cloudera's procedure recommends.
const AdvisedLatency = 30 * time.Millisecond

// Reader reads keys, their metadata and their versions.
//
// Many goroutines may call all methods of all interfaces here at the same time. The methods honour ctx, and return
// *claviger.Error with the named kinds. After Close they return kind Closed. Kind Unavailable from any method means
// that the backing store cannot be reached now and that nothing changed.
type Reader interface {
	// Keys returns the names of all keys, in no particular order.
	Keys(ctx context.Context) ([]string, error)
	// Metadata returns one entry for each name, in the order of the names. The entry of a key that does not exist is
	// nil. In other entries, Attributes is never nil.
	Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error)
	// Versions returns all versions of a key, oldest first. If the key does not exist, it returns an empty slice and no
	// error.
	Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error)
	// Current returns the newest version. Kind KeyNotFound.
	Current(ctx context.Context, key string) (claviger.KeyVersion, error)
	// Version returns the version with that full name. Kind VersionNotFound, also for a name that no version can have.
	Version(ctx context.Context, version string) (claviger.KeyVersion, error)
}

// MayHave reports whether r may have the version with that full name. If the version cannot be read now, it returns
// true and the error.
func MayHave(ctx context.Context, r Reader, version string) (bool, error) {
	v, err := r.Version(ctx, version)
	v.Material.Wipe()
	if claviger.Is(err, claviger.VersionNotFound) {
		return false, nil
	}
	return true, err
}

// Writer makes and deletes keys. A call that fails has changed nothing that a Reader can see. If a crash ended a call,
// the same call finishes the work when it is repeated, without a second key.
type Writer interface {
	// Create makes a key with one version and returns the version. Kinds KeyExists, InvalidKeySize, MaterialLength,
	// UnknownCipher, Unsupported (material given to a provider that makes its own), Invalid (a name that the provider
	// cannot hold).
	Create(ctx context.Context, spec Spec) (claviger.KeyVersion, error)
	// Roll adds a version, which becomes the current one. If material is nil, the provider makes it. Kinds KeyNotFound,
	// MaterialLength, Unsupported.
	Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error)
	// Delete deletes a key with all its versions. Kind KeyNotFound.
	Delete(ctx context.Context, key string) error
}

// Conditional is implemented by a Writer that can check and change a key in one step. So the rules are always checked
// for the key that is changed, even if other processes replace keys at the same time. The Writer calls allow with the
// metadata of the key, while no other call can change the key. If allow returns an error, the call changes nothing and
// returns that error unchanged. allow must not call the provider.
type Conditional interface {
	RollIf(ctx context.Context, key string, material secret.Bytes,
		allow func(*claviger.Metadata) error) (claviger.KeyVersion, error)
	DeleteIf(ctx context.Context, key string, allow func(*claviger.Metadata) error) error
}

// ErrLost marks an error of kind Unavailable: the records of a key are lost, while its versions still exist. A retry
// helps only after an operator has restored the records.
var ErrLost = errors.New("the records of the key are lost")

// ErrUnusable marks an error of kind Unavailable: the provider lacks the key of a recorded version, or has another key
// in its place. EDEKs that were just made under the version may never be opened.
var ErrUnusable = errors.New("the version cannot be used")

// ErrAnswered marks an error of kind Unavailable that is a server's answer. The server works, and may have refused one
// user only because of a limit for that user. See Answered.
var ErrAnswered = errors.New("the server answered that it cannot serve this now")

// ErrSourceIsSelf marks the error of a source that is this server itself, or another node of its metastore.
var ErrSourceIsSelf = errors.New("it is this server itself, or another node of its metastore, so it cannot be a " +
	"source of keys; name the KMS from which the keys are or were migrated")

// Answered marks an error with ErrAnswered, and does not change its text. It returns nil for nil.
func Answered(err error) error {
	if err == nil {
		return nil
	}
	return answered{err}
}

// LoginError marks the error of a failed login at another server: the server or the KDC refused our credentials, or the
// KDC does not answer. The server may work for other users. The text of Err says what to do.
type LoginError struct{ Err error }

func (e *LoginError) Error() string { return e.Err.Error() }
func (e *LoginError) Unwrap() error { return e.Err }

// SeenAs is the error of another server that refused a request, with our user name at that server. For a Kerberos
// principal, the server makes the user name by its own rules of auth_to_local.
type SeenAs struct {
	User string
	Err  error
}

func (e *SeenAs) Error() string { return e.Err.Error() }
func (e *SeenAs) Unwrap() error { return e.Err }

type answered struct{ error }

func (a answered) Is(target error) bool { return target == ErrAnswered } //nolint:errorlint // the mark itself

func (a answered) Unwrap() error { return a.error }

// Losses is implemented by a provider that notices by itself that it lacks the key of a recorded version, even if no
// request uses that version.
type Losses interface {
	// OnLost sets the function that is called with the name of a key when the loss of one of its versions is noticed.
	// Call OnLost before the provider is used.
	OnLost(f func(key string))
}

// AllowAll is the argument allow of Conditional that allows every change.
func AllowAll(*claviger.Metadata) error { return nil }

// Provider is a Reader and a Writer, and also exactly one of BlockEncrypter and EDEKService. It has more than eight
// methods because Hadoop's KeyProvider has as many.
type Provider interface {
	Reader
	Writer
	// URI names the provider in messages. It is the URI of the configuration, without secrets.
	URI() string
	// Close releases the provider's resources. Running calls may fail with kind Closed. A second Close does nothing.
	Close() error
}

// BlockEncrypter is implemented by a provider that encrypts with a version's key by itself: with its material, or
// inside an HSM.
type BlockEncrypter interface {
	// EncryptBlocks encrypts blocks in place under the version's key, each 16-byte block by itself (AES in ECB mode).
	// len(blocks) is a multiple of 16. It is one call to the HSM for any length up to the HSM's limit, and may share
	// that call with other EncryptBlocks calls. Kind VersionNotFound. After an error the content of blocks is
	// undefined.
	//
	// Package eek passes counter blocks only, so no provider ever sees a DEK.
	EncryptBlocks(ctx context.Context, version string, blocks []byte) error
}

// Pinned is implemented by a BlockEncrypter that may use the name of a deleted version again for another version, as a
// Java keystore does.
type Pinned interface {
	// EncryptBlocksOf is EncryptBlocks under a version that was read earlier. Kind VersionNotFound also if the name
	// belongs to another version by now.
	EncryptBlocksOf(ctx context.Context, v claviger.KeyVersion, blocks []byte) error
}

// Leaser is implemented by a BlockEncrypter that can say, without a call for each request, that it has the key of a
// version.
type Leaser interface {
	// Lease returns nil if the version's key has encrypted correctly at most length ago. While it is called, the
	// provider lets the key encrypt again in the background, in good time before the end. If the key has not encrypted
	// for longer, or the provider has found since that the key is lost or another key, Lease lets the key encrypt
	// first, and waits for that within ctx. Kinds as EncryptBlocks.
	Lease(ctx context.Context, version string, length time.Duration) error
}

// EDEKService is implemented by a provider that does not give access to its keys: a remote KMS.
type EDEKService interface {
	// Generate makes n EDEKs under the key's current version. Kind KeyNotFound.
	Generate(ctx context.Context, key string, n int) ([]claviger.EDEK, error)
	// Unwrap returns one DEK for each EDEK, in order. key is the key of all EDEKs. user is the short name of the user
	// on whose behalf they are opened (Hadoop's doAs); empty means in our own name. If one EDEK fails, the whole call
	// fails. Kinds VersionNotFound, WrongKey, Denied, KeyDenied (the last two: the remote KMS refused).
	Unwrap(ctx context.Context, key, user string, edeks []claviger.EDEK) ([]secret.Bytes, error)
	// Reencrypt returns one EDEK for each EDEK, in order, under the key's current version at the remote KMS.
	Reencrypt(ctx context.Context, key string, edeks []claviger.EDEK) ([]claviger.EDEK, error)
}

// Importer is implemented by a provider that can take over a key's metadata from another provider. The importing
// provider makes the versions itself.
//
// It numbers versions: their names are NAME@N. N counts up, and is never used twice for a name, even if the key was
// deleted and created again. Metadata.Versions is the newest N + 1. (A keystore file in Java's format is an exception:
// it does not keep a deleted key's numbers.)
type Importer interface {
	// Import makes a key with m's name, cipher, length, description, attributes and creation time, and n new versions
	// (n >= 1), and returns the versions oldest first. Their numbers begin at first, or higher if the name has had
	// higher numbers here. m.Versions is not used. Import may be called again after a crash or an error: it uses the
	// versions that an earlier call made. If step is not nil, Import calls it after each durable step with the step's
	// short name ("intent", "generated 2 of 3", "committed"). An error of step aborts the import, as a crash would.
	// Kind KeyExists if a key of that name exists, and is not the unfinished key of an earlier Import.
	Import(ctx context.Context, m claviger.Metadata, n, first int, step func(string) error) ([]claviger.KeyVersion,
		error)
}

// Deleted is a soft-deleted key. Its Metadata is that before the deletion. Its attributes are never nil.
type Deleted struct {
	claviger.Metadata
	Since time.Time // time of its deletion, in whole milliseconds
	List  []string  // the full names of its versions, oldest first
}

// SoftDeleter is implemented by a provider that can keep deleted keys. Then Writer.Delete hides a key from every Reader
// and user, and its name is free for a new key. Material and HSM objects stay until Purge. Several deleted keys may
// have the same name.
type SoftDeleter interface {
	// Deleted returns the keys of these names that can be undeleted, in the order of their deletion. Without names it
	// returns all deleted keys.
	Deleted(ctx context.Context, names ...string) ([]Deleted, error)
	// Undelete brings back the deleted key that has this name and the version with this full name. All of the key's
	// versions can be used again. Kinds KeyNotFound if there is no such deleted key, KeyExists if a key of that name
	// exists now. That key must be deleted first; two keys are never merged.
	Undelete(ctx context.Context, key, version string) error
	// Purge destroys the deleted keys that have this name and a version with one of these full names. All other keys of
	// that name stay. Purge also finishes an interrupted purge of that name; a call without versions does only that.
	// Kind KeyNotFound if there was nothing to do.
	Purge(ctx context.Context, key string, versions ...string) error
}

// VersionFacts describes a version without its key. It holds no secret.
type VersionFacts struct {
	Name    string    // full version name
	Created time.Time // zero if it is not known
	Label   string    // CKA_LABEL of its object in the HSM
	ID      string    // CKA_ID of its object in the HSM, in hex
}

// Describer is implemented by a provider that knows more about a version than its name. Its results are for operators.
type Describer interface {
	// Describe returns the versions of a key, oldest first. If the key does not exist, it returns an empty slice and no
	// error.
	Describe(ctx context.Context, key string) ([]VersionFacts, error)
}

// Health is implemented by a provider whose backing store can fail.
type Health interface {
	// Check makes one cheap request to the backing store. Its error is for an operator.
	Check(ctx context.Context) error
}
