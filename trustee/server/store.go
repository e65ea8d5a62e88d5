// Package server is the Key Trustee Server. It stores secrets that clients encrypt before they send
// them, so it can read none of them; see docs/trustee-protocol.md.
//
// Package trustee checks the signature, the time and the verb of a request. The Store decides whether
// the request is new, knows the client, and makes the change. Both stores pass the tests of
// trustee/server/storetest.
//
// A store in PostgreSQL gets its second copy by PostgreSQL's streaming replication. A store in SQLite
// logs each change in the transaction of the change, and the log keeps a second, passive server equal
// (Replica). The passive server commits first. The guard, which the store calls before each commit,
// ensures that.
package server

import (
	"context"
	"time"

	"claviger"
	"claviger/trustee"
)

// State of a client.
type State string

// The states.
const (
	Pending  State = "pending" // waits for an operator, because the organization has no secret
	Active   State = "active"
	Disabled State = "disabled"
)

// MaxPending is how many clients of an organization may wait for an operator. It keeps senders without a
// secret from filling the store.
const MaxPending = 100

// Org is an organization: a group of clients that register with one secret.
type Org struct {
	Name     string
	UUID     string
	Contacts []string
	// Auth is the secret for registrations. If it is "", each client waits for an operator.
	Auth    string
	Created time.Time
}

// Client is a registered client.
type Client struct {
	Fingerprint string // 40 hex digits, capitals
	Org         string
	PublicKey   []byte // as trustee.Party.Public writes it
	State       State
	Created     time.Time
}

// Row is a deposit in the store. Sealed is what the owner has signed. The other fields are copied from
// it, for queries.
type Row struct {
	UUID, Owner, Org, Label string
	Access                  []string
	Expires                 time.Time // zero: never
	Sealed                  trustee.Sealed
	// Wrapped is true if a Keeper has wrapped the content.
	Wrapped bool
}

// A Keeper wraps contents once more before the server stores them: the Key HSM. Kinds Unavailable if the
// Keeper does not answer, and Invalid if a content can never be unwrapped; the error says why.
type Keeper interface {
	Wrap(ctx context.Context, uuid string, content []byte) ([]byte, error)
	Unwrap(ctx context.Context, uuid string, wrapped []byte) ([]byte, error)
}

// Once names a request that changes something, so that it is handled only once. In the transaction of
// the change, the store records Digest until the time Until. It refuses a request whose Digest it has
// recorded.
type Once struct {
	Digest string
	Until  time.Time
}

// Record is one entry of a store. Exactly one of its fields is set.
type Record struct {
	Org     *Org    `json:"org,omitempty"`
	Client  *Client `json:"client,omitempty"`
	Deposit *Row    `json:"deposit,omitempty"`
	Once    *Once   `json:"once,omitempty"`
}

// Organizations are the organizations of a store.
type Organizations interface {
	// AddOrg adds an organization. Kind KeyExists if the name is taken.
	AddOrg(ctx context.Context, o Org) error
	// Orgs returns all organizations, by name.
	Orgs(ctx context.Context) ([]Org, error)
	// Org returns an organization. Kind KeyNotFound.
	Org(ctx context.Context, name string) (Org, error)
	// SetAuth sets the secret for registrations. Kind KeyNotFound.
	SetAuth(ctx context.Context, org, auth string) error
}

// Clients are the registered clients of all organizations. Fingerprints are in capitals.
type Clients interface {
	// AddClient adds a client and returns the stored client. A client that is already registered with
	// the same organization does not change: a disabled client stays disabled. Kinds KeyNotFound
	// for an organization that does not exist, KeyExists for a client of another organization, and Denied
	// for a Pending client if MaxPending clients of the organization are pending.
	AddClient(ctx context.Context, c Client, once Once) (Client, error)
	// Client returns a client. Kind KeyNotFound.
	Client(ctx context.Context, fingerprint string) (Client, error)
	// Clients returns the clients of an organization, or all for "", by fingerprint.
	Clients(ctx context.Context, org string) ([]Client, error)
	// SetState sets the state of a client. Kind KeyNotFound.
	SetState(ctx context.Context, fingerprint string, s State) error
}

