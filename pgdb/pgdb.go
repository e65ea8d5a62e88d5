// Package pgdb is a PostgreSQL database as our stores use it, version 13 or newer: a URI without a password, one pool,
// and retries during a failover. A transaction is repeated if PostgreSQL reports a conflict with another one, or if the
// connection was lost before the commit. If the answer to a commit was lost, pgdb queries the outcome by the
// transaction's id.
//
// outage.go records that the server does not answer. lineage.go compares timelines to find out which of several hosts
// may be used.
package pgdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"claviger"
)

// Config has the settings of a database.
type Config struct {
	// URI is a URI of libpq, without a password.
	URI string
	// What names the content, and Where the origin of the URI, in errors: "metastore", "property
	// claviger.metastore.uri".
	What, Where string
	// UnknownOutcome is the advice in an error if the outcome of a commit is not known.
	UnknownOutcome string
	Log            *slog.Logger // nil: no log
	// RetryTimeout is how long a call retries while the database cannot be reached, for example during
	// a failover; 0 is 5 s. The context of a call may end it sooner.
	RetryTimeout time.Duration
	// ReadOnly is for a caller that only reads: no session can write, a standby is accepted, and
	// the schema is not upgraded.
	ReadOnly bool
	// Standby says that the only host of the URI may be a standby, which answers reads and refuses
	// writes.
	Standby bool
	// Conflicts are unique constraints in which two transactions can conflict. Such a transaction
	// is repeated.
	Conflicts []string
	// Connected is called for each new connection of the pool before its first use, if it is not
	// nil. An error closes the connection.
	Connected func(ctx context.Context, conn *pgx.Conn) error
	// Newest has the servers that an earlier process has seen, as DB.Newest returned them. Forget
	// says how an operator can make a node forget them; "" means by a restart.
	Newest map[string]Newest
	Forget string
}

// DB is a database. All methods may be called at the same time.
type DB struct {
	cfg    Config
	uri    string // without secrets
	pool   *pgxpool.Pool
	closed atomic.Bool

	lineage lineage
	outage  outage
	// password is the last content of the password file.
	password atomic.Pointer[string]
	alive    context.Context // ends with Close
	stop     context.CancelFunc
	wg       sync.WaitGroup // goroutines that run until stop
}

// Open opens the database of the URI. Kind Invalid if the URI is wrong. If the server does not answer, the first call
// fails, not Open. If the URI names several hosts, Open queries the timeline of each, with a short timeout.
func Open(ctx context.Context, c Config) (*DB, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.RetryTimeout <= 0 {
		c.RetryTimeout = 5 * time.Second
	}
	cfg, uri, err := parse(c.URI, c.What)
	if err != nil {
		return nil, err
	}
	if c.ReadOnly {
		cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	}
	// By default the server must be a primary, the only server that accepts writes, also after a failover.
	// target_session_attrs in the URI may allow other servers.
	primary := cfg.ConnConfig.ValidateConnect == nil
	if c.ReadOnly || c.Standby && len(cfg.ConnConfig.Fallbacks) == 0 {
		cfg.ConnConfig.ValidateConnect, primary = nil, false
	}
	d := &DB{cfg: c, uri: uri}
	d.lineage.load(c.Newest)
	d.lineage.forget = cmp.Or(c.Forget, "restart this node")
	cfg.ConnConfig.ValidateConnect = d.validate(cfg.ConnConfig.ValidateConnect, primary)
	cfg.AfterConnect = c.Connected
	cfg.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error { d.renew(conn); return nil }
	d.alive, d.stop = context.WithCancel(context.Background())
	if d.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		d.stop()
		return nil, d.Fail("pgdb.Open", "", err)
	}
	if !c.ReadOnly && d.Hosts() > 1 {
		d.survey(ctx) // before the first connection, which may reach a replaced primary
		d.wg.Go(func() { d.watchHosts(d.alive) })
	}
	return d, nil
}

// URI returns the database's URI, without secrets.
func (d *DB) URI() string { return d.uri }

// Pool returns the pool. Use it only inside a function that is given to Read.
func (d *DB) Pool() *pgxpool.Pool { return d.pool }

// Conn returns the configuration of a connection outside the pool, with the credentials that the files have now.
func (d *DB) Conn() *pgx.ConnConfig {
	cfg := d.pool.Config().ConnConfig
	d.renew(cfg)
	return cfg
}

