package keyring

import (
	"context"
	"log/slog"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/metastore"
	"claviger/provider"
	"claviger/secret"
)

// Source is a provider that is asked for versions which the primary does not
// know.
type Source struct {
	provider.Provider
	// Reencryption: named by hadoop.kms.key.provider.reencryption.source.uri
	// rather than by the provider list.
	Reencryption bool
}

// Config is what a Ring is made of.
type Config struct {
	Primary provider.Provider
	Sources []Source // in the order in which they are asked
	// Policy returns the ACLs in force; it is called once per request.
	Policy func() *authz.Policy
	// KeyAuthorization is hadoop.kms.key.authorization.enable.
	KeyAuthorization bool
	// Groups returns the groups of a user's short name.
	Groups func(user string) []string
	Audit  audit.Logger
	Log    *slog.Logger
	// Reencryption is hadoop.kms.reencryption.crypto.enable: may EDEKs of a
	// source's versions be re-wrapped under ours?
	Reencryption bool
	// Usage keeps the counters of source versions; nil keeps none across
	// restarts.
	Usage metastore.Usage

	DefaultCipher    string // hadoop.security.key.default.cipher
	DefaultBitLength int    // hadoop.security.key.default.bitlength

	CacheEnable         bool          // hadoop.kms.cache.enable
	CacheTimeout        time.Duration // hadoop.kms.cache.timeout.ms, after last access
	CurrentCacheTimeout time.Duration // hadoop.kms.current.key.cache.timeout.ms, after write

	QueueSize         int           // hadoop.security.kms.encrypted.key.cache.size
	QueueLowWatermark float64       // ...low.watermark
	QueueExpiry       time.Duration // ...expiry
	QueueFillers      int           // ...num.fill.threads

	SourceTimeout time.Duration // of one call to a source
}

// Ring is the key management service. Its methods may be called from many
// goroutines. Each takes who asks, decides whether he may, and leaves audit
// events as Hadoop's KMS does. Errors are *claviger.Error.
type Ring struct{}

func New(Config) (*Ring, error) { panic("not built") }

// Close stops the queues and writes the counters. It does not close the
// providers.
func (r *Ring) Close() error { panic("not built") }

// Create makes a key. spec.Cipher "" and spec.BitLength 0 take the defaults. The
// version's material is withheld from a caller without the GET right.
func (r *Ring) Create(ctx context.Context, c claviger.Caller, spec provider.Spec) (provider.KeyVersion, error) {
	panic("not built")
}

// Roll adds a version; material as in Create.
func (r *Ring) Roll(ctx context.Context, c claviger.Caller, key string, material secret.Bytes) (provider.KeyVersion, error) {
	panic("not built")
}

// Delete ends a key.
func (r *Ring) Delete(ctx context.Context, c claviger.Caller, key string) error { panic("not built") }

// Invalidate forgets what is cached of a key and drains its queue of EDEKs. A
// key that does not exist is no error.
func (r *Ring) Invalidate(ctx context.Context, c claviger.Caller, key string) error {
	panic("not built")
}

// Names returns all key names.
func (r *Ring) Names(ctx context.Context, c claviger.Caller) ([]string, error) { panic("not built") }

// KeysMetadata returns one entry per key in order, nil for missing ones.
func (r *Ring) KeysMetadata(ctx context.Context, c claviger.Caller, keys []string) ([]*claviger.Metadata, error) {
	panic("not built")
}

// Metadata returns nil without an error for a missing key.
func (r *Ring) Metadata(ctx context.Context, c claviger.Caller, key string) (*claviger.Metadata, error) {
	panic("not built")
}

// Current returns nil without an error for a missing key.
func (r *Ring) Current(ctx context.Context, c claviger.Caller, key string) (*provider.KeyVersion, error) {
	panic("not built")
}

// Version returns nil without an error for a missing version.
func (r *Ring) Version(ctx context.Context, c claviger.Caller, version string) (*provider.KeyVersion, error) {
	panic("not built")
}

// Versions returns all versions of a key, oldest first; none for a missing key.
func (r *Ring) Versions(ctx context.Context, c claviger.Caller, key string) ([]provider.KeyVersion, error) {
	panic("not built")
}

// Generate makes n EDEKs under the key's current version; n <= 0 makes none.
func (r *Ring) Generate(ctx context.Context, c claviger.Caller, key string, n int) ([]claviger.EDEK, error) {
	panic("not built")
}

// Decrypt opens one EDEK. key is the name that the request gave, "" and
// hasKey false where it gave none.
func (r *Ring) Decrypt(ctx context.Context, c claviger.Caller, key string, hasKey bool, e claviger.EDEK) (secret.Bytes, error) {
	panic("not built")
}

// Reencrypt wraps one EDEK's DEK anew under the current version, same IV.
func (r *Ring) Reencrypt(ctx context.Context, c claviger.Caller, key string, hasKey bool, e claviger.EDEK) (claviger.EDEK, error) {
	panic("not built")
}

// ReencryptBatch does so for many, in order; an EDEK that is at the current
// version already comes back as it was.
func (r *Ring) ReencryptBatch(ctx context.Context, c claviger.Caller, key string, es []claviger.EDEK) ([]claviger.EDEK, error) {
	panic("not built")
}
