// Package postgres is the metastore of several nodes: one PostgreSQL database
// that all of them use, version 13 or newer.
//
// Transactions that change keys are serializable, and are done again where
// PostgreSQL says that they were in each other's way, or where the connection
// was lost before the commit. A commit whose answer was lost is looked up by its
// transaction's id. Named locks are advisory locks of sessions of their own, so
// they go when their holder does. Notices are LISTEN and NOTIFY, sent by the
// transaction that makes the change.
package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"claviger"
	"claviger/metastore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// schemaVersion is the number of the newest file in migrations.
const schemaVersion = 2

// Config is how a store is opened.
type Config struct {
	// URI is libpq's, without a password.
	URI string
	// Property is the name that errors give to where the URI stands.
	Property string
	Log      *slog.Logger // nil discards
	// Patience is how long a call tries to get through while the database cannot
	// be reached, as in a failover; 0 is 5 s. A call's own context may end sooner.
	Patience time.Duration
	// LockCheck is how often the session of a held lock is asked whether it is
	// still there; 0 is 2 s.
	LockCheck time.Duration
	// ReadOnly is for who only looks: no session may write, a standby will do, and the
	// schema is taken as it is, if it is this program's.
	ReadOnly bool
}

// Store is a metastore in a PostgreSQL database.
type Store struct {
	cfg    Config
	uri    string // to show
	pool   *pgxpool.Pool
	log    *slog.Logger
	closed atomic.Bool
	alive  context.Context // ends with Close
	end    context.CancelFunc

	mu    sync.Mutex
	locks map[*lock]struct{} // held now; guarded by mu
}

var _ metastore.Store = (*Store)(nil)

// Open opens the store in the database that the URI names, and brings its schema
// up to date, one node at a time. It refuses a schema that is newer than this
// program.
func Open(ctx context.Context, c Config) (*Store, error) {
	const op = "postgres.Open"
	if c.Property == "" {
		c.Property = "claviger.metastore.uri"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Patience <= 0 {
		c.Patience = 5 * time.Second
	}
	if c.LockCheck <= 0 {
		c.LockCheck = 2 * time.Second
	}
	cfg, uri, err := parse(c.URI)
	if err != nil {
		return nil, err
	}
	if c.ReadOnly {
		cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
		cfg.ConnConfig.ValidateConnect = nil // which would ask whether it may write
	}
	s := &Store{cfg: c, uri: uri, log: c.Log, locks: map[*lock]struct{}{}}
	s.alive, s.end = context.WithCancel(context.Background())
	if s.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return nil, s.fail(op, "", err)
	}
	if err := s.prepare(ctx); err != nil {
		_ = s.Close() // the error tells more
		return nil, err
	}
	return s, nil
}

// prepare brings the schema up to date.
func (s *Store) prepare(ctx context.Context) error {
	const op = "postgres.Open"
	version, err := s.version(ctx)
	if err != nil {
		return err
	}
	if version > schemaVersion {
		return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s has schema version %d, this program knows versions up to %d: a newer claviger has written it; run that version or a newer one, or restore the dump that was taken before the upgrade",
			s.uri, version, schemaVersion)
	}
	if version == schemaVersion {
		return nil
	}
	if s.cfg.ReadOnly {
		return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s has schema version %d, this program reads version %d: start a server once, which brings it up to date", s.uri, version, schemaVersion)
	}
	unlock, err := s.Lock(ctx, "schema")
	if err != nil {
		return err
	}
	defer unlock()
	db := stdlib.OpenDBFromPool(s.pool)
	defer func() { _ = db.Close() }() // the pool stays
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return s.fail(op, "", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, sub)
	if err != nil {
		return s.fail(op, "", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return s.fail(op, "", fmt.Errorf("bringing the schema up to date: %w", err))
	}
	return nil
}

// version returns the schema's version, 0 for an empty database.
func (s *Store) version(ctx context.Context) (version int64, err error) {
	err = s.read(ctx, "postgres.Open", "", func(ctx context.Context) error {
		err := s.pool.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version)
		if codeOf(err) == codeUndefinedTable {
			return nil
		}
		return err
	})
	return version, err
}

// URI is the database's, without secrets.
func (s *Store) URI() string { return s.uri }

