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

// A Change is one change of a Store, so described that it has the same effect on
// each store of the same state: the arguments of the method that Op names.
type Change struct {
	Op       string         `json:"op"`
	Org      *server.Org    `json:"org,omitempty"`
	Client   *server.Client `json:"client,omitempty"`
	Deposit  *server.Row    `json:"deposit,omitempty"`
	Replaces string         `json:"replaces,omitempty"`
	Name     string         `json:"name,omitempty"` // an organization's, or a client's fingerprint
	Auth     string         `json:"auth,omitempty"`
	State    server.State   `json:"state,omitempty"`
	Owner    string         `json:"owner,omitempty"`
	UUIDs    []string       `json:"uuids,omitempty"`
	At       time.Time      `json:"at,omitzero"`
	Once     server.Once    `json:"once,omitzero"`
}

// Head is where a log ends. Two logs of equal heads hold the same changes, from
// the same start. Seq 0 is a log that never began.
type Head struct {
	Seq    uint64 `json:"seq"`
	Epoch  uint64 `json:"epoch"` // in which the last change was made
	Digest string `json:"digest"`
}

// An Entry is a change in the log. Its digest is over that of the entry before.
type Entry struct {
	Head
	Change json.RawMessage `json:"change"`
}

// Next is the entry of a change that follows h.
func (h Head) Next(epoch uint64, change []byte) Entry {
	seq := h.Seq + 1
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%s\n%d\n%d\n", h.Digest, seq, epoch) // a hash takes all
	_, _ = sum.Write(change)
	return Entry{Head{seq, epoch, hex.EncodeToString(sum.Sum(nil))}, change}
}

// Anew is a head that no other log has: of a state that did not come about by
// changes in this log.
func (h Head) Anew(epoch uint64) Head {
	var b [sha256.Size]byte
	_, _ = rand.Read(b[:]) // it never fails
	return Head{h.Seq + 1, epoch, hex.EncodeToString(b[:])}
}

// Standing is what a store knows of itself as one of two.
type Standing struct {
	Role server.Role `json:"role"`
	// Epoch counts promotions: of two actives the one of the lower has been replaced.
	Epoch uint64 `json:"epoch"`
	// Alone: an operator lets the active acknowledge what the passive does not have.
	Alone bool `json:"alone"`
	// Unshared is the first change that this store has committed without its peer; 0
	// where the peer has all.
	Unshared uint64 `json:"unshared,omitempty"`
	Head     Head   `json:"head"`
	// Fault is why the store takes no changes, by the server's word; "" where it takes
	// them. No store keeps it.
	Fault string `json:"fault,omitempty"`
}

// A Guard is asked, inside the transaction, before a change is committed: the
// change comes about if and only if err is nil. shared: the peer has it. before is
// what the store stood at, without e.
type Guard func(ctx context.Context, before Standing, e Entry) (shared bool, err error)

// Admit decides whether a store at s may commit a change, which the caller has made in an open
// transaction. It returns the change's entry in the log. shared is true if the peer has every
// change up to e; else s.Unshared is the first that the peer may lack. g is nil for a process
// without a Replica, as orgtool is: its changes reach the peer later.
func (s *Standing) Admit(ctx context.Context, g *Guard, change []byte) (e Entry, shared bool, err error) {
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

// ErrChain is in the error, of kind Invalid, of entries that do not follow what a
// log holds.
var ErrChain = errors.New("the changes do not follow those that this Key Trustee Server has")

// Logged is a Store that keeps a log of its changes, from which a second one is
// kept equal. All changes of a store whose role is not RoleSingle go through the
// log, whichever process makes them. Its changes are refused, trustee.ErrPassive, where
// the role is RolePassive.
type Logged interface {
	server.Store
	// Standing is that of the last change.
	Standing(ctx context.Context) (Standing, error)
	// Stand changes the standing by f, durably; f must leave Head alone. A single
	// store that gets a role begins its log. An error of f ends it.
	Stand(ctx context.Context, f func(*Standing) error) (Standing, error)
	// Guard has g asked from now on for changes of this process.
	Guard(g Guard)
	// Entries returns what follows after: at most limit entries, and no more than
	// bytes of changes, but one at least where there is one. ErrChain where the log
	// does not go back so far, or after's digest is not that of the log.
	Entries(ctx context.Context, after Head, limit, bytes int) ([]Entry, error)
	// Has tells whether the log holds that head: the state is one of this store's own
	// past. False is no proof of the opposite, since a log forgets.
	Has(ctx context.Context, h Head) (bool, error)
	// Apply makes changes that the peer has logged, all in one transaction; those that
	// the log has already are passed over. It does so only as the role as, and, as
	// the passive, of an epoch that is not below the store's own, which it takes on.
	// Kinds Denied for the wrong role or epoch; ErrChain.
	Apply(ctx context.Context, as server.Role, epoch uint64, list []Entry) error
	// Snapshot is Export with the head of that moment.
	Snapshot(ctx context.Context, head func(Head) error, f func(server.Record) error) error
	// Load is Import of a peer's Snapshot, by the passive. Kind Denied as for Apply.
	Load(ctx context.Context, epoch uint64, head Head, next func() (server.Record, error)) error
	// Save writes a copy of the whole store beside it, and returns its name.
	Save(ctx context.Context, why string) (string, error)
}

// MayApply tells whether a store of that standing takes the peer's changes.
func (s *Standing) MayApply(op string, as server.Role, epoch uint64) error {
	switch {
	case s.Role != as:
		return claviger.Errorf(op, claviger.Denied, "", "this Key Trustee Server is %s, not %s", s.Role, as)
	case as == server.RolePassive && epoch < s.Epoch:
		return claviger.Errorf(op, claviger.Denied, "", "epoch %d is over: it is %d", epoch, s.Epoch)
	}
	return nil
}
