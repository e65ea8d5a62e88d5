// Package audit records who did what to which key: in the line format of
// Hadoop's kms-audit.log, and as a chain of JSON records from which nothing can
// be taken, and in which nothing can be changed, without Verify finding it.
package audit

import (
	"context"
	"slices"
	"time"

	"claviger"
	"claviger/secret"
)

// Status is the outcome that a line starts with.
type Status string

// The outcomes.
const (
	OK              Status = "OK"
	Unauthorized    Status = "UNAUTHORIZED"
	Unauthenticated Status = "UNAUTHENTICATED"
	Error           Status = "ERROR"
	// Attempt is no outcome: the operation is about to be done, see Guard. Hadoop's
	// log has no such line.
	Attempt Status = "ATTEMPT"
)

// Op is what was asked for, as Hadoop names it: a KMS operation, or (only with
// status Unauthorized) a key-level right such as READ.
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

// Operations on deleted keys, which Hadoop has none of.
const (
	UndeleteKey    Op = "UNDELETE_KEY"
	PurgeKey       Op = "PURGE_KEY"
	GetDeletedKeys Op = "GET_DELETED_KEYS"
)

// MigrateKey takes a key over from the source of a migration: at a user's request,
// or by the server's own user at its start or on the command line.
const MigrateKey Op = "MIGRATE_KEY"

// Operations on delegation tokens, as requests name them. One that succeeds is in
// records alone: Hadoop's lines have none.
const (
	GetDelegationToken    Op = "GETDELEGATIONTOKEN"
	RenewDelegationToken  Op = "RENEWDELEGATIONTOKEN"
	CancelDelegationToken Op = "CANCELDELEGATIONTOKEN"
)

// Event is one audited fact. Absent parts are zero.
type Event struct {
	Time   time.Time // zero: now
	Status Status
	Op     Op
	// KeyRight: Op is a key-level right, not a KMS operation. GENERATE_EEK and
	// DECRYPT_EEK are both; a refused right is never aggregated and ends no
	// aggregation, a refused operation does.
	KeyRight bool
	Key      string
	Caller   claviger.Caller
	// Message is the operation's own remark ("reencrypted 3 keys for key k1"), or
	// for Error and Unauthenticated the first line of what went wrong.
	Message string
	// Method and URL of the request; only Error and Unauthenticated print them.
	Method, URL string

	// What follows is not in Hadoop's lines.

	// Version is the full name of the key version that was used, made or asked
	// for.
	Version string
	// From are the versions that EDEKs were re-encrypted from, without repetition.
	From []string
	// EDEKs is how many EDEKs were made, opened or re-encrypted.
	EDEKs int
	// Token is the sequence number of the delegation token that was issued, renewed
	// or cancelled. Of one that a request brought, Caller has it.
	Token int32
	// Provider is the URI of what did the work: the primary provider (the HSM), or
	// the source that answered; of several, separated by blanks.
	Provider string
}

// masked is the event without credentials, in whichever text a client put one: in
// a path, say, it is the name of a key.
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

// Management are the operations that change keys, or what nodes know of them.
var Management = []Op{CreateKey, DeleteKey, RollNewVersion, InvalidateCache, UndeleteKey, PurgeKey, MigrateKey}

// Operations are all of them.
var Operations = []Op{CreateKey, DeleteKey, RollNewVersion, InvalidateCache, GetKeys, GetKeysMetadata,
	GetMetadata, GetKeyVersions,
	GetKeyVersion, GetCurrentKey, GenerateEEK, DecryptEEK, ReencryptEEK, ReencryptEEKBatch,
	UndeleteKey, PurgeKey, GetDeletedKeys, MigrateKey}

// Guard is a Logger that can be asked to record an operation before it is done.
type Guard interface {
	// Begin returns nil when the operation may be done: it need not be recorded
	// first, or the record of its attempt is where a crash does not take it. Of
	// e, the Status is set by Begin. An error is of kind Unavailable, and nothing
	// has been done.
	Begin(ctx context.Context, e Event) error
}

// Logger takes events. Log never fails towards its caller: a sink that cannot
// write says so through Err.
type Logger interface {
	Log(ctx context.Context, e Event)
	// Err is nil while the sink can write.
	Err() error
	// Close writes what is held back by aggregation, then releases the sink.
	Close() error
}
