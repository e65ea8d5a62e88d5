package metastore

import (
	"context"
	"time"

	"claviger/secret"
)

// Cluster is what several nodes share beside keys, so that any of them can answer
// any request. PostgreSQL does all of it; ZooKeeper (package zookeeper) does
// Delegations and Signers, in Hadoop's own layout. SQLite does Delegations, for
// the one node that it is the store of, over its restarts.
type Cluster interface {
	Delegations
	Signers
	Notices
}

// MasterKey makes the passwords of delegation tokens.
type MasterKey struct {
	ID      int32
	Expires time.Time // whole milliseconds; then no token that it made is good any more
	Key     secret.Bytes
}

// Delegation is an issued delegation token.
type Delegation struct {
	Sequence   int32  // of the identifier; the token is found by it
	Identifier []byte // Hadoop's bytes, see package authn
	Password   secret.Bytes
	Renew      time.Time // whole milliseconds; good until then, unless renewed
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
	// RemoveMasterKey takes a key away, if it is there.
	RemoveMasterKey(ctx context.Context, id int32) error
	// PutDelegation writes a token, or replaces the one of its Sequence.
	PutDelegation(ctx context.Context, d Delegation) error
	// RenewDelegation changes Renew of a token that is still there; ok is false
	// where it is not, so that a renewal can't revive what another node cancelled.
	RenewDelegation(ctx context.Context, sequence int32, renew time.Time) (ok bool, err error)
	// Delegation returns a token as every node sees it now: what another node has
	// cancelled before the call is not found. ok is false where there is none.
	Delegation(ctx context.Context, sequence int32) (d Delegation, ok bool, err error)
	// RemoveDelegation takes a token away; ok is false where there was none.
	RemoveDelegation(ctx context.Context, sequence int32) (ok bool, err error)
	// RemoveExpired takes away tokens whose Renew is before a time, and returns how
	// many they were. Several nodes may do it at once.
	RemoveExpired(ctx context.Context, before time.Time) (int, error)
	// Identifiers calls fn with the Identifier of each token that is kept, in no order.
	// It reads them all, so it is not for each request.
	Identifiers(ctx context.Context, fn func(identifier []byte)) error
	// CountDelegations returns how many tokens are kept, expired ones that nobody has
	// removed yet among them.
	CountDelegations(ctx context.Context) (int, error)
}

// SignerSecrets are the secrets that sign cookies, as all nodes agree on them.
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
	// SignerSecrets returns what is there; ok is false where nothing is.
	SignerSecrets(ctx context.Context) (s SignerSecrets, ok bool, err error)
	// SwapSignerSecrets writes s if the store's version is still s.Version (0: if
	// nothing is there); ok is false where another node was first.
	SwapSignerSecrets(ctx context.Context, s SignerSecrets) (ok bool, err error)
}

// Change says what happened to a key.
type Change string

// The changes.
const (
	Created     Change = "created"
	Rolled      Change = "rolled"
	Deleted     Change = "deleted"
	Invalidated Change = "invalidated" // caches are to forget it; nothing has changed
)

// Notice tells nodes of a change that one of them made.
type Notice struct {
	Key    string // "": any key may have changed, since notices may have been lost
	Change Change
}

// Notices carries changes from node to node at once. Whoever needs to be sure
// asks the store: a notice may come late, and after a broken connection only as
// "any key". Insert, Append and Remove of Keys tell their own changes.
type Notices interface {
	// Announce tells the other nodes, and this one.
	Announce(ctx context.Context, n Notice) error
	// Watch calls fn for each notice, one after the other, until ctx ends. It
	// connects anew by itself, and then sends a notice without a key. It returns
	// nil after ctx has ended, an error where watching can't begin.
	Watch(ctx context.Context, fn func(Notice)) error
}

// Hearing tells how well a store hears of what other nodes change.
type Hearing interface {
	// Heard is the time before which each change, whichever node made it, has been told
	// to Watch's fn; zero where nothing was heard yet. It stands still while the store
	// can't be reached. It is for each request: it asks nothing.
	Heard() time.Time
}

// Seen is how something that was asked of a store ended.
type Seen struct {
	At   time.Time // when it ended
	Took time.Duration
	Err  error // nil: all was well
}

// Watched is a store that remembers how it did, and that can be asked whether it takes
// changes. Its Last methods ask nothing; ok is false where nothing was asked yet.
type Watched interface {
	LastRead() (s Seen, ok bool)
	LastWrite() (s Seen, ok bool)
	// CheckWrites makes a small change.
	CheckWrites(ctx context.Context) error
}

// Replicated is a store that has copies which may take its place, and may be behind.
type Replicated interface {
	// Followed waits until the copies that follow now have what was committed before the call.
	// It does not wait for one that is away, nor where the store is not told how far they are.
	// The error says that ctx ended before, or that the store did not answer.
	Followed(ctx context.Context) error
}

// Epochs tell whether what is remembered of a key is still true. A store whose
// keys other nodes change has them.
type Epochs interface {
	// Epoch returns a number that differs after each change of the key (Insert,
	// Append, Remove), whoever made it; 0 where there is no such key. What was
	// changed before the call is seen by it.
	Epoch(ctx context.Context, key string) (int64, error)
}
