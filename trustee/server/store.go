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

// MaxPending is how many clients of an organization may wait for an operator:
// whoever reaches the server may register, and the store must not grow by that.
const MaxPending = 100

// Org is an organization: clients that an operator lets in by one secret.
type Org struct {
	Name     string
	UUID     string
	Contacts []string
	// Auth is the secret by which clients register; "": each waits for an operator.
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

// Row is a deposit in the store. What the owner has signed is in Sealed; the rest
// is taken from it, to be found by.
type Row struct {
	UUID, Owner, Org, Label string
	Access                  []string
	Expires                 time.Time // zero: never
	Sealed                  trustee.Sealed
	// Wrapped: the content is as a Keeper has wrapped it.
	Wrapped bool
}

// A Keeper wraps contents once more before they are stored: the Key HSM. Kinds
// Unavailable where it cannot be asked, and Invalid where a content cannot be
// unwrapped any more; the error says why.
type Keeper interface {
	Wrap(ctx context.Context, uuid string, content []byte) ([]byte, error)
	Unwrap(ctx context.Context, uuid string, wrapped []byte) ([]byte, error)
}

// Once names a request that changes something. The store does it in the same
// transaction in which it remembers Digest until Until, and refuses it, with kind
// Invalid, where it remembers it already.
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

// Store keeps organizations, clients and deposits. All methods may be called at
// the same time, honour ctx, are durable when they return, and return
// *claviger.Error; Unavailable where the store does not answer. Fingerprints are
// in capitals.
type Store interface {
	// AddOrg: kind KeyExists.
	AddOrg(ctx context.Context, o Org) error
	// Orgs returns all, by name.
	Orgs(ctx context.Context) ([]Org, error)
	// Org: kind KeyNotFound.
	Org(ctx context.Context, name string) (Org, error)
	// SetAuth: kind KeyNotFound.
	SetAuth(ctx context.Context, org, auth string) error

	// AddClient adds a client, or does nothing where it is there with the same
	// organization. Kinds KeyExists where it is another's, Denied where it is Pending
	// and MaxPending of the organization are that already.
	AddClient(ctx context.Context, c Client, once Once) (Client, error)
	// Client: kind KeyNotFound.
	Client(ctx context.Context, fingerprint string) (Client, error)
	// Clients returns those of an organization, "" is all, by fingerprint.
	Clients(ctx context.Context, org string) ([]Client, error)
	// SetState: kind KeyNotFound.
	SetState(ctx context.Context, fingerprint string, s State) error

	// Put: see trustee.Box. Kind KeyExists where the uuid, or the label among the
	// owner's live deposits, is taken; KeyNotFound where replaces is not live or not
	// the owner's. What is replaced is gone. A row with Sealed.Deleted is deleted from the
	// start.
	Put(ctx context.Context, r Row, replaces string, once Once) error
	// Get returns a live deposit of whomever. Kind KeyNotFound.
	Get(ctx context.Context, uuid string) (Row, error)
	// Find returns the owner's live deposit of that label. Kind KeyNotFound.
	Find(ctx context.Context, owner, label string) (Row, error)
	// List: see trustee.Box; without content.
	List(ctx context.Context, owner string, a trustee.ListArgs) ([]Row, error)
	// Delete, Undelete and Purge: see trustee.Box.
	Delete(ctx context.Context, owner string, uuids []string, at time.Time, once Once) error
	Undelete(ctx context.Context, owner string, uuids []string, once Once) error
	Purge(ctx context.Context, owner string, uuids []string, once Once) error

	// Export calls f with all that the store held at one moment: organizations by
	// name, clients by fingerprint, deposits by uuid (deleted ones too, as they are
	// stored), onces by digest. It ends with f's first error. What Record points to is
	// f's. f must not change the store.
	Export(ctx context.Context, f func(Record) error) error
	// Import replaces all that the store holds, in one transaction, with what next
	// returns until io.EOF. Organizations come before their clients, and those before
	// their deposits, as Export has them. On any error nothing is changed. next must
	// not ask the store.
	Import(ctx context.Context, next func() (Record, error)) error

	// Forget drops what Once remembers of before now, and deposits that expired
	// before now.
	Forget(ctx context.Context, now time.Time) error
	// Check makes one cheap question.
	Check(ctx context.Context) error
	// CheckWrites is an error where the store would take no deposit: it has no room, or
	// may not be written. It commits a small change that changes nothing. A standby, which
	// takes none, is no error.
	CheckWrites(ctx context.Context) error
	Close() error
}
