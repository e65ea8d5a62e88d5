package metastore

import (
	"context"

	"claviger/owner"
)

// Claims say which processes change a store. A server claims its store while it runs, and a command that changes
// keys while it works. A process that only reads claims nothing.
type Claims interface {
	// Claim claims the store until release is called, the store is closed, or the
	// process ends, however it ends. With alone it fails while another process has a
	// claim, and prevents other claims. A store of one node (SQLite) has one claim at a
	// time, alone or not; a store of several nodes (PostgreSQL) has any number of claims
	// that are not alone. The error is of kind Unavailable and holds an
	// *owner.InUseError that names the processes with a claim.
	//
	// A claim on a store that is reached over a network is lost with its connection, and
	// is renewed when the store answers again. Until then Owners may leave it out.
	Claim(ctx context.Context, o owner.Owner, alone bool) (release func(), err error)
	// Owners returns the processes that have a claim now: the nodes that serve, and
	// commands that are working. Processes of older programs have no ID.
	Owners(ctx context.Context) ([]owner.Owner, error)
}
