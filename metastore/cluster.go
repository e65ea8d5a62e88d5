package metastore

import (
	"context"
	"time"

	"claviger/secret"
)

// Cluster is the data that several nodes share beside keys, so that any node can answer any request. PostgreSQL
// implements all of it. ZooKeeper (package zookeeper) implements Delegations and Signers, in Hadoop's own layout.
// SQLite implements Delegations for one node, so that tokens survive a restart.
type Cluster interface {
	Delegations
	Signers
	Notices
}

// MasterKey makes the passwords of delegation tokens.
type MasterKey struct {
	ID      int32
	Expires time.Time // whole milliseconds; no token of this key is valid after that time
	Key     secret.Bytes
}

// Delegation is an issued delegation token.
type Delegation struct {
	Sequence   int32  // the number in the identifier, by which a token is looked up
	Identifier []byte // Hadoop's bytes, see package authn
	Password   secret.Bytes
	Renew      time.Time // whole milliseconds; valid until then, unless renewed
}

// Delegations keeps delegation tokens and the keys that made them.
type Delegations interface {
	Clock
	// NextSequences reserves n sequence numbers that no node has got before, and returns the
	// first.
	NextSequences(ctx context.Context, n int32) (first int32, err error)
	// NextKeyID returns an id that no master key has had.
	NextKeyID(ctx context.Context) (int32, error)
	// PutMasterKey writes or replaces a key by its ID.
	PutMasterKey(ctx context.Context, k MasterKey) error
	// MasterKeys returns all keys, by ID.
	MasterKeys(ctx context.Context) ([]MasterKey, error)
	// RemoveMasterKey removes a key, if it exists.
	RemoveMasterKey(ctx context.Context, id int32) error
	// PutDelegation writes a token, or replaces the token with the same Sequence.
	PutDelegation(ctx context.Context, d Delegation) error
	// RenewDelegation changes Renew of a token. ok is false if the token does not exist, so a
	// renewal cannot bring back a token that another node has cancelled.
	RenewDelegation(ctx context.Context, sequence int32, renew time.Time) (ok bool, err error)
	// Delegation returns the current state of a token: a token that any node has cancelled
	// before the call is not found. ok is false if the token does not exist.
	Delegation(ctx context.Context, sequence int32) (d Delegation, ok bool, err error)
	// RemoveDelegation removes a token; ok is false if the token did not exist. A store of Notices announces it as
	// TokenRemoved.
	RemoveDelegation(ctx context.Context, sequence int32) (ok bool, err error)
	// RemoveExpired removes the tokens whose Renew is before a time, and returns their
	// number. Several nodes may call it at once.
	RemoveExpired(ctx context.Context, before time.Time) (int, error)
	// Identifiers calls fn with the Identifier of each token, in any order. It reads all
	// tokens, so it is too slow to be called for each request.
	Identifiers(ctx context.Context, fn func(identifier []byte)) error
	// CountDelegations returns the number of tokens, including expired ones that no node has
	// removed yet.
	CountDelegations(ctx context.Context) (int, error)
}

// SignerSecrets are the secrets that sign cookies. All nodes use the same ones.
type SignerSecrets struct {
	Next, Current secret.Bytes
	Previous      secret.Bytes // nil before the first rollover
	Rollover      time.Time    // whole milliseconds; when Next becomes Current
	// Version is a number that the store changes with every write. 0 means that no secrets
	// are written yet.
	Version int64
}

// Signers keeps the secrets that sign cookies. Nodes roll them without a leader: each node tries to write the next
// secrets, and one of them succeeds.
type Signers interface {
	// SignerSecrets returns the current secrets; ok is false if none are written yet.
	SignerSecrets(ctx context.Context) (s SignerSecrets, ok bool, err error)
	// SwapSignerSecrets writes s if the store's version is still s.Version (0: no secrets are
	// written yet); ok is false if another node has written before.
	SwapSignerSecrets(ctx context.Context, s SignerSecrets) (ok bool, err error)
}

// Change says what happened to a key or a delegation token.
type Change string

// The changes.
const (
	Created     Change = "created"
	Rolled      Change = "rolled"
	Deleted     Change = "deleted"
	Invalidated Change = "invalidated" // nothing has changed, but caches must forget the key
	// TokenRemoved says that the delegation token with the number Notice.Token was removed. Key is "".
	TokenRemoved Change = "token removed"
)

// Notice reports a change that a node has made.
type Notice struct {
	Key    string // "" without TokenRemoved: notices may be lost, so any key may have changed
	Change Change
	Token  int32 // the token's Sequence, for TokenRemoved
}

// Notices reports changes to other nodes immediately. A notice may come late, and after a broken connection it only
// says "any key", so code that must be certain reads the store. Insert, Append and Remove of Keys, and FinishCreate and
// FinishRoll of Intents, announce their own changes.
type Notices interface {
	// Announce sends a notice to the other nodes, and to this one.
	Announce(ctx context.Context, n Notice) error
	// Watch calls fn for each notice, one at a time, until ctx ends. After a broken
	// connection it connects again, and calls fn with a notice without a key. It returns nil
	// after ctx has ended, and an error if it cannot begin.
	Watch(ctx context.Context, fn func(Notice)) error
}

// NoticeProgress says how recent the notices of a store are.
type NoticeProgress interface {
	// NoticesUntil returns a time: Watch's fn was called for every change that any node made before that time. It is
	// zero until Watch has read the changes once, and it does not advance while the store cannot be reached. The
	// method sends no query, so it may be called for each request.
	NoticesUntil() time.Time
}

// Seen is the result of a query or a change of a store.
type Seen struct {
	At   time.Time // when the query or change ended
	Took time.Duration
	Err  error // nil after a success
}

// Watched is a store that remembers its last results, and that can test whether it accepts changes. LastRead and
// LastWrite send no query; ok is false if there is no result yet.
type Watched interface {
	LastRead() (s Seen, ok bool)
	LastWrite() (s Seen, ok bool)
	// CheckWrites makes a small change.
	CheckWrites(ctx context.Context) error
}

// Replicated is a store with standbys, which may take its place, and which may be behind.
type Replicated interface {
	// WaitForStandbys waits until the connected standbys have all changes that were committed before the call. It does
	// not wait for a standby that is not connected. It does not wait at all if the store does not know which changes
	// its standbys have. The error says that ctx ended first, or that the store did not answer.
	WaitForStandbys(ctx context.Context) error
	// Replication returns an error if changes that were acknowledged may get lost when a standby takes the place of the
	// server.
	Replication(ctx context.Context) error
	// Servers names the servers that this process has used. Call it before one change and after a later one: if both
	// results are equal, no standby has taken over, and no earlier state was restored, between the two changes. It
	// sends no query.
	Servers() string
}

// Epochs show whether a cached key is still current. A store that other nodes change implements them.
type Epochs interface {
	// Epoch returns a number that differs after each change of the key (Insert, Append,
	// Remove) by any node; 0 if the key does not exist. It covers all changes before the
	// call.
	Epoch(ctx context.Context, key string) (int64, error)
}
