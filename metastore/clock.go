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
	// Clocks reads both.
	Clocks(ctx context.Context) (Clocks, error)
}

// Clocks are two clocks that were read together.
type Clocks struct {
	Here time.Time // this process's
	// There is the store's. For a store without a clock it is the newest time that was
	// written into the store, a lower bound of the true time.
	There time.Time
	Whose string // names There: "PostgreSQL's clock"
	// Bound: There is such a lower bound. This host's own clock may have written it while
	// that clock was ahead.
	Bound bool
	// Ahead is by how much, at least, this process's clock is ahead of the store's: the
	// time of the round trip is not counted. Negative: it is behind.
	Ahead time.Duration
}

// Compare returns the clocks when the store's clock, called whose, showed the time there at some moment
// between asked and answered, which this process's clock showed.
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

// Earliest is the earlier of the two: a time that is before it is past by both clocks.
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
