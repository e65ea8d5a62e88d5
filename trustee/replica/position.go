package replica

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"claviger"
	"claviger/trustee/server"
)

// Ops of a Change.
const (
	OpAddOrg    = "add-org"
	OpSetAuth   = "set-auth"
	OpAddClient = "add-client"
	OpSetState  = "set-state"
	OpPut       = "put"
	OpDelete    = "delete"
	OpUndelete  = "undelete"
	OpPurge     = "purge"
	OpForget    = "forget"
)

// A Change describes one change of a Store by the arguments of the method that Op names. It has the same
// effect on every store with the same records.
type Change struct {
	Op       string         `json:"op"`
	Org      *server.Org    `json:"org,omitempty"`
	Client   *server.Client `json:"client,omitempty"`
	Deposit  *server.Row    `json:"deposit,omitempty"`
	Replaces string         `json:"replaces,omitempty"`
	Name     string         `json:"name,omitempty"` // of an organization, or the fingerprint of a client
	Auth     string         `json:"auth,omitempty"`
	State    server.State   `json:"state,omitempty"`
	Owner    string         `json:"owner,omitempty"`
	UUIDs    []string       `json:"uuids,omitempty"`
	At       time.Time      `json:"at,omitzero"`
	Once     server.Once    `json:"once,omitzero"`
}

// Head is the end of a log. Two logs with equal heads hold the same changes from the same start.
// Seq is 0 for a log that never began.
type Head struct {
	Seq    uint64 `json:"seq"`
	Epoch  uint64 `json:"epoch"` // of the last change
	Digest string `json:"digest"`
}

// An Entry is a change in the log. Its digest covers the digest of the entry before it.
type Entry struct {
	Head
	Change json.RawMessage `json:"change"`
}

// Next makes the entry that follows h.
func (h Head) Next(epoch uint64, change []byte) Entry {
	seq := h.Seq + 1
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%s\n%d\n%d\n", h.Digest, seq, epoch) // a hash never fails
	_, _ = sum.Write(change)
	return Entry{Head{seq, epoch, hex.EncodeToString(sum.Sum(nil))}, change}
}

// NewBranch makes a head that no other log has, for records that were not made by the changes in this log.
func (h Head) NewBranch(epoch uint64) Head {
	var b [sha256.Size]byte
	_, _ = rand.Read(b[:]) // it never fails
	return Head{h.Seq + 1, epoch, hex.EncodeToString(b[:])}
}

// Position is the role of a store as one of two, and the end of its log.
type Position struct {
	Role server.Role `json:"role"`
	// Epoch counts promotions. If both servers are active, the one with the lower epoch was replaced.
	Epoch uint64 `json:"epoch"`
	// Alone is true if an operator lets the active server make changes that the passive server
	// does not have.
	Alone bool `json:"alone"`
	// Unshared is the first change that this store committed without its peer, or 0 if the peer
	// has every change.
	Unshared uint64 `json:"unshared,omitempty"`
	Head     Head   `json:"head"`
	// Fault says why the store accepts no changes, or is "". The server fills it in. It is not stored.
	Fault string `json:"fault,omitempty"`
}

// A Guard is called in the transaction of a change, before its commit. The change is committed if and
// only if err is nil. shared is true if the peer has the change. before is the store's position without
// the change.
type Guard func(ctx context.Context, before Position, e Entry) (shared bool, err error)

// Admit decides whether a store at position s may commit a change, which the caller has made in an open
// transaction. It returns the entry of the change for the log. shared is true if the peer has every
// change up to e. Otherwise s.Unshared becomes the first change that the peer may lack. g is nil for a
// process without a Replica, like orgtool: its changes reach the peer later.
func (s *Position) Admit(ctx context.Context, g *Guard, change []byte) (e Entry, shared bool, err error) {
	e = s.Head.Next(s.Epoch, change)
	if g != nil {
		if shared, err = (*g)(ctx, *s, e); err != nil {
			return e, false, err
		}
	}
	if !shared && s.Unshared == 0 {
		s.Unshared = e.Seq
	}
	return e, shared && s.Unshared == 0, nil
}

// ErrChain is in the error of kind Invalid for entries that do not follow the entries of a log.
var ErrChain = errors.New("the changes do not follow those that this Key Trustee Server has")

// Logged is a Store with a log of its changes, which keeps a second store equal. If the role is not
// RoleSingle, every change of any process goes into the log.
type Logged interface {
	server.Store
	// Position returns the store's position after its last change.
	Position(ctx context.Context) (Position, error)
	// UpdatePosition changes the position by f, durably. f must not change Head. The log of a single
	// store begins when the store becomes active. After an error of f nothing has changed.
	UpdatePosition(ctx context.Context, f func(*Position) error) (Position, error)
	// Guard makes the store call g for each change that this process makes.
	Guard(g Guard)
	// Entries returns the entries that follow after: at most limit entries, and at most bytes bytes of
	// changes, but at least one entry if there is one. ErrChain if the log lacks the entry at after, or
	// has another digest there.
	Entries(ctx context.Context, after Head, limit, bytes int) ([]Entry, error)
	// Has reports whether the log has an entry with this head. If it has, this store was once in that
	// state. If it has not, that proves nothing, because a log loses its oldest entries.
	Has(ctx context.Context, h Head) (bool, error)
	// Apply makes changes from the log of the peer, in one transaction, and skips changes that this log
	// already has. The store's role must be as. A passive store refuses changes of an epoch below its
	// own, and takes the value of a higher epoch. Kind Denied for the wrong role or epoch; ErrChain.
	Apply(ctx context.Context, as server.Role, epoch uint64, list []Entry) error
	// Snapshot is Export. It first calls head with the head of the log at the same moment.
	Snapshot(ctx context.Context, head func(Head) error, f func(server.Record) error) error
	// Load is Import of a Snapshot of the peer into a passive store. Kind Denied as for Apply.
	Load(ctx context.Context, epoch uint64, head Head, next func() (server.Record, error)) error
	// Save writes a copy of the whole store into a file beside it, with why in the name of the file, and
	// returns the name.
	Save(ctx context.Context, why string) (string, error)
}

// MayApply returns an error if a store at this position does not accept the changes of the peer.
func (s *Position) MayApply(op string, as server.Role, epoch uint64) error {
	switch {
	case s.Role != as:
		return claviger.Errorf(op, claviger.Denied, "", "this Key Trustee Server is %s, not %s", s.Role, as)
	case as == server.RolePassive && epoch < s.Epoch:
		return claviger.Errorf(op, claviger.Denied, "", "epoch %d is over: the epoch is now %d", epoch, s.Epoch)
	}
	return nil
}
