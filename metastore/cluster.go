package metastore

import (
	"context"
	"time"

	"claviger/secret"
)

// Cluster is what several nodes share beside keys, so that any of them can answer any request. PostgreSQL
// implements all of it. ZooKeeper (package zookeeper) implements Delegations and Signers, in Hadoop's own
// layout. SQLite implements Delegations for its one node, whose tokens then survive a restart.
type Cluster interface {
	Delegations
	Signers
	Notices
}

// MasterKey makes the passwords of delegation tokens.
type MasterKey struct {
	ID      int32
	Expires time.Time // whole milliseconds; the tokens that it made are valid until then at most
	Key     secret.Bytes
}

// Delegation is an issued delegation token.
type Delegation struct {
	Sequence   int32  // of the identifier; tokens are looked up by it
	Identifier []byte // Hadoop's bytes, see package authn
	Password   secret.Bytes
	Renew      time.Time // whole milliseconds; valid until then, unless renewed
}

// Delegations keeps delegation tokens and the keys that made them.
type Delegations interface {
	Clock
	// NextSequences reserves n sequence numbers, which no node has had, and returns
	// the first.
	NextSequences(ctx context.Context, n int32) (first int32, err error)
	// NextKeyID returns an id that no master key has had.
	NextKeyID(ctx context.Context) (int32, error)
	// PutMasterKey writes or replaces a key by its ID.
	PutMasterKey(ctx context.Context, k MasterKey) error
	// MasterKeys returns all keys, by ID.
	MasterKeys(ctx context.Context) ([]MasterKey, error)
	// RemoveMasterKey removes a key, if it exists.
	RemoveMasterKey(ctx context.Context, id int32) error
	// PutDelegation writes a token, or replaces the one of its Sequence.
	PutDelegation(ctx context.Context, d Delegation) error
	// RenewDelegation changes Renew of a token. ok is false where the token does not exist,
	// so a renewal cannot bring back a token that another node has cancelled.
	RenewDelegation(ctx context.Context, sequence int32, renew time.Time) (ok bool, err error)
	// Delegation returns the current state of a token: a token that any node has cancelled
	// before the call is not found. ok is false where there is none.
	Delegation(ctx context.Context, sequence int32) (d Delegation, ok bool, err error)
	// RemoveDelegation removes a token; ok is false where there was none.
	RemoveDelegation(ctx context.Context, sequence int32) (ok bool, err error)
	// RemoveExpired removes the tokens whose Renew is before a time, and returns their
	// number. Several nodes may call it at once.
	RemoveExpired(ctx context.Context, before time.Time) (int, error)
	// Identifiers calls fn with the Identifier of each token, in no order. It reads all
	// tokens, so it is too slow to be called for each request.
	Identifiers(ctx context.Context, fn func(identifier []byte)) error
	// CountDelegations returns the number of tokens, including expired ones that no node has
	// removed yet.
	CountDelegations(ctx context.Context) (int, error)
}

// SignerSecrets are the secrets that sign cookies. All nodes use the same ones.
type SignerSecrets struct {
	Next, Current secret.Bytes
	Previous      secret.Bytes // nil: none yet
	Rollover      time.Time    // whole milliseconds; when Next becomes Current
	// Version is the store's own: it changes with every write. 0: not written yet.
	Version int64
}

// Signers keeps the secrets that sign cookies. Nodes roll them without a leader:
// each tries to write the next state, and one wins.
type Signers interface {
	// SignerSecrets returns the current state; ok is false where none is written yet.
	SignerSecrets(ctx context.Context) (s SignerSecrets, ok bool, err error)
	// SwapSignerSecrets writes s if the store's version is still s.Version (0: none is
	// written yet); ok is false where another node was first.
	SwapSignerSecrets(ctx context.Context, s SignerSecrets) (ok bool, err error)
}

// Change says what happened to a key.
type Change string

// The changes.
const (
	Created     Change = "created"
	Rolled      Change = "rolled"
	Deleted     Change = "deleted"
	Invalidated Change = "invalidated" // nothing has changed, but caches must forget the key
)

// Notice reports a change that a node has made.
type Notice struct {
	Key    string // "": any key may have changed, since notices may have been lost
	Change Change
}

// Notices carries changes from node to node at once. A notice may come late, and after a broken connection only
// as "any key", so code that must be certain reads the store. Insert, Append and Remove of Keys announce their
// own changes.
type Notices interface {
	// Announce sends a notice to the other nodes, and to this one.
	Announce(ctx context.Context, n Notice) error
	// Watch calls fn for each notice, one after the other, until ctx ends. It connects
	// again by itself, and then calls fn with a notice without a key. It returns nil after
	// ctx has ended, and an error where watching cannot begin.
	Watch(ctx context.Context, fn func(Notice)) error
}

// Hearing says how recent the notices of a store are.
type Hearing interface {
	// Heard returns a time: every change that any node made before it was passed to Watch's
	// fn. It is zero where none was passed yet, and stands still while the store cannot be
	// reached. It sends no query, so it is cheap enough to be called for each request.
	Heard() time.Time
}

// Seen is the result of a query or a change of a store.
type Seen struct {
	At   time.Time // when it ended
	Took time.Duration
	Err  error // nil: it succeeded
}

// Watched is a store that remembers its last results, and that can test whether it takes changes. LastRead and
// LastWrite send no query; ok is false where there is no result yet.
type Watched interface {
	LastRead() (s Seen, ok bool)
	LastWrite() (s Seen, ok bool)
	// CheckWrites makes a small change.
	CheckWrites(ctx context.Context) error
}

// Replicated is a store with copies that may take its place, and that may be behind.
type Replicated interface {
	// Followed waits until the copies that are connected now have all that was committed before
	// the call. It does not wait for a copy that is not connected, nor where the store does not
	// know how far its copies are. The error says that ctx ended before, or that the store did
	// not answer.
	Followed(ctx context.Context) error
}

// Epochs show whether a cached key is still current. A store that other nodes change implements them.
type Epochs interface {
	// Epoch returns a number that differs after each change of the key (Insert, Append,
	// Remove) by any node; 0 where there is no such key. It covers all changes before
	// the call.
	Epoch(ctx context.Context, key string) (int64, error)
}
