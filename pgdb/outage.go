package pgdb

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
)

const (
	// pingPause is the time between two attempts to reach a database that does not answer.
	pingPause = 100 * time.Millisecond
	// telling is how long a call without an answer must have taken before it counts as an outage.
	telling = time.Second
)

// outage remembers that the database cannot be reached. All calls share one patience, which begins
// with the outage: after that they fail at once, and one goroutine tries to reach the database
// until it answers.
type outage struct {
	mu      sync.Mutex
	since   time.Time // zero if it was reached last
	err     error     // the last failure
	pinging bool

	lastAt   time.Time // of the last answer or failure
	lastTook time.Duration
	lastErr  error
}

// Last is how the last call to the database ended: nil for an answer, or an error. An error that
// the database gives to every call, for example to a role without rights, counts. The time is zero
// before the first call.
func (d *DB) Last() (at time.Time, took time.Duration, err error) {
	o := &d.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lastErr != nil {
		err = d.Fail("pgdb.Last", "", o.lastErr)
	}
	return o.lastAt, o.lastTook, err
}

// failed records that a call which began then did not reach the database. It reports whether
// patience is over.
func (d *DB) failed(begun time.Time, err error) (over bool) {
	o := &d.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since = begun
	}
	o.err = err
	o.lastAt, o.lastTook, o.lastErr = time.Now(), time.Since(begun), err
	if time.Since(o.since) < d.cfg.Patience {
		return false
	}
	if !o.pinging && !d.closed.Load() {
		o.pinging = true
		d.wg.Go(d.ping)
	}
	return true
}

// reached ends an outage: a call that began then was answered, perhaps with err.
func (d *DB) reached(begun time.Time, err error) {
	if !strings.HasPrefix(Code(err), classRefused) {
		err = nil
	}
	o := &d.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	o.since, o.err = time.Time{}, nil
	o.lastAt, o.lastTook, o.lastErr = time.Now(), time.Since(begun), err
}

// answered tells an error that the database itself gave, as an answer.
func answered(err error) bool {
	if Unreachable(err) && Code(err) != ReadOnly || errors.Is(err, errInDoubt) {
		return false
	}
	var own *claviger.Error
	return Code(err) != "" || errors.As(err, &own)
}

// away is an error if the database was unreachable for longer than patience.
func (d *DB) away() error {
	o := &d.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.pinging {
		return nil
	}
	return &awayError{o.since, o.err}
}

// awayError is the error of a call that has not tried.
type awayError struct {
	since time.Time
	cause error
}

func (e *awayError) Error() string {
	return fmt.Sprintf("it has not been reached since %s; it is asked again by itself: %v",
		e.since.UTC().Format(time.RFC3339), e.cause)
}

func (e *awayError) Unwrap() error { return e.cause }

// pingOnce uses a connection of its own, because those of the pool may all wait for an answer.
func (d *DB) pingOnce(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, d.Conn())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // the ping has its answer, or none
	return conn.Ping(ctx)
}

// ping tries to reach the database until it answers.
func (d *DB) ping() {
	for {
		ctx, cancel := context.WithTimeout(d.alive, ConnectTimeout)
		err := d.pingOnce(ctx)
		cancel()
		o := &d.outage
		o.mu.Lock()
		if err == nil || d.alive.Err() != nil {
			o.pinging, o.since, o.err = false, time.Time{}, nil
			o.mu.Unlock()
			return
		}
		o.err = err
		o.mu.Unlock()
		select {
		case <-d.alive.Done():
		case <-time.After(Jitter(pingPause)):
		}
	}
}
