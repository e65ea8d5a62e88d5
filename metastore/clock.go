package metastore

import (
	"context"
	"fmt"
	"time"
)

// ClockMargin is how far the clocks of a process and its store may differ before one of them counts as wrong.
const ClockMargin = time.Minute

// Clock compares this process's clock with the clock of a store, which all its users share.
type Clock interface {
	// Clocks reads both clocks.
	Clocks(ctx context.Context) (Clocks, error)
}

// Clocks are the times of two clocks that were read together.
type Clocks struct {
	Local time.Time // this process's clock
	// Store is the store's clock. For a store without a clock it is the newest time that was written
	// into the store, a lower bound of the true time.
	Store      time.Time
	ClockOwner string // the owner of the clock Store, in the genitive for messages: "PostgreSQL's"
	// LowerBound says that Store is such a lower bound. This host's own clock may have written it
	// while that clock was ahead.
	LowerBound bool
	// Ahead is how far this process's clock is ahead of the store's clock, at least: the true
	// difference may be greater by the time of the round trip. It is negative if the clock is
	// behind.
	Ahead time.Duration
}

// Compare returns the result of reading the store's clock, which showed storeTime. This process's clock showed sent
// before the query, and received after its answer.
func Compare(sent, storeTime, received time.Time, clockOwner string) Clocks {
	c := Clocks{Local: received, Store: storeTime, ClockOwner: clockOwner}
	switch {
	case storeTime.Before(sent):
		c.Ahead = sent.Sub(storeTime)
	case storeTime.After(received):
		c.Ahead = received.Sub(storeTime)
	}
	return c
}

// Earliest returns the earlier of the two times. A time before it is in the past for both clocks.
func (c Clocks) Earliest() time.Time {
	if c.Store.Before(c.Local) {
		return c.Store
	}
	return c.Local
}

// Latest returns the later of the two times.
func (c Clocks) Latest() time.Time {
	if c.Store.After(c.Local) {
		return c.Store
	}
	return c.Local
}

// Check returns *ClocksDifferError if the clocks differ by more than ClockMargin, and nil otherwise.
func (c Clocks) Check() error {
	if c.Ahead.Abs() <= ClockMargin {
		return nil
	}
	return &ClocksDifferError{c}
}

// ClocksDifferError says that this process's clock or the store's clock is wrong.
type ClocksDifferError struct{ Clocks Clocks }

func (e *ClocksDifferError) Error() string {
	direction, layout := "ahead of", time.RFC3339
	if e.Clocks.Ahead < 0 {
		direction = "behind"
	}
	cure := "set the one that is wrong (chronyc tracking)"
	if e.Clocks.LowerBound {
		cure = "set it if it is wrong (chronyc tracking); if it is right, it was ahead when that time was written: " +
			"stop the server, and run claviger metastore clock --conf DIR --right"
	}
	return fmt.Sprintf("the clock of this host is %v %s %s (%s here, %s there): %s",
		e.Clocks.Ahead.Abs().Round(time.Second), direction, e.Clocks.ClockOwner, e.Clocks.Local.UTC().Format(layout),
		e.Clocks.Store.UTC().Format(layout), cure)
}
