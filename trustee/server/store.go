// Package server is the Key Trustee Server: a box for secrets that clients
// encrypt before they send them, see docs/trustee-protocol.md. It can read none
// of them.
//
// A request is checked (signature, clock, verb) by package trustee, then asked of
// the Store whether it is new, whose it is, and what it does. The suite of all stores
// is trustee/server/storetest.
//
// A store in PostgreSQL leaves the second copy to streaming replication. A store in
// SQLite logs its changes in the same transaction, and a second, passive server is kept
// equal from that log (Replica). The passive server commits first: the guard, which
// the store calls before each commit, is the one place that ensures it.
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
	Pending  State = "pending" // registered where the organization has no secret; waits for an operator
	Active   State = "active"
	Disabled State = "disabled"
)

// MaxPending is how many clients of an organization may wait for an operator. Anybody who reaches the
// server may register, and must not fill the store.
const MaxPending = 100

// Org is an organization: clients that an operator lets in by one secret.
type Org struct {
	Name     string
	UUID     string
	Contacts []string
	// Auth is the secret by which clients register. If it is "", each client waits for an operator.
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

// A Keeper wraps contents once more before they are stored: the Key HSM. Kinds Unavailable if the
// Keeper does not answer, and Invalid if a content cannot be unwrapped any more; the error says why.
type Keeper interface {
	Wrap(ctx context.Context, uuid string, content []byte) ([]byte, error)
	Unwrap(ctx context.Context, uuid string, wrapped []byte) ([]byte, error)
}

// Once names a request that changes something. The store remembers Digest until Until, in the
// transaction of the change, and refuses a request whose Digest it remembers.
type Once struct {
	Digest string
	Until  time.Time
}

// Record is one thing that a store keeps. Exactly one of them is set.
type Record struct {
	Org     *Org    `json:"org,omitempty"`
	Client  *Client `json:"client,omitempty"`
	Deposit *Row    `json:"deposit,omitempty"`
	Once    *Once   `json:"once,omitempty"`
}

// Organizations are what clients belong to.
type Organizations interface {
	// AddOrg adds an organization. Kind KeyExists where the name is taken.
	AddOrg(ctx context.Context, o Org) error
	// Orgs returns all organizations, by name.
	Orgs(ctx context.Context) ([]Org, error)
	// Org returns an organization. Kind KeyNotFound.
	Org(ctx context.Context, name string) (Org, error)
	// SetAuth sets the secret by which clients register. Kind KeyNotFound.
	SetAuth(ctx context.Context, org, auth string) error
}

// Clients are the registered clients of all organizations. Fingerprints are in capitals.
type Clients interface {
	// AddClient adds a client and returns it as it is stored. Where the client is registered with
	// the same organization already, it stays as it was: a disabled client stays disabled. Kinds
	// KeyExists for a client of another organization, and Denied for a Pending client where
	// MaxPending clients of the organization are pending already.
	AddClient(ctx context.Context, c Client, once Once) (Client, error)
	// Client returns a client. Kind KeyNotFound.
	Client(ctx context.Context, fingerprint string) (Client, error)
	// Clients returns the clients of an organization, or all for "", by fingerprint.
	Clients(ctx context.Context, org string) ([]Client, error)
	// SetState lets a client in, or keeps it out. Kind KeyNotFound.
	SetState(ctx context.Context, fingerprint string, s State) error
}

// Deposits are the deposits of all clients: live, or deleted and not yet purged. A label
// belongs to one live deposit of an owner, and to any number of deleted ones. Get returns a deposit to any caller; who
// may read it is the server's question.
type Deposits interface {
	// Put adds a deposit, and removes the owner's live deposit that replaces names ("" is none)
	// in the same transaction. A row with Sealed.Deleted is deleted from the start. Kinds
	// KeyExists where the uuid or the label is taken, and KeyNotFound where replaces is not a
	// live deposit of the owner.
	Put(ctx context.Context, r Row, replaces string, once Once) error
	// Get returns a live deposit. Kind KeyNotFound.
	Get(ctx context.Context, uuid string) (Row, error)
	// Find returns the owner's live deposit of a label. Kind KeyNotFound.
	Find(ctx context.Context, owner, label string) (Row, error)
	// List returns a page of the owner's deposits without their contents, by label and uuid; see
	// trustee.Box.
	List(ctx context.Context, owner string, a trustee.ListArgs) ([]Row, error)
	// Delete makes live deposits of the owner unreadable, all or none. Kind KeyNotFound.
	Delete(ctx context.Context, owner string, uuids []string, at time.Time, once Once) error
	// Undelete brings deleted deposits of the owner back, all or none. Kinds KeyNotFound, and
	// KeyExists where a live deposit has the label.
	Undelete(ctx context.Context, owner string, uuids []string, once Once) error
	// Purge removes deleted deposits of the owner for ever, all or none. Kind KeyNotFound.
	Purge(ctx context.Context, owner string, uuids []string, once Once) error
	// Forget removes what Once remembers of before now, and deposits that expired before now.
	Forget(ctx context.Context, now time.Time) error
}

// Archive moves the whole content of a store.
type Archive interface {
	// Export calls f with everything that the store held at one moment: organizations by name,
	// clients by fingerprint, deposits by uuid (deleted ones too, as they are stored), onces by
	// digest. It ends with f's first error. f may keep what Record points to. f must not change
	// the store.
	Export(ctx context.Context, f func(Record) error) error
	// Import replaces everything that the store holds, in one transaction, by what next returns
	// until io.EOF. Organizations come before their clients, and clients before their deposits,
	// as Export has them. On any error nothing is changed. next must not use the store.
	Import(ctx context.Context, next func() (Record, error)) error
}

// Store is what a Key Trustee Server keeps. All methods may be called at the same time, honour
// ctx, are durable when they return, and return *claviger.Error: Unavailable where the store
// does not answer, and with trustee.ErrPassive in it for a change where Role is RolePassive. A
// method that takes a Once fails with kind Invalid, and trustee.ErrReplay in the error, where
// the store remembers that digest; then nothing is changed.
type Store interface {
	Organizations
	Clients
	Deposits
	Archive

	// Role is RolePassive where the store takes no changes of its own.
	Role(ctx context.Context) (Role, error)
	// Check asks the store one cheap question.
	Check(ctx context.Context) error
	// CheckWrites commits a small change that changes nothing. It is an error where the store has
	// no room, or may not be written. A passive store is no error.
	CheckWrites(ctx context.Context) error
	Close() error
}

// Role is a server's part in a pair of two that hold the same.
type Role string

// The roles.
const (
	// RoleSingle has no second server, and keeps no log of changes.
	RoleSingle Role = "single"
	// RoleActive alone takes changes.
	RoleActive Role = "active"
	// RolePassive has every change that the active server has acknowledged, and answers reads.
	RolePassive Role = "passive"
)

// MayChange is nil where a store of this role takes changes of its own. Every store asks it, and
// nothing else, before it makes one. Else kind Unavailable, with trustee.ErrPassive.
func (r Role) MayChange(op, key string) error {
	if r == RolePassive {
		return claviger.E(op, claviger.Unavailable, key, trustee.ErrPassive)
	}
	return nil
}
