// Package audit records who did what to which key, in the line format of
// Hadoop's kms-audit.log.
package audit

import (
	"context"
	"time"

	"claviger"
)

// Status is the outcome that a line starts with.
type Status string

// The outcomes.
const (
	OK              Status = "OK"
	Unauthorized    Status = "UNAUTHORIZED"
	Unauthenticated Status = "UNAUTHENTICATED"
	Error           Status = "ERROR"
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
