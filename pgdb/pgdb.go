// Package pgdb is a PostgreSQL database as our stores use it, version 13 or newer: a URI without a
// password, one pool, and patience during a failover. A transaction is repeated if PostgreSQL
// reports a conflict with another one, or if the connection was lost before the commit. If the
// answer to a commit was lost, its outcome is found by the transaction's id.
//
// outage.go remembers that the server does not answer. lineage.go compares timelines to find out
// which of several hosts may be used.
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

// Config says how a database is opened.
type Config struct {
	// URI is libpq's, without a password.
	URI string
	// What names the content, and Where the place of the URI, in errors: "metastore", "property
	// claviger.metastore.uri".
	What, Where string
	// Doubt is the advice in an error where the outcome of a commit is not known.
	Doubt string
	Log   *slog.Logger // nil discards
	// Patience is how long a call tries to reach the database, for example during a failover; 0 is
	// 5 s. The call's own context may end sooner.
	Patience time.Duration
	// ReadOnly is for a caller who only reads: no session may write, a standby is enough, and the
	// schema is not upgraded.
	ReadOnly bool
	// Standby: if the URI names one host alone, that may be a standby. It answers reads and refuses
	// writes.
	Standby bool
	// Conflicts are unique constraints on which two transactions can collide. Such a transaction
	// may be repeated.
	Conflicts []string
	// Connected is called for each new connection of the pool before its first use; nil does
	// nothing. An error closes the connection.
	Connected func(ctx context.Context, conn *pgx.Conn) error
	// Newest is what an earlier process found, as DB.Newest returned it. Forget says how a node is
	// made to forget it; "" means by a restart.
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

// Open opens the database that the URI names. Kind Invalid if the URI is wrong. A server that does
// not answer is noticed at the first call. Of several hosts, Open asks each for its timeline, for a
// moment.
func Open(ctx context.Context, c Config) (*DB, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Patience <= 0 {
		c.Patience = 5 * time.Second
	}
	cfg, uri, err := parse(c.URI, c.What)
	if err != nil {
		return nil, err
	}
	if c.ReadOnly {
		cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	}
	// Of several hosts, the primary is the one that takes writes, also after a failover. A single
	// host that is a standby is of no use either. target_session_attrs may say otherwise.
	primary := cfg.ConnConfig.ValidateConnect == nil
	if c.ReadOnly || c.Standby && len(cfg.ConnConfig.Fallbacks) == 0 {
		cfg.ConnConfig.ValidateConnect, primary = nil, false
	}
	d := &DB{cfg: c, uri: uri}
	d.lineage.recall(c.Newest)
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

// URI is the database's URI without secrets.
func (d *DB) URI() string { return d.uri }

// Pool is for queries inside the function that is given to Read.
func (d *DB) Pool() *pgxpool.Pool { return d.pool }

// Conn is the configuration of a connection outside the pool, with the credentials that the files
// hold now.
func (d *DB) Conn() *pgx.ConnConfig {
	cfg := d.pool.Config().ConnConfig
	d.renew(cfg)
	return cfg
}

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
}

// Migrate upgrades the schema. It refuses, with kind Unavailable, a schema that is newer than this
// program or lacks constraints or indexes.
func (d *DB) Migrate(ctx context.Context, s Schema) error {
	const op = "pgdb.Migrate"
	version, err := d.version(ctx, s.Table)
	if err != nil {
		return err
	}
	if version > s.Version {
		return claviger.Errorf(op, claviger.Unavailable, "", "%s %s has schema version %d, this program knows "+
			"versions up to %d: a newer claviger has written it; run that version or a newer one, or restore the "+
			"dump that was taken before the upgrade",
			d.cfg.What, d.uri, version, s.Version)
	}
	if version == s.Version {
		return d.needParts(ctx, s)
	}
	if d.cfg.ReadOnly {
		return claviger.Errorf(op, claviger.Unavailable, "", "%s %s has schema version %d, this program reads "+
			"version %d: start a server once, which brings it up to date", d.cfg.What, d.uri, version, s.Version)
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
	if _, err := p.Up(ctx); err != nil {
		return d.Fail(op, "", fmt.Errorf("bringing the schema up to date: %w", err))
	}
	return d.needParts(ctx, s)
}

// needParts refuses a database that lacks parts of its schema. A restoration that was broken off
// leaves such a database, because constraints and indexes come last. Without them a change could
// fail halfway, or make twice what may exist once.
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
	most := missing[:min(len(missing), 5)]
	return claviger.Errorf("pgdb.Migrate", claviger.Unavailable, "", "%s %s lacks %d parts of its schema (%s%s), as "+
		"after a restoration that was broken off; its rows may lack, too. Restore the dump anew into an empty "+
		"database, with pg_restore --exit-on-error --single-transaction (docs/backup.md)",
		d.cfg.What, d.uri, len(missing), strings.Join(most, ", "),
		map[bool]string{true: " and others"}[len(most) < len(missing)])
}

// Parts lists the constraints ("constraint TABLE.NAME") and valid indexes ("index NAME") in the
// schema of a table, sorted by bytes.
func (d *DB) Parts(ctx context.Context, table string) (parts []string, err error) {
	// Only newer servers make constraints of NOT NULL (n).
	const list = `WITH ours AS (SELECT oid, relname FROM pg_class WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($1)))
		SELECT 'constraint ' || ours.relname || '.' || c.conname AS part FROM pg_constraint c JOIN ours ON ours.oid = c.conrelid
			WHERE c.contype IN ('p', 'u', 'f', 'c') AND c.convalidated
		UNION ALL SELECT 'index ' || ours.relname FROM pg_index i JOIN ours ON ours.oid = i.indexrelid WHERE i.indisvalid`
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

// Read runs f, and repeats it while the database cannot be reached and patience lasts. f must only
// read, or do what may be done twice.
func (d *DB) Read(ctx context.Context, op, key string, f func(context.Context) error) error {
	if err := d.Usable(op); err != nil {
		return err
	}
	return d.Fail(op, key, d.Retry(ctx, f))
}

// Retry repeats f until it succeeds, fails for a lasting reason, or patience ends. Patience begins
// when the database was first found unreachable, so later calls fail at once. The error is f's.
func (d *DB) Retry(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if err := d.away(); err != nil {
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
			// A caller with a short deadline says nothing about the database; a commit may wait for
			// a standby while the server answers everything else.
			if time.Since(begun) >= telling && !errors.Is(err, errInDoubt) {
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
	if err := d.oneSystem(op, key); err != nil {
		return err
	}
	return d.Fail(op, key, d.Retry(ctx, func(ctx context.Context) error {
		return d.transact(ctx, pgx.TxOptions{IsoLevel: level}, f)
	}))
}

// Try runs f in one transaction whose commit is only a probe: if the commit is not answered before
// ctx ends, its outcome is not asked for.
func (d *DB) Try(ctx context.Context, op string, f func(context.Context, pgx.Tx) error) error {
	if err := d.Usable(op); err != nil {
		return err
	}
	if err := d.oneSystem(op, ""); err != nil {
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
	var id string // NULL if the transaction has written nothing
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
var errInDoubt = errors.New("the connection was lost during a commit, and what became of it can't be found out")

// abortedError marks a commit that was lost and did not happen.
type abortedError struct{ cause error }

func (e *abortedError) Error() string { return e.cause.Error() }
func (e *abortedError) Unwrap() error { return e.cause }

// outcome finds out what became of a transaction whose commit was not answered. It is worth waiting
// for, even if the caller's context has ended.
//
// With synchronous replication, a commit that no client waits for any more may be on the primary
// alone. It counts here only after a later record has reached the standbys too.
func (d *DB) outcome(ctx context.Context, id string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.Patience)
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
			// The parameter is an id of the future if the server was killed before it wrote the id.
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
