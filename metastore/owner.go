package metastore

import (
	"context"

	"claviger/owner"
)

// Claims records which processes change a store. A server has a claim while it runs, and a command that changes keys
// has one while it runs. A process that only reads needs no claim.
type Claims interface {
	// Claim claims the store until release is called, the store is closed, or the process
	// ends. If alone is true, Claim fails while another process has a claim, and prevents
	// other claims. A store of one node (SQLite) allows one claim at a time, alone or not; a
	// store of several nodes (PostgreSQL) allows any number of claims that are not alone. The
	// error is of kind Unavailable, and holds an *owner.InUseError that names the processes
	// with a claim.
	//
	// If the store is reached over a network, a claim is lost with its connection, and is
	// renewed when the store answers again. Until then Owners may omit it.
	Claim(ctx context.Context, o owner.Owner, alone bool) (release func(), err error)
	// Owners returns the processes that have a claim now: running servers and commands.
	// Processes of older releases have no ID.
	Owners(ctx context.Context) ([]owner.Owner, error)
}
