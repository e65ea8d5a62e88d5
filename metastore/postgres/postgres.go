// Package postgres is the metastore of several nodes: one PostgreSQL database, version 13 or newer, that all of them
// use.
//
// Transactions that change keys are serializable, see package pgdb. A named lock is an advisory lock with a session of
// its own, so PostgreSQL frees the lock when its holder ends. A notice is a NOTIFY in the transaction that makes the
// change.
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

// parts lists the schema's constraints and indexes.
//
//go:embed parts.txt
var parts string

// schemaVersion is the number of the newest file in migrations.
const schemaVersion = 8

// oldestSchema is the oldest schema version whose programs work with the tables of schemaVersion. Their nodes go on
// while one node after the other is upgraded, and may be restarted. A migration that only adds tables, indexes, and
// columns with a default keeps the number, if older programs may ignore what it adds. Any other migration sets it to
// schemaVersion: then all nodes must be stopped for the upgrade.
const oldestSchema = 8

// ErrEmpty is the error of a ReadOnly store in a database that has no metastore yet.
var ErrEmpty = pgdb.ErrEmpty

// Config has the settings of a store.
type Config struct {
	// URI is a URI of libpq, without a password.
	URI string
	// Property is the property that has the URI, for errors.
	Property string
	Log      *slog.Logger // nil: no log
	// RetryTimeout is how long a call retries while the database cannot be reached, for example during a failover;
	// 0 is 5 s. The context of a call may end it sooner.
	RetryTimeout time.Duration
	// LockCheck is how often the session of a held lock is pinged; 0 is 2 s.
	LockCheck time.Duration
	// Seen is a file in which a node stores which changes and servers it has seen. With it, the node detects lost
	// changes also after its restart. Each node needs a file of its own; "" is none. SeenProperty is the property that
	// names the file, for messages.
	Seen, SeenProperty string
	// ReadOnly is for a command that only reads: no session can write, a standby is accepted as server, and the schema
	// is not upgraded but must be this program's.
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

	background sync.WaitGroup // goroutines that run until Close
	exclusive  atomic.Bool    // this process has the only claim, and allows no others

	history history
	writes  writes
}

var _ metastore.Store = (*Store)(nil)

// Open opens the store in the database of the URI, and upgrades an older schema, one node at a time. It refuses a newer
// schema.
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
	before, err := c.loadSeen()
	if err != nil {
		return nil, err
	}
	db, err := pgdb.Open(ctx, pgdb.Config{
		URI: c.URI, What: "metastore", Where: "property " + c.Property, Log: c.Log, RetryTimeout: c.RetryTimeout,
		ReadOnly: c.ReadOnly,
		UnknownOutcome: "see whether the key was changed before you repeat the step; an unfinished step is then " +
			"finished, not begun again",
		// Two transactions that write the first row of a name conflict in these indexes, not in their reads.
		Conflicts: []string{"intent_key_digest", "key_number_name_digest", "version_unused_digest"},
		Connected: s.connected,
		Newest:    before.Servers, Forget: c.forgetCure(),
	})
	if err != nil {
		return nil, err
	}
	s.db = db
	s.remember(before.Changes...)
	s.alive, s.end = context.WithCancel(context.Background())
	err = db.Migrate(ctx, pgdb.Schema{Migrations: migrations, Version: schemaVersion, Table: "goose_db_version",
		Parts: parts, Lock: func(ctx context.Context) (func(), error) { return s.Lock(ctx, "schema") },
		Oldest: s.oldestSchema, Record: s.recordOldest})
	if err != nil {
		_ = s.Close() // the first error matters
		return nil, err
	}
	if c.Seen != "" {
		s.background.Go(s.writeSeen)
	}
	return s, nil
}

// URI returns the URI of the database, without secrets.
func (s *Store) URI() string { return s.db.URI() }

// Check reads from the table of keys, and demands that the server is the primary.
func (s *Store) Check(ctx context.Context) error {
	const op = "metastore/postgres.Check"
	standby, err := s.db.Standby(ctx, op)
	if err == nil && standby {
		s.db.Pool().Reset() // the next call connects again, and so finds the primary
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

// Close ends all connections, and so frees the locks that are still held. A second Close does nothing.
func (s *Store) Close() error {
	if !s.db.End() {
		return nil
	}
	s.end()
	s.background.Wait()
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

// Times are stored as milliseconds since 1970, UTC.
func millis(t time.Time) int64      { return t.UnixMilli() }
func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
func now() time.Time                { return time.Now().UTC().Truncate(time.Millisecond) }
