package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"claviger/metastore"
	"claviger/pgdb"
)

const (
	// channel is that of LISTEN and NOTIFY; channels are a database's own.
	channel = "claviger"
	// maxPayload is how long a payload may be: PostgreSQL takes less than 8000.
	maxPayload = 7900
	// watchPing is how often a quiet watching connection is asked whether it is
	// still there.
	watchPing = 10 * time.Second
	// warnEvery is how often the log says that notices do not come.
	warnEvery = time.Minute
)

// payload is a notice on its way.
type payload struct {
	Key    string           `json:"key"`
	Change metastore.Change `json:"change"`
}

// encode makes a notice's payload; of a key with an endless name it says that any
// may have changed.
func encode(n metastore.Notice) (string, error) {
	b, err := json.Marshal(payload(n))
	if err != nil || len(b) <= maxPayload {
		return string(b), err
	}
	n.Key = ""
	b, err = json.Marshal(payload(n))
	return string(b), err
}

// notify tells all who watch, when the transaction is committed.
func notify(ctx context.Context, tx pgx.Tx, n metastore.Notice) error {
	text, err := encode(n)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, text)
	return err
}

// Announce tells all who watch.
func (s *Store) Announce(ctx context.Context, n metastore.Notice) error {
	text, err := encode(n)
	if err != nil {
		return s.db.Fail("postgres.Announce", n.Key, err)
	}
	return s.change(ctx, "postgres.Announce", n.Key, `SELECT pg_notify($1, $2)`, channel, text)
}

// Watch calls fn for each notice, until ctx ends or the store is closed.
func (s *Store) Watch(ctx context.Context, fn func(metastore.Notice)) error {
	const op = "postgres.Watch"
	if err := s.db.Usable(op); err != nil {
		return err
	}
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.alive, cancel)()
	first := true
	var warned time.Time // zero while all is well
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := s.listen(ctx, func() {
			if !first {
				fn(metastore.Notice{Change: metastore.Invalidated}) // some may have been lost meanwhile
			}
			if !warned.IsZero() {
				s.log.Info("notices of other nodes' changes come again", "metastore", s.db.URI())
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
		if time.Since(warned) > warnEvery {
			warned = time.Now()
			s.log.Warn("notices of other nodes' changes do not come: the connection to the metastore is broken; what is remembered is checked at each use until it is back", "metastore", s.db.URI(), "error", err)
		}
		first = false // what happens until we listen is lost
		select {
		case <-ctx.Done(): // told apart above
		case <-time.After(pgdb.Jitter(wait)):
		}
	}
}

// listen receives over one connection until it breaks. begun is called when
// nothing is lost any more.
func (s *Store) listen(ctx context.Context, begun func(), fn func(metastore.Notice)) error {
	connect, cancel := context.WithTimeout(ctx, pgdb.CallTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(connect, s.db.Pool().Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() { _ = closeNow(conn) }() // it is broken, or not needed any more
	if _, err := conn.Exec(connect, "LISTEN "+channel); err != nil {
		return err
	}
	begun()
	for {
		n, err := s.next(ctx, conn)
		if err != nil {
			return err
		}
		if n == nil {
			continue
		}
		var p payload
		if json.Unmarshal([]byte(n.Payload), &p) != nil {
			p = payload{Change: metastore.Invalidated} // someone else's: to forget too much does no harm
		}
		fn(metastore.Notice(p))
	}
}

// next waits for a notice; nil where the connection was asked instead, and is
// there.
func (s *Store) next(ctx context.Context, conn *pgx.Conn) (*pgconn.Notification, error) {
	quiet, cancel := context.WithTimeout(ctx, watchPing)
	defer cancel()
	n, err := conn.WaitForNotification(quiet)
	if err == nil || ctx.Err() != nil || quiet.Err() == nil {
		return n, err
	}
	ping, cancel := context.WithTimeout(ctx, pgdb.ConnectTimeout)
	defer cancel()
	return nil, conn.Ping(ping)
}
