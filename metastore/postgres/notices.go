package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"claviger/metastore"
	"claviger/pgdb"
)

const (
	// channel is the channel of LISTEN and NOTIFY. Each database has channels of its own.
	channel = "claviger"
	// maxNoticeKey is the longest key name in a notice, in bytes. PostgreSQL allows payloads of less than 8000 bytes, a
	// payload has the name twice, and JSON may need six bytes for one.
	maxNoticeKey = 600
	// idlePing is the time without a notification after which a listening connection is pinged.
	idlePing = 10 * time.Second
	// warnInterval is how often the log warns that no notices arrive.
	warnInterval = time.Minute
)

// notify records a change of a key. The commit of the transaction sends a notice to all nodes.
func notify(ctx context.Context, tx pgx.Tx, n metastore.Notice) error {
	change, ok := tx.(*changeTx)
	if !ok {
		return errors.New("a key is changed in a transaction that does not record the change")
	}
	return change.record(ctx, n)
}

// Announce sends a notice to all nodes.
func (s *Store) Announce(ctx context.Context, n metastore.Notice) error {
	if len(n.Key) > maxNoticeKey {
		n.Key = "" // any key
	}
	text, _ := json.Marshal(payload{Key: n.Key, Change: n.Change, Token: n.Token}) // never fails
	return s.execRepeatable(ctx, "metastore/postgres.Announce", n.Key, `SELECT pg_notify($1, $2)`, channel,
		string(text))
}

// Watch calls fn for each notice, until ctx ends or the store is closed. It also reads the table of changes every few
// seconds, through another connection. So if a notice is lost, fn gets the change some seconds later.
func (s *Store) Watch(ctx context.Context, fn func(metastore.Notice)) error {
	const op = "metastore/postgres.Watch"
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.alive, cancel)()
	var mu sync.Mutex // one call of fn at a time
	unlocked := fn
	fn = func(n metastore.Notice) {
		mu.Lock()
		defer mu.Unlock()
		unlocked(n)
	}
	var polling sync.WaitGroup
	defer polling.Wait()
	defer cancel() // runs before Wait
	polling.Go(func() { s.poll(ctx, fn) })
	first := true
	var warned time.Time // zero while the connection works
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := s.listen(ctx, func() {
			if !first {
				fn(metastore.Notice{Change: metastore.Invalidated}) // notices may have been lost before this
			}
			if !warned.IsZero() {
				s.log.Info("notices of other nodes' changes arrive again", "metastore", s.db.URI())
			}
			first, wait, warned = false, 50*time.Millisecond, time.Time{}
		}, fn)
		if caller.Err() != nil {
			return nil
		}
		if err := s.db.Usable(op); err != nil {
			return err
		}
		if first && !pgdb.Unreachable(err) && !errors.Is(err, context.DeadlineExceeded) {
			return s.db.Fail(op, "", err)
		}
		if time.Since(warned) > warnInterval {
			warned = time.Now()
			s.log.Warn("notices of other nodes' changes do not arrive: the connection to the metastore is broken; "+
				"until it is back, each use of a cached key is checked in the metastore", "metastore", s.db.URI(),
				"error", err)
		}
		first = false // notices until the next listen are lost
		select {
		case <-ctx.Done(): // handled above, in the next round
		case <-time.After(pgdb.Jitter(wait)):
		}
	}
}

// listen receives notifications through one connection until the connection breaks. It calls listening when
// notifications begin to arrive.
func (s *Store) listen(ctx context.Context, listening func(), fn func(metastore.Notice)) error {
	connect, cancel := context.WithTimeout(ctx, pgdb.CallTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(connect, s.db.Conn())
	if err != nil {
		return err
	}
	defer closeConn(conn)
	if _, err := conn.Exec(connect, "LISTEN "+channel); err != nil {
		return err
	}
	listening()
	for {
		n, err := next(ctx, conn, idlePing)
		if err != nil {
			return err
		}
		if n == nil {
			continue
		}
		if notice, isNew := s.parseNotice(n.Payload); isNew {
			fn(notice)
		}
	}
}

// next waits for a notification. It returns nil if none has arrived within idle, and the connection has then answered
// a ping.
func next(ctx context.Context, conn *pgx.Conn, idle time.Duration) (*pgconn.Notification, error) {
	quiet, cancel := context.WithTimeout(ctx, idle)
	defer cancel()
	n, err := conn.WaitForNotification(quiet)
	if err == nil {
		return n, nil
	}
	ping, cancel := context.WithTimeout(ctx, pgdb.ConnectTimeout)
	defer cancel()
	if unanswered := conn.Ping(ping); unanswered != nil {
		return nil, fmt.Errorf("%w; ping: %w", err, unanswered)
	}
	return nil, nil
}
