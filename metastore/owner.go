package metastore

import (
	"context"

	"claviger/owner"
)

// Claims say which processes change what is in a store. A server claims its
// store for as long as it runs; so does a command that changes keys, for as long
// as it works. Who only reads claims nothing.
type Claims interface {
	// Claim takes the store until release is called, the store is closed, or the
	// process ends, however it ends. alone demands that no other process has it
	// meanwhile, and keeps others out. A store of one node (SQLite) has one claim at
	// a time, alone or not; one of several nodes (PostgreSQL) has any number of those
	// that are not alone. Where it cannot be had the error is of kind Unavailable and
	// holds an *owner.InUseError that names who has it.
	//
	// A claim on a store that is reached over a network is lost with its connection,
	// and is taken anew when the store answers again; until then Owners may not tell
	// of it.
	Claim(ctx context.Context, o owner.Owner, alone bool) (release func(), err error)
	// Owners returns the processes that have a claim now. Of a store of several
	// nodes these are the nodes that serve, and commands at work. Those of older
	// programs have no ID.
	Owners(ctx context.Context) ([]owner.Owner, error)
}
