// Package postgres is the metastore of several nodes: one PostgreSQL database
// that all of them use, version 13 or newer.
//
// Transactions that change keys are serializable, see package pgdb. Named locks are advisory locks of sessions
// of their own, so
// they go when their holder does. Notices are LISTEN and NOTIFY, sent by the
// transaction that makes the change.
package postgres

import (
	"context"
	"embed"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/pgdb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// parts are the schema's constraints and indexes.
//
//go:embed parts.txt
var parts string

// schemaVersion is the number of the newest file in migrations.
const schemaVersion = 8

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
	// Seen is a file in which a node keeps what it has seen of the database, so that it
	// notices after its restart, too, that changes were lost; "" keeps nothing. The file
	// is one node's. SeenProperty names it in messages.
	Seen, SeenProperty string
	// ReadOnly is for who only looks: no session may write, a standby will do, and the
	// schema is taken as it is, if it is this program's.
	ReadOnly bool
}

// Store is a metastore in a PostgreSQL database.
type Store struct {
	cfg   Config
	db    *pgdb.DB
	log   *slog.Logger
	alive context.Context // ends with Close
	end   context.CancelFunc

	mu    sync.Mutex
	locks map[*lock]struct{} // held now; guarded by mu

	claims    sync.WaitGroup // and what else runs until Close
	exclusive atomic.Bool    // this process has the store to itself

	history history
	writes  writes
}

var _ metastore.Store = (*Store)(nil)

// Open opens the store in the database that the URI names, and brings its schema
// up to date, one node at a time. It refuses a schema that is newer than this
// program.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Property == "" {
		c.Property = "claviger.metastore.uri"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.LockCheck <= 0 {
		c.LockCheck = 2 * time.Second
	}
	s := &Store{cfg: c, log: c.Log, locks: map[*lock]struct{}{}}
	was, err := c.recall()
	if err != nil {
		return nil, err
	}
	db, err := pgdb.Open(ctx, pgdb.Config{
		URI: c.URI, What: "metastore", Where: "property " +
			c.Property, Log: c.Log, Patience: c.Patience, ReadOnly: c.ReadOnly,
		Doubt: "look at the key before doing it again: the same step made again finishes what was begun",
		// Two first intents of one key collide at the index rather than in their reads.
		Conflicts: []string{"intent_key_digest", "key_number_name_digest"},
		Connected: s.connected,
		Newest:    was.Servers, Forget: c.forget(),
	})
	if err != nil {
		return nil, err
	}
	s.db = db
	s.saw(was.Changes...)
	s.alive, s.end = context.WithCancel(context.Background())
	err = db.Migrate(ctx, pgdb.Schema{Migrations: migrations, Version: schemaVersion, Table: "goose_db_version",
		Parts: parts, Lock: func(ctx context.Context) (func(), error) { return s.Lock(ctx, "schema") }})
	if err != nil {
		_ = s.Close() // the error tells more
		return nil, err
	}
	if c.Seen != "" {
		s.claims.Go(s.keepSeen)
	}
	return s, nil
}

// URI is the database's, without secrets.
func (s *Store) URI() string { return s.db.URI() }

// Check reads from the table of keys. The server must be the primary.
func (s *Store) Check(ctx context.Context) error {
	const op = "metastore/postgres.Check"
	standby, err := s.db.Standby(ctx, op)
	if err == nil && standby {
		s.db.Pool().Reset() // whoever comes next looks for the primary
		return claviger.Errorf(op, claviger.Unavailable, "", "metastore %s (property %s): the server is a standby "+
			"and takes no writes; name all hosts in the URI, as in postgresql://USER@HOST1,HOST2/DATABASE", s.db.URI(),
			s.cfg.Property)
	}
	if err != nil {
		return err
	}
	return s.db.Read(ctx, op, "", func(ctx context.Context) error {
		var any int
		return s.db.Pool().QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM ez_key LIMIT 1) AS one`).Scan(&any)
	})
}

// Close ends all connections, and with them the locks that are still held. A
// second Close does nothing.
func (s *Store) Close() error {
	if !s.db.End() {
		return nil
	}
	s.end()
	s.claims.Wait()
	s.mu.Lock()
	held := make([]*lock, 0, len(s.locks))
	for l := range s.locks {
		held = append(held, l)
	}
	s.mu.Unlock()
	for _, l := range held {
		l.release()
	}
	s.db.Close()
	return nil
}

// millis and when are how times are stored: milliseconds since 1970, UTC.
func millis(t time.Time) int64 { return t.UnixMilli() }
func when(ms int64) time.Time  { return time.UnixMilli(ms).UTC() }
func now() time.Time           { return time.Now().UTC().Truncate(time.Millisecond) }
