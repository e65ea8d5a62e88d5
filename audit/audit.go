// Package audit records who did what to which key. It writes the line format of Hadoop's kms-audit.log, and a chain
// of JSON records. If a record of the chain is removed or changed, Verify finds that.
package audit

import (
	"context"
	"slices"
	"time"

	"claviger"
	"claviger/secret"
)

// Status is the outcome of an operation. A line of Hadoop's log begins with it.
type Status string

// The outcomes.
const (
	OK              Status = "OK"
	Unauthorized    Status = "UNAUTHORIZED"
	Unauthenticated Status = "UNAUTHENTICATED"
	Error           Status = "ERROR"
	// Attempt is not an outcome: the operation is about to begin, see Guard. Hadoop's log has no such line.
	Attempt Status = "ATTEMPT"
)

// Op is Hadoop's name of a KMS operation or, only with status Unauthorized, of a key-level right such as READ.
type Op string

// The KMS operations.
const (
	CreateKey         Op = "CREATE_KEY"
	DeleteKey         Op = "DELETE_KEY"
	RollNewVersion    Op = "ROLL_NEW_VERSION"
	InvalidateCache   Op = "INVALIDATE_CACHE"
	GetKeys           Op = "GET_KEYS"
	GetKeysMetadata   Op = "GET_KEYS_METADATA"
	GetMetadata       Op = "GET_METADATA"
	GetKeyVersions    Op = "GET_KEY_VERSIONS"
	GetKeyVersion     Op = "GET_KEY_VERSION"
	GetCurrentKey     Op = "GET_CURRENT_KEY"
	GenerateEEK       Op = "GENERATE_EEK"
	DecryptEEK        Op = "DECRYPT_EEK"
	ReencryptEEK      Op = "REENCRYPT_EEK"
	ReencryptEEKBatch Op = "REENCRYPT_EEK_BATCH"
)

// Operations on deleted keys. Hadoop has no such operations.
const (
	UndeleteKey    Op = "UNDELETE_KEY"
	PurgeKey       Op = "PURGE_KEY"
	GetDeletedKeys Op = "GET_DELETED_KEYS"
)

// MigrateKey copies a key from the source of a migration. A user's request causes it, or the server's own user at
// start or on the command line.
const MigrateKey Op = "MIGRATE_KEY"

// Operations on delegation tokens, as requests name them. If such an operation succeeds, there is a record of the
// chain, but no line in Hadoop's log.
const (
	GetDelegationToken    Op = "GETDELEGATIONTOKEN"
	RenewDelegationToken  Op = "RENEWDELEGATIONTOKEN"
	CancelDelegationToken Op = "CANCELDELEGATIONTOKEN"
)

// Event is one audited operation. A part that does not apply is zero.
type Event struct {
	Time   time.Time // zero: now
	Status Status
	Op     Op
	// KeyRight means that Op is a key-level right, not a KMS operation. (GENERATE_EEK and DECRYPT_EEK are names of
	// both.) A refused right is never aggregated and ends no aggregation; a refused operation ends one.
	KeyRight bool
	Key      string
	Caller   claviger.Caller
	// Message is the operation's remark ("reencrypted 3 keys for key k1"). For Error and Unauthenticated, it is the
	// first line of the error.
	Message string
	// Method and URL of the request; only Error and Unauthenticated print them.
	Method, URL string

	// The fields below are not in Hadoop's lines.

	// Version is the full name of the key version that was used, made or requested.
	Version string
	// From has the versions that EDEKs were re-encrypted from, without repetition.
	From []string
	// EDEKs is the number of EDEKs that were made, opened or re-encrypted.
	EDEKs int
	// Token is the sequence number of the delegation token that was issued, renewed or cancelled. If a token
	// authenticated the request, its number is in Caller.
	Token int32
	// Provider is the URI of the primary provider (the HSM) or the source that did the work. Several are separated
	// by blanks.
	Provider string
}

// masked returns the event without credentials. A client may put a credential into any text; in a path, for example,
// it becomes the name of a key.
func (e Event) masked() Event {
	e.Op, e.Key, e.Version = Op(secret.Mask(string(e.Op))), secret.Mask(e.Key), secret.Mask(e.Version)
	e.Message, e.Method, e.URL = secret.Mask(e.Message), secret.Mask(e.Method), secret.Mask(e.URL)
	e.Caller.Name, e.Caller.Short = secret.Mask(e.Caller.Name), secret.Mask(e.Caller.Short)
	if real := e.Caller.Real; real != nil {
		if clean := secret.Mask(real.Name); clean != real.Name {
			e.Caller.Real = &claviger.Principal{Name: clean, Short: secret.Mask(real.Short)}
		}
	}
	for i, v := range e.From {
		if clean := secret.Mask(v); clean != v {
			e.From = slices.Clone(e.From)
			e.From[i] = clean
		}
	}
	return e
}

// Management has the operations that change keys, or the keys in the caches of nodes.
var Management = []Op{CreateKey, DeleteKey, RollNewVersion, InvalidateCache, UndeleteKey, PurgeKey, MigrateKey}

// Operations has all operations on keys.
var Operations = []Op{CreateKey, DeleteKey, RollNewVersion, InvalidateCache, GetKeys, GetKeysMetadata, GetMetadata,
	GetKeyVersions, GetKeyVersion, GetCurrentKey, GenerateEEK, DecryptEEK, ReencryptEEK, ReencryptEEKBatch,
	UndeleteKey, PurgeKey, GetDeletedKeys, MigrateKey}

// Guard is a Logger that can record an operation before the operation is done.
type Guard interface {
	// Begin returns nil if the operation may be done: either it needs no record before, or the record of its attempt
	// is stored so that it survives a crash. Begin sets the Status of e. An error is of kind Unavailable; then
	// nothing was done.
	Begin(ctx context.Context, e Event) error
}

// Logger takes events. Log returns no error; if the log cannot be written, Err returns the error.
type Logger interface {
	Log(ctx context.Context, e Event)
	// Err is nil while the log can be written.
	Err() error
	// Close writes the events that aggregation holds back, then closes the log.
	Close() error
}