// Deposits are the deposits of all clients: live, or deleted and not yet purged. One live deposit of an
// owner has a label, but any number of deleted ones may have the same label. Get returns a deposit to any
// caller; the server checks whether the client may read it.
type Deposits interface {
	// Put adds a deposit, and removes the owner's live deposit that replaces names ("" for none) in the
	// same transaction. A row with Sealed.Deleted is added as a deleted deposit. Kinds KeyExists if the
	// uuid or the label is taken, and KeyNotFound if replaces is not a live deposit of the owner.
	Put(ctx context.Context, r Row, replaces string, once Once) error
	// Get returns a live deposit. Kind KeyNotFound.
	Get(ctx context.Context, uuid string) (Row, error)
	// Find returns the owner's live deposit with a label. Kind KeyNotFound.
	Find(ctx context.Context, owner, label string) (Row, error)
	// List returns a page of the owner's deposits without their contents, by label and uuid; see
	// trustee.Box.
	List(ctx context.Context, owner string, a trustee.ListArgs) ([]Row, error)
	// Delete makes live deposits of the owner unreadable, all or none. Kind KeyNotFound.
	Delete(ctx context.Context, owner string, uuids []string, at time.Time, once Once) error
	// Undelete makes deleted deposits of the owner live again, all or none. Kinds KeyNotFound, and
	// KeyExists if a live deposit has the label.
	Undelete(ctx context.Context, owner string, uuids []string, once Once) error
	// Purge destroys deleted deposits of the owner, all or none. Kind KeyNotFound.
	Purge(ctx context.Context, owner string, uuids []string, once Once) error
	// Forget removes recorded requests and deposits that expired before now.
	Forget(ctx context.Context, now time.Time) error
}

// Archive reads and writes the whole content of a store.
type Archive interface {
	// Export calls f with all records of the store at one moment: organizations by name, clients by
	// fingerprint, deposits by uuid (deleted and wrapped ones as they are stored), onces by digest. It
	// ends with the first error of f. f may keep the values that a Record points to. f must not change
	// the store.
	Export(ctx context.Context, f func(Record) error) error
	// Import replaces all records of the store, in one transaction, with those that next returns until
	// io.EOF. An organization must come before its clients, and a client before its deposits, as Export
	// returns them. After an error nothing has changed. next must not use the store.
	Import(ctx context.Context, next func() (Record, error)) error
}

// Store holds the data of a Key Trustee Server. All methods may be called at the same time, and end when
// ctx ends. When a change returns, it is durable. Errors are *claviger.Error: of kind Unavailable if the
// store does not answer, and with trustee.ErrPassive in it for a change if Role is RolePassive. If the
// store has recorded the digest of a Once, the method fails with kind Invalid and trustee.ErrReplay in
// the error, and changes nothing.
type Store interface {
	Organizations
	Clients
	Deposits
	Archive

	// Role returns RolePassive if the store accepts no changes of clients.
	Role(ctx context.Context) (Role, error)
	// Check reads from the store, at little cost.
	Check(ctx context.Context) error
	// CheckWrites commits a transaction that changes no record. It returns an error if the store has no
	// room or cannot be written. A passive store is not an error.
	CheckWrites(ctx context.Context) error
	Close() error
}

// Role is the role of a server: alone, or one of two servers with equal records.
type Role string

// The roles.
const (
	// RoleSingle has no second server, and no log of changes.
	RoleSingle Role = "single"
	// RoleActive accepts changes.
	RoleActive Role = "active"
	// RolePassive has every change that the active server has acknowledged. It answers reads, and
	// refuses changes.
	RolePassive Role = "passive"
)

// MayChange returns nil if a store with this role accepts changes of clients. Otherwise the error is of
// kind Unavailable, with trustee.ErrPassive in it. Every store calls MayChange before a change, and has
// no other rule.
func (r Role) MayChange(op, key string) error {
	if r == RolePassive {
		return claviger.E(op, claviger.Unavailable, key, trustee.ErrPassive)
	}
	return nil
}