// ErrEmpty says that a database that was opened for reading only has no store yet.
var ErrEmpty = errors.New("the database has no tables of claviger yet; the first start of a server makes them")

// Schema is a store's schema.
type Schema struct {
	// Migrations are goose's files; Version is the number of the newest.
	Migrations fs.FS
	Version    int64
	// Table holds the numbers of the migrations that were applied.
	Table string
	// Parts are the constraints and indexes of the newest version, one a line, as DB.Parts names
	// them.
	Parts string
	// Lock keeps other processes from migrating at the same time.
	Lock func(ctx context.Context) (unlock func(), err error)
	// Oldest returns the oldest version whose programs work with the schema that the database has, 0 if none is
	// recorded. If it is nil, no program works with a newer schema.
	Oldest func(ctx context.Context) (version int64, err error)
	// Record records what Oldest returns after the upgrade. It is called before an upgrade, so that programs that do
	// not work with the new schema stop before it is there; and after the tables of an empty database were made.
	Record func(ctx context.Context) error
}

// Migrate upgrades the schema. It refuses, with kind Unavailable, a schema that lacks constraints or indexes, or that
// is too new for this program: see Schema.Oldest.
func (d *DB) Migrate(ctx context.Context, s Schema) error {
	const op = "pgdb.Migrate"
	version, err := d.version(ctx, s.Table)
	if err != nil {
		return err
	}
	if version > s.Version {
		return d.newer(ctx, s, version)
	}
	if version == s.Version {
		return d.needParts(ctx, s)
	}
	if d.cfg.ReadOnly && version == 0 {
		return claviger.Errorf(op, claviger.Unavailable, "", "%s %s: %w", d.cfg.What, d.uri, ErrEmpty)
	}
	if d.cfg.ReadOnly {
		return claviger.Errorf(op, claviger.Unavailable, "", "%s %s has schema version %d, this program reads "+
			"version %d: start a server once; it upgrades the schema", d.cfg.What, d.uri, version, s.Version)
	}
	unlock, err := s.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	db := stdlib.OpenDBFromPool(d.pool)
	defer func() { _ = db.Close() }() // the pool stays
	sub, err := fs.Sub(s.Migrations, "migrations")
	if err != nil {
		return d.Fail(op, "", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, sub, goose.WithTableName(s.Table))
	if err != nil {
		return d.Fail(op, "", err)
	}
	record := s.Record
	if record == nil {
		record = func(context.Context) error { return nil }
	}
	if version > 0 {
		if err := record(ctx); err != nil {
			return err
		}
	}
	if _, err := p.Up(ctx); err != nil {
		return d.Fail(op, "", fmt.Errorf("upgrade of the schema: %w", err))
	}
	if version == 0 {
		if err := record(ctx); err != nil {
			return err
		}
	}
	return d.needParts(ctx, s)
}

// newer accepts a schema that is newer than this program, if this program works with it.
func (d *DB) newer(ctx context.Context, s Schema, version int64) error {
	if s.Oldest != nil {
		oldest, err := s.Oldest(ctx)
		if err != nil {
			return err
		}
		if oldest > 0 && oldest <= s.Version {
			d.cfg.Log.Warn("a newer claviger has upgraded the schema; this program works with it, until this node is "+
				"upgraded too", d.cfg.What, d.uri, "schema", version, "known", s.Version)
			return d.needParts(ctx, s)
		}
	}
	return claviger.Errorf("pgdb.Migrate", claviger.Unavailable, "", "%s %s has schema version %d, this program knows "+
		"versions up to %d: a newer claviger has written it; run that version or a newer one, or restore the "+
		"dump that was taken before the upgrade",
		d.cfg.What, d.uri, version, s.Version)
}

// needParts returns an error if a database lacks parts of its schema. An interrupted restore leaves such a database,
// because pg_restore makes constraints and indexes last. Without them a row that must be unique could be written twice.
func (d *DB) needParts(ctx context.Context, s Schema) error {
	parts, err := d.Parts(ctx, s.Table)
	if err != nil {
		return err
	}
	var missing []string
	for part := range strings.Lines(s.Parts) {
		if part = strings.TrimSpace(part); part != "" && !slices.Contains(parts, part) {
			missing = append(missing, part)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	named := missing[:min(len(missing), 5)]
	return claviger.Errorf("pgdb.Migrate", claviger.Unavailable, "", "%s %s lacks %d parts of its schema (%s%s), as "+
		"after an interrupted restore; rows may be missing too. Restore the dump again into an empty database, with "+
		"pg_restore --exit-on-error --single-transaction (docs/backup.md)",
		d.cfg.What, d.uri, len(missing), strings.Join(named, ", "),
		map[bool]string{true: " and others"}[len(named) < len(missing)])
}

// Parts lists the constraints ("constraint TABLE.NAME") and valid indexes ("index NAME") in the
// schema of a table, sorted by bytes.
func (d *DB) Parts(ctx context.Context, table string) (parts []string, err error) {
	// The types leave out NOT NULL (n), because only newer servers have constraints of this type.
	const list = `WITH ours AS (SELECT oid, relname FROM pg_class
			WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($1)))
		SELECT 'constraint ' || ours.relname || '.' || c.conname AS part
			FROM pg_constraint c JOIN ours ON ours.oid = c.conrelid
			WHERE c.contype IN ('p', 'u', 'f', 'c') AND c.convalidated
		UNION ALL SELECT 'index ' || ours.relname FROM pg_index i JOIN ours ON ours.oid = i.indexrelid
			WHERE i.indisvalid`
	err = d.Read(ctx, "pgdb.Parts", "", func(ctx context.Context) error {
		rows, err := d.pool.Query(ctx, list, pgx.Identifier{table}.Sanitize())
		if err != nil {
			return err
		}
		parts, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	slices.Sort(parts)
	return parts, err
}

// version returns the schema's version, 0 for an empty database.
func (d *DB) version(ctx context.Context, table string) (version int64, err error) {
	err = d.Read(ctx, "pgdb.Migrate", "", func(ctx context.Context) error {
		query := `SELECT coalesce(max(version_id), 0) FROM ` + pgx.Identifier{table}.Sanitize() + ` WHERE is_applied`
		err := d.pool.QueryRow(ctx, query).Scan(&version)
		if Code(err) == UndefinedTable {
			return nil
		}
		return err
	})
	return version, err
}

// Standby reports whether the server is a standby, which takes no writes.
func (d *DB) Standby(ctx context.Context, op string) (standby bool, err error) {
	err = d.Read(ctx, op, "", func(ctx context.Context) error {
		return d.pool.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby)
	})
	return standby, err
}

// Close ends all connections. A second Close does nothing.
func (d *DB) Close() {
	d.End()
	d.outage.mu.Lock()   // its holder has not seen the end, and may start a ping
	d.outage.mu.Unlock() //nolint:staticcheck // so it is waited for
	d.stop()
	d.wg.Wait()
	d.pool.Close()
}

// End makes all further calls fail. It reports whether it is the first call.
func (d *DB) End() bool { return !d.closed.Swap(true) }

// Usable is kind Closed after End. Every method calls it first.
func (d *DB) Usable(op string) error {
	if d.closed.Load() {
		return claviger.Errorf(op, claviger.Closed, "", "%s %s is closed", d.cfg.What, d.uri)
	}
	return nil
}

// Read runs f, and repeats it while the database cannot be reached, for Config.RetryTimeout. f must
// only read, or change only what may be changed twice.
func (d *DB) Read(ctx context.Context, op, key string, f func(context.Context) error) error {
	if err := d.Usable(op); err != nil {
		return err
	}
	return d.Fail(op, key, d.Retry(ctx, f))
}

// Retry repeats f until it succeeds, fails for a lasting reason, or Config.RetryTimeout is over. That time
// begins when the database was first found unreachable, so later calls fail at once. The error is f's.
func (d *DB) Retry(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if err := d.checkOutage(); err != nil {
		return err
	}
	readOnly := 0
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		begun := time.Now()
		err := f(ctx)
		if err == nil {
			d.reached(begun, nil)
			return nil
		}
		if d.closed.Load() {
			return err
		}
		if ctx.Err() != nil {
			// After a short deadline it is unknown whether the database answers. A commit may also wait for a
			// standby while the server answers everything else.
			if time.Since(begun) >= outageThreshold && !errors.Is(err, errInDoubt) {
				d.failed(begun, err)
			}
			return err
		}
		if answered(err) {
			d.reached(begun, err)
		}
		again := d.conflict(err)
		switch {
		case again, d.cfg.Standby && Code(err) == ReadOnly:
		case Code(err) == ReadOnly:
			d.pool.Reset() // the primary may be another host now
			readOnly++
			again = readOnly < 3
		case Unreachable(err):
			again = !d.failed(begun, err)
		}
		if !again {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(Jitter(wait)):
		}
	}
}

// Update runs f in one transaction of that isolation. It repeats f after a conflict with another
// transaction, and if the connection was lost before the commit. f must make no change outside the
// transaction. If the answer to the commit was lost, Update asks the server for the outcome.
func (d *DB) Update(ctx context.Context, op, key string, level pgx.TxIsoLevel,
	f func(context.Context, pgx.Tx) error) error {
	if err := d.Usable(op); err != nil {
		return err
	}
	if err := d.requireOneSystem(op, key); err != nil {
		return err
	}
	return d.Fail(op, key, d.Retry(ctx, func(ctx context.Context) error {
		return d.transact(ctx, pgx.TxOptions{IsoLevel: level}, f)
	}))
}

// Try runs f in one transaction whose commit is only a probe: if the commit is not answered before
// ctx ends, Try does not find out its outcome.
func (d *DB) Try(ctx context.Context, op string, f func(context.Context, pgx.Tx) error) error {
	if err := d.Usable(op); err != nil {
		return err
	}
	if err := d.requireOneSystem(op, ""); err != nil {
		return err
	}
	return d.Fail(op, "", d.Retry(ctx, func(ctx context.Context) error {
		tx, err := d.pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after Commit it does nothing
		if err := f(ctx, tx); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}))
}

// Once runs f in one transaction that may take long. It never repeats f.
func (d *DB) Once(ctx context.Context, op string, o pgx.TxOptions, f func(context.Context, pgx.Tx) error) error {
	if err := d.Usable(op); err != nil {
		return err
	}
	return d.Fail(op, "", d.transact(ctx, o, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
			return err
		}
		return f(ctx, tx)
	}))
}

func (d *DB) transact(ctx context.Context, o pgx.TxOptions, f func(context.Context, pgx.Tx) error) error {
	tx, err := d.pool.BeginTx(ctx, o)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after Commit it does nothing
	if err := f(ctx, tx); err != nil {
		return err
	}
	var id string // "" if the transaction has written nothing
	if o.AccessMode != pgx.ReadOnly {
		err := tx.QueryRow(ctx, `SELECT coalesce(pg_current_xact_id_if_assigned()::text, '')`).Scan(&id)
		if err != nil {
			return err
		}
	}
	err = tx.Commit(ctx)
	if err == nil || Code(err) != "" && !Unreachable(err) || id == "" {
		return err
	}
	return d.outcome(ctx, id, err)
}

// errInDoubt marks a commit whose outcome is not known.
var errInDoubt = errors.New("the connection was lost during a commit, and its outcome cannot be found out")

// abortedError marks a commit that was lost and did not happen.
type abortedError struct{ cause error }

func (e *abortedError) Error() string { return e.cause.Error() }
func (e *abortedError) Unwrap() error { return e.cause }

// outcome finds out whether a transaction was committed, if its commit was not answered. It continues after the
// caller's context has ended, because the caller must know the outcome.
//
// With synchronous replication, such a commit may be only on the primary. It counts as committed after a later record
// has reached the standbys.
func (d *DB) outcome(ctx context.Context, id string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.RetryTimeout)
	defer cancel()
	for {
		var status *string // NULL if the transaction is too old
		err := d.pool.QueryRow(ctx, `SELECT pg_xact_status($1::text::xid8)`, id).Scan(&status)
		switch {
		case err == nil && status != nil && *status == "committed":
			if err := d.barrier(ctx); err == nil {
				return nil
			} else if Code(err) != "" && !Unreachable(err) {
				return fmt.Errorf("%w (%w)", errInDoubt, cause)
			}
		case err == nil && status != nil && *status == "aborted", Code(err) == codeInvalidParameter:
			// PostgreSQL refuses an id that is in the future. This happens if the server was killed before it wrote
			// the id.
			return &abortedError{cause}
		case err == nil && status == nil, err != nil && Code(err) != "" && !Unreachable(err):
			return fmt.Errorf("%w (%w)", errInDoubt, cause)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", errInDoubt, cause)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// barrier commits a transaction that writes one record to the log and nothing else. It is
// acknowledged after every record before it has reached the synchronous standbys.
func (d *DB) barrier(ctx context.Context) error {
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after Commit it does nothing
	// A commit waits for standbys only if its transaction has an id.
	_, err = tx.Exec(ctx, `SELECT pg_current_xact_id(), pg_logical_emit_message(true, 'claviger', '')`)
	if err != nil {
		return err
	}
	return tx.Commit(ctx)
}
