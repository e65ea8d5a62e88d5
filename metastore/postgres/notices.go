package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"claviger/metastore"
	"claviger/pgdb"
)

const (
	// channel is that of LISTEN and NOTIFY; channels are a database's own.
	channel = "claviger"
	// maxKey is how long a name may be to be told, in bytes, each of which JSON may make
	// six of: PostgreSQL takes payloads of less than 8000 bytes. A name is in it twice.
	maxKey = 600
	// watchPing is how often a quiet watching connection is asked whether it is
	// still there.
	watchPing = 10 * time.Second
	// warnEvery is how often the log says that notices do not come.
	warnEvery = time.Minute
)

// notify writes a change down, and tells all who watch when the transaction is
// committed.
func notify(ctx context.Context, tx pgx.Tx, n metastore.Notice) error {
	change, ok := tx.(*changeTx)
	if !ok {
		return errors.New("a key is changed in a transaction that leaves no record of it")
	}
	return change.record(ctx, n)
}

// Announce tells all who watch.
func (s *Store) Announce(ctx context.Context, n metastore.Notice) error {
	if len(n.Key) > maxKey {
		n.Key = "" // any key
	}
	text, err := json.Marshal(payload{Key: n.Key, Change: n.Change})
	if err != nil {
		return s.db.Fail("metastore/postgres.Announce", n.Key, err)
	}
	return s.change(ctx, "metastore/postgres.Announce", n.Key, `SELECT pg_notify($1, $2)`, channel, string(text))
}

// Watch calls fn for each notice, until ctx ends or the store is closed. Beside them it
// reads the table of changes now and then, by another connection: a notice that does
// not come delays what it would have told by some seconds.
func (s *Store) Watch(ctx context.Context, fn func(metastore.Notice)) error {
	const op = "metastore/postgres.Watch"
	if err := s.db.Usable(op); err != nil {
		return err
	}
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.alive, cancel)()
	var one sync.Mutex
	told := fn
	fn = func(n metastore.Notice) {
		one.Lock()
		defer one.Unlock()
		told(n)
	}
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel() // before the wait
	reading.Go(func() { s.poll(ctx, fn) })
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
			s.log.Warn("notices of other nodes' changes do not come: the connection to the metastore is broken; "+
				"what is remembered is checked at each use until it is back", "metastore", s.db.URI(), "error", err)
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
	conn, err := pgx.ConnectConfig(connect, s.db.Conn())
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
		if told, fresh := s.hear(n.Payload); fresh {
			fn(told)
		}
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
