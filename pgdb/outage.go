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
	// pingInterval is the time between two attempts to reach a database that does not answer.
	pingInterval = 100 * time.Millisecond
	// outageThreshold is how long a call must have waited for an answer before it counts as an outage.
	outageThreshold = time.Second
)

// outage records that the database cannot be reached. Config.RetryTimeout begins with the outage, for all calls
// together. After that time all calls fail at once, and one goroutine tries to reach the database until it answers.
type outage struct {
	mu      sync.Mutex
	since   time.Time // when the outage began; zero if there is none
	err     error     // the last failure
	pinging bool

	lastAt   time.Time // when the last answer or failure came
	lastTook time.Duration
	lastErr  error
}

// Last returns the result of the last call to the database. err is nil if the database answered, unless it refuses
// every call, for example because the role has no rights. The time is zero before the first call.
func (d *DB) Last() (at time.Time, took time.Duration, err error) {
	o := &d.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lastErr != nil {
		err = d.Fail("pgdb.Last", "", o.lastErr)
	}
	return o.lastAt, o.lastTook, err
}

// failed records that a call did not reach the database. begun is when the call began. The result is true if the outage
// has lasted longer than Config.RetryTimeout.
func (d *DB) failed(begun time.Time, err error) (over bool) {
	o := &d.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since = begun
	}
	o.err = err
	o.lastAt, o.lastTook, o.lastErr = time.Now(), time.Since(begun), err
	if time.Since(o.since) < d.cfg.RetryTimeout {
		return false
	}
	if !o.pinging && !d.closed.Load() {
		o.pinging = true
		d.wg.Go(d.ping)
	}
	return true
}

// reached records that a call was answered, perhaps with err, and ends an outage. begun is when the call began.
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

// answered reports whether an error is an answer of the database.
func answered(err error) bool {
	if Unreachable(err) && Code(err) != ReadOnly || errors.Is(err, errInDoubt) {
		return false
	}
	var own *claviger.Error
	return Code(err) != "" || errors.As(err, &own)
}

// checkOutage returns an error if the database has been unreachable for longer than Config.RetryTimeout.
func (d *DB) checkOutage() error {
	o := &d.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.pinging {
		return nil
	}
	return &outageError{o.since, o.err}
}

// outageError is the error of a call that failed without an attempt to reach the database.
type outageError struct {
	since time.Time
	cause error
}

func (e *outageError) Error() string {
	return fmt.Sprintf("it has not been reached since %s; new attempts are made automatically: %v",
		e.since.UTC().Format(time.RFC3339), e.cause)
}

func (e *outageError) Unwrap() error { return e.cause }

// pingOnce uses its own connection, because all connections of the pool may be waiting for an answer.
func (d *DB) pingOnce(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, d.Conn())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // an error does not matter
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
		case <-time.After(Jitter(pingInterval)):
		}
	}
}
