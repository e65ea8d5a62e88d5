package server

import (
	"context"
	"errors"

	"claviger/trustee"
)

// Replica keeps this server equal to a second server. Package replica implements it. Its errors are
// *claviger.Error.
type Replica interface {
	// Current returns what the answers of this server's store mean. An error of kind Unavailable sends
	// the client to the other server. ErrBehind or ErrLacking is in the error if this server knows that
	// its store lacks changes.
	Current(ctx context.Context) (Knowledge, error)
	// Ready waits a few seconds until changes can be made. If they cannot, the error is of kind
	// Unavailable, with trustee.ErrPassive or ErrAway in it.
	Ready(ctx context.Context) error
	// Do handles a request of the other server or of an operator: trustee.ForPeer is true for its verb.
	Do(ctx context.Context, req *trustee.Request) (any, error)
}

// Knowledge says what the answers of a store mean.
type Knowledge struct {
	Sure  bool // a record that the store lacks does not exist
	Lists bool // lists are complete, as far as this server can know
}

var (
	// ErrAway is in the error, of kind Unavailable, of a change that the passive server did not confirm.
	// The change was not made.
	ErrAway = errors.New("nothing was changed, because the passive Key Trustee Server did not confirm the change; an " +
		"operator can let this server work without the passive one: claviger trustee alone on")
	// ErrBehind is the answer of a passive server that lacks changes.
	ErrBehind = errors.New("this passive Key Trustee Server lacks changes that the active one has acknowledged, and " +
		"is being brought up to date: ask that one")
	// ErrLacking is the answer of an active server that knows that it lacks changes.
	ErrLacking = errors.New("this active Key Trustee Server lacks what the passive one holds: ask that one; claviger " +
		"trustee status here says what to do")
)
