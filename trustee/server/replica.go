package server

import (
	"context"
	"errors"

	"claviger/trustee"
)

// Replica keeps this server equal to a second one; package replica has it. Its errors are
// *claviger.Error.
type Replica interface {
	// Current reports what may be answered from this server's store. An error of kind
	// Unavailable sends the client to the other server: with ErrBehind or ErrLacking in it
	// where this server knows that it lacks something.
	Current(ctx context.Context) (Knowledge, error)
	// Ready waits a few seconds until changes can be made. Kind Unavailable, with
	// trustee.ErrPassive or ErrAway in it, where they cannot.
	Ready(ctx context.Context) error
	// Do answers a request of the other server, or of an operator: trustee.ForPeer is true of
	// its verb.
	Do(ctx context.Context, req *trustee.Request) (any, error)
}

// Knowledge is what a store's answers are worth.
type Knowledge struct {
	Sure  bool // what the store does not hold does not exist
	Lists bool // lists are complete, as far as this server can know
}

var (
	// ErrAway is in the error, of kind Unavailable, of a change that the passive server does not
	// have. The change was not made.
	ErrAway = errors.New("nothing was changed, since the passive Key Trustee Server does not have it; an operator " +
		"can let this one go on without: claviger trustee alone on")
	// ErrBehind is what a passive server answers that lacks changes.
	ErrBehind = errors.New("this passive Key Trustee Server lacks changes that the active one has acknowledged, and " +
		"is being brought up to date: ask that one")
	// ErrLacking is what an active server answers that knows that it lacks changes.
	ErrLacking = errors.New("this active Key Trustee Server lacks what the passive one holds: ask that one; claviger " +
		"trustee status here says what to do")
)
