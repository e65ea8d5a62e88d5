package metastore

import (
	"context"
	"fmt"
	"time"
)

// ClockMargin is how far a process's clock and its store's may be apart before one of
// the two is taken for wrong.
const ClockMargin = time.Minute

// Clock compares this process's clock with the one that all users of a store share.
type Clock interface {
	// Clocks reads both.
	Clocks(ctx context.Context) (Clocks, error)
}

// Clocks are two clocks that were read together.
type Clocks struct {
	Here time.Time // this process's
	// There is the store's. A store that has none takes the newest time that was written
	// into it for the lower bound of what its clock would show.
	There time.Time
	Whose string // what There is, in words: "PostgreSQL's clock"
	// Bound: There is such a bound and no clock. It may have been written by this host's own
	// clock, while that was ahead.
	Bound bool
	// Ahead is how far this process's clock is ahead of the store's at least: what the
	// round trip leaves open is not counted. Negative: it is behind.
	Ahead time.Duration
}

// Compare returns the clocks where the store's, called whose, showed there at a moment
// between asked and answered of this process's clock.
func Compare(asked, there, answered time.Time, whose string) Clocks {
	c := Clocks{Here: answered, There: there, Whose: whose}
	switch {
	case there.Before(asked):
		c.Ahead = asked.Sub(there)
	case there.After(answered):
		c.Ahead = answered.Sub(there)
	}
	return c
}

// Earliest is the earlier of the two: what has passed by it has passed by both.
func (c Clocks) Earliest() time.Time {
	if c.There.Before(c.Here) {
		return c.There
	}
	return c.Here
}

// Latest is the later of the two.
func (c Clocks) Latest() time.Time {
	if c.There.After(c.Here) {
		return c.There
	}
	return c.Here
}

// Apart returns nil, or *ClocksApartError where the clocks are more than ClockMargin apart.
func (c Clocks) Apart() error {
	if c.Ahead.Abs() <= ClockMargin {
		return nil
	}
	return &ClocksApartError{c}
}

// ClocksApartError says that this process's clock or its store's is wrong.
type ClocksApartError struct{ Clocks Clocks }

func (e *ClocksApartError) Error() string {
	way, layout := "ahead of", time.RFC3339
	if e.Clocks.Ahead < 0 {
		way = "behind"
	}
	cure := "set the one that is wrong (chronyc tracking)"
	if e.Clocks.Bound {
		cure = "set it if it is wrong (chronyc tracking); if it is right, it was ahead when that time was written: " +
			"stop the server, and run claviger metastore clock --conf DIR --right"
	}
	return fmt.Sprintf("the clock of this host is %v %s %s (%s here, %s there): %s",
		e.Clocks.Ahead.Abs().Round(time.Second), way, e.Clocks.Whose, e.Clocks.Here.UTC().Format(layout),
		e.Clocks.There.UTC().Format(layout), cure)
}
