package postgres

import (
	"context"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/pgdb"
)

// lockRetryInterval is how often a waiting Lock tries again. A waiting pg_advisory_lock would keep a session open for
// each caller that waits.
const lockRetryInterval = 50 * time.Millisecond

// lock is a held advisory lock. Each lock has its own session: PostgreSQL frees the lock when the session ends,
// whatever ends it.
type lock struct {
	store *Store
	name  string
	conn  *pgx.Conn
	lost  context.CancelCauseFunc
	stop  context.CancelFunc
	done  chan struct{} // closed when checkSession has ended
	once  sync.Once
}

// lockID returns the number of the advisory lock for a name. If two names had the same number, their locks would
// exclude each other, which is safe.
func lockID(name string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("claviger\x00" + name)) // never fails
	return int64(h.Sum64())
}

// Lock takes the named lock, see metastore.Store.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(), err error) {
	_, unlock, _, err = s.Hold(ctx, name, true)
	return unlock, err
}

// Hold takes the named lock, and ends held if the lock is lost, see metastore.Holder.
func (s *Store) Hold(ctx context.Context, name string, wait bool) (held context.Context, unlock func(), ok bool,
	err error) {
	for tried := false; ; tried = true {
		held, unlock, ok, err := s.tryLock(ctx, name)
		ended := tried && ctx.Err() != nil // the last attempt found another holder
		if err != nil && !ended || ok || !wait {
			return held, unlock, ok, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, false, claviger.Errorf("metastore/postgres.Lock", claviger.Unavailable, "",
				"lock %q of metastore %s is held by another node, process or task: %w", name, s.db.URI(),
				context.Cause(ctx))
		case <-time.After(pgdb.Jitter(lockRetryInterval)):
		}
	}
}

// TryLock takes the named lock if it is free, see metastore.Store.
func (s *Store) TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error) {
	_, unlock, ok, err = s.tryLock(ctx, name)
	return unlock, ok, err
}

func (s *Store) tryLock(ctx context.Context, name string) (held context.Context, unlock func(), ok bool, err error) {
	const op = "metastore/postgres.Lock"
	if err := s.db.Usable(op); err != nil {
		return nil, nil, false, err
	}
	var conn *pgx.Conn
	err = s.db.Retry(ctx, func(ctx context.Context) error {
		c, err := pgx.ConnectConfig(ctx, s.db.Conn())
		if err != nil {
			return err
		}
		if err := c.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, lockID(name)).Scan(&ok); err != nil || !ok {
			closeConn(c)
			return err
		}
		conn = c
		return nil
	})
	if err != nil || !ok {
		if err != nil {
			err = s.db.Fail(op, "", fmt.Errorf("lock %q: %w", name, err))
		}
		return nil, nil, false, err
	}
	held, lost := context.WithCancelCause(ctx)
	checking, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &lock{store: s, name: name, conn: conn, lost: lost, stop: stop, done: make(chan struct{})}
	s.mu.Lock()
	closed := s.db.Usable("metastore/postgres.Lock") != nil
	if !closed {
		s.locks[l] = struct{}{}
	}
	s.mu.Unlock()
	go l.checkSession(checking)
	if closed {
		l.release()
		return nil, nil, false, s.db.Usable(op)
	}
	return held, l.release, true, nil
}

// checkSession pings the session regularly, until ctx ends or the session is lost.
func (l *lock) checkSession(ctx context.Context) {
	defer close(l.done)
	tick := time.NewTicker(l.store.cfg.LockCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		check, cancel := context.WithTimeout(ctx, 2*l.store.cfg.LockCheck)
		err := l.conn.Ping(check)
		cancel()
		if err != nil && ctx.Err() == nil {
			err = claviger.Errorf("metastore/postgres.Lock", claviger.Unavailable, "",
				"lock %q of metastore %s (property %s) was lost with its connection: %w; another node may hold it now",
				l.name, l.store.db.URI(), l.store.cfg.Property, err)
			l.store.log.Error("a lock of the metastore was lost", "lock", l.name, "error", err)
			l.lost(err)
			return
		}
	}
}

// release frees the lock, once.
func (l *lock) release() {
	l.once.Do(func() {
		l.stop()
		<-l.done
		l.store.mu.Lock()
		delete(l.store.locks, l)
		l.store.mu.Unlock()
		// If the connection were only closed, the session would hold its locks until the server has noticed the close.
		ctx, cancel := context.WithTimeout(context.Background(), pgdb.ConnectTimeout)
		defer cancel()
		if !l.conn.IsClosed() {
			_, _ = l.conn.Exec(ctx, `SELECT pg_advisory_unlock_all()`) // a lost session has no lock
		}
		closeConn(l.conn)
		l.lost(context.Canceled)
	})
}

// closeConn closes a connection, and waits at most a second for that.
func closeConn(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx) // the connection is not used again
}