// Check makes one round trip to the database, which must take writes.
func (s *Store) Check(ctx context.Context) error {
	const op = "postgres.Check"
	return s.read(ctx, op, "", func(ctx context.Context) error {
		var standby bool
		if err := s.pool.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby); err != nil {
			return err
		}
		if standby {
			s.pool.Reset() // whoever comes next looks for the primary
			return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s (property %s): the server is a standby and takes no writes; name all hosts in the URI, as in postgresql://USER@HOST1,HOST2/DATABASE", s.uri, s.cfg.Property)
		}
		return nil
	})
}

// Close ends all connections, and with them the locks that are still held. A
// second Close does nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.end()
	s.mu.Lock()
	held := make([]*lock, 0, len(s.locks))
	for l := range s.locks {
		held = append(held, l)
	}
	s.mu.Unlock()
	for _, l := range held {
		l.release()
	}
	s.pool.Close()
	return nil
}

// usable is the check at the head of every method.
func (s *Store) usable(op string) error {
	if s.closed.Load() {
		return claviger.Errorf(op, claviger.Closed, "", "metastore %s is closed", s.uri)
	}
	return nil
}

// read runs f, and again while the database can't be reached and patience lasts.
// f must only read, or do what may be done twice.
func (s *Store) read(ctx context.Context, op, key string, f func(context.Context) error) error {
	if err := s.usable(op); err != nil {
		return err
	}
	return s.fail(op, key, s.retry(ctx, f))
}

// retry runs f until it is done, or fails for a reason that won't go away, or
// patience is at its end.
func (s *Store) retry(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	begun := time.Now()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		err := f(ctx)
		if err == nil || ctx.Err() != nil || s.closed.Load() {
			return err
		}
		again := conflict(err)
		if !again && unreachable(err) {
			again = time.Since(begun) < s.cfg.Patience
			if codeOf(err) == codeReadOnly {
				s.pool.Reset() // connections to what is a standby now
			}
		}
		if !again {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(jitter(wait)):
		}
	}
}

// update runs f in one transaction of that isolation, and again where it was in
// another's way or the connection was lost before its commit. f must make no
// change outside of the transaction. Where the answer to the commit was lost,
// what became of it is asked.
func (s *Store) update(ctx context.Context, op, key string, level pgx.TxIsoLevel, f func(context.Context, pgx.Tx) error) error {
	if err := s.usable(op); err != nil {
		return err
	}
	return s.fail(op, key, s.retry(ctx, func(ctx context.Context) error {
		tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after Commit it does nothing
		if err := f(ctx, tx); err != nil {
			return err
		}
		var id string // NULL where the transaction has written nothing
		if err := tx.QueryRow(ctx, `SELECT coalesce(pg_current_xact_id_if_assigned()::text, '')`).Scan(&id); err != nil {
			return err
		}
		err = tx.Commit(ctx)
		if err == nil || codeOf(err) != "" && !unreachable(err) || id == "" {
			return err
		}
		return s.outcome(ctx, id, err)
	}))
}

// errInDoubt marks a commit of which nobody can say whether it was done.
var errInDoubt = errors.New("the connection was lost during a commit, and what became of it can't be found out")

// abortedError marks a commit that was lost and is known not to have happened.
type abortedError struct{ cause error }

func (e *abortedError) Error() string { return e.cause.Error() }
func (e *abortedError) Unwrap() error { return e.cause }

// outcome asks what became of a transaction whose commit was not answered. The
// answer is worth waiting for even where the caller's context has ended.
func (s *Store) outcome(ctx context.Context, id string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Patience)
	defer cancel()
	for {
		var status *string // NULL: too long ago to tell
		err := s.pool.QueryRow(ctx, `SELECT pg_xact_status($1::text::xid8)`, id).Scan(&status)
		switch {
		case err == nil && status != nil && *status == "committed":
			return nil
		case err == nil && status != nil && *status == "aborted", codeOf(err) == codeInvalidParameter: // the latter: an id of the future, for a server that was killed before it wrote of it
			return &abortedError{cause}
		case err == nil && status == nil, err != nil && codeOf(err) != "" && !unreachable(err):
			return fmt.Errorf("%w (%w)", errInDoubt, cause)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", errInDoubt, cause)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// millis and when are how times are stored: milliseconds since 1970, UTC.
func millis(t time.Time) int64 { return t.UnixMilli() }
func when(ms int64) time.Time  { return time.UnixMilli(ms).UTC() }
func now() time.Time           { return time.Now().UTC().Truncate(time.Millisecond) }
