// Package sqlite keeps a Key Trustee Server's organizations, clients and deposits in one SQLite
// file, opened by package sqlitedb. A method's result survives a power cut.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/sqlitedb"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// schemaVersion is the number of the newest file in migrations.
	schemaVersion = 3
	// applicationID marks the file as ours in SQLite's header: "CLTR".
	applicationID = 0x434c5452
	// busyTimeout is how long a write waits for another process's write. It is several times longer
	// than a change of a server waits for its peer, so that orgtool can write beside a busy server.
	busyTimeout = 15 * time.Second
)

// config is the configuration of the database. A running change finishes even if its context ends,
// because the peer may already have the change.
var config = sqlitedb.Config{
	What: "the trustee's store", Readers: 4, Busy: busyTimeout, Finish: true,
	Damaged: "restore it from a backup, or make it again from the other trustee",
	Schema: sqlitedb.Schema{
		ApplicationID: applicationID, Migrations: migrations, Version: schemaVersion,
		Back: "put the copy that was made before the upgrade (the newest file that is named after the store and " +
			".schema-NUMBER) in its place while no server runs",
		Before: sqlitedb.KeepCopy(sqlitedb.Copies{}),
	},
}

// Store is a store in one SQLite file.
type Store struct {
	db    *sqlitedb.DB
	guard atomic.Pointer[replica.Guard]
	place place
	probe sync.Mutex // one CheckWrites at a time: they write the same file

	failures atomic.Int64
}

var _ server.Store = (*Store)(nil)

// Open opens the store in the file path. With make, it makes the file with mode 0600 if it does not
// exist. Kind Invalid if there is no file, or the file of another program.
func Open(ctx context.Context, path string, make bool) (*Store, error) {
	const op = "trustee/server/sqlite.Open"
	if make {
		if err := sqlitedb.Create(ctx, path, config); err != nil {
			return nil, err
		}
	} else if _, err := os.Stat(path); err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "the trustee's store: %w. If it has held deposits, "+
			"put the file back, restore a backup (claviger trustee restore), or start this host as the passive one of "+
			"two; `claviger trustee init` makes an empty one", err)
	}
	return open(ctx, path, config)
}

func open(ctx context.Context, path string, c sqlitedb.Config) (*Store, error) {
	const op = "trustee/server/sqlite.Open"
	db, err := sqlitedb.Open(ctx, path, c)
	if err != nil {
		return nil, err
	}
	s := &Store{db: db}
	if s.place.opened, err = os.Stat(db.Path()); err != nil {
		return nil, errors.Join(s.fail(op, "", err), s.Close())
	}
	return s, nil
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Check reads one row, and checks that the path still names the opened file.
func (s *Store) Check(ctx context.Context) error {
	if s.inPlace("trustee/server/sqlite.Check", "") != nil {
		s.rescue(ctx)
		return s.inPlace("trustee/server/sqlite.Check", "")
	}
	var n int
	if err := s.db.Reader.QueryRowContext(ctx, "SELECT 1").Scan(&n); err != nil {
		return s.fail("trustee/server/sqlite.Check", "", err)
	}
	return nil
}

// fail turns an error of SQLite into a *claviger.Error, and counts it if the store is at fault.
func (s *Store) fail(op, key string, err error) error {
	var known *claviger.Error
	switch {
	case errors.As(err, &known):
		return err
	case sqlitedb.NotUnique(err):
		return claviger.E(op, claviger.KeyExists, key, nil)
	case !errors.Is(err, context.Canceled): // a cancelled call is not a fault of the store
		s.failures.Add(1)
	}
	if sqlitedb.Reported(err) {
		return s.db.Fail(op, key, err)
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "the trustee's store %s: %w", s.db.Path(), err)
}

// change runs f in one transaction. The end of ctx stops it only before the transaction begins.
func (s *Store) change(ctx context.Context, op, key string, f func(ctx context.Context, tx *sql.Tx) error) error {
	if s.inPlace(op, key) != nil {
		s.rescue(ctx)
		return s.inPlace(op, key)
	}
	err := s.db.Update(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := f(ctx, tx); err != nil {
			return err
		}
		return s.inPlace(op, key)
	})
	if err != nil {
		return s.fail(op, key, err)
	}
	return nil
}

// changed returns an error of kind KeyNotFound unless exactly n rows were changed.
func changed(op, key string, res sql.Result, n int) error {
	if got, err := res.RowsAffected(); err != nil {
		return err
	} else if int(got) != n {
		return claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	return nil
}

// AddOrg adds an organization.
func (s *Store) AddOrg(ctx context.Context, o server.Org) error {
	const op = "trustee/server/sqlite.AddOrg"
	return s.mutate(ctx, op, o.Name, &replica.Change{Op: replica.OpAddOrg, Org: &o})
}

// Orgs returns all organizations.
func (s *Store) Orgs(ctx context.Context) ([]server.Org, error) {
	return s.orgs(ctx, "trustee/server/sqlite.Orgs", "", "")
}

// Org returns an organization.
func (s *Store) Org(ctx context.Context, name string) (server.Org, error) {
	const op = "trustee/server/sqlite.Org"
	list, err := s.orgs(ctx, op, name, "WHERE name = ?", name)
	if err != nil {
		return server.Org{}, err
	}
	if len(list) == 0 {
		return server.Org{}, claviger.E(op, claviger.KeyNotFound, name, nil)
	}
	return list[0], nil
}

func (s *Store) orgs(ctx context.Context, op, key, where string, args ...any) ([]server.Org, error) {
	var list []server.Org
	err := eachRow(ctx, s.db.Reader, selectOrg+where+" ORDER BY name", args, func(rows *sql.Rows) error {
		o, err := scanOrg(rows)
		list = append(list, o)
		return err
	})
	if err != nil {
		return nil, s.fail(op, key, err)
	}
	return list, nil
}

// SetAuth sets the secret of an organization.
func (s *Store) SetAuth(ctx context.Context, org, auth string) error {
	return s.mutate(ctx, "trustee/server/sqlite.SetAuth", org, &replica.Change{Op: replica.OpSetAuth, Name: org,
		Auth: auth})
}

// AddClient adds a client.
func (s *Store) AddClient(ctx context.Context, c server.Client, once server.Once) (server.Client, error) {
	if err := s.mutate(ctx, "trustee/server/sqlite.AddClient", c.Fingerprint,
		&replica.Change{Op: replica.OpAddClient, Client: &c, Once: once}); err != nil {
		return server.Client{}, err
	}
	return c, nil
}

// Client returns a client.
func (s *Store) Client(ctx context.Context, fingerprint string) (server.Client, error) {
	const op = "trustee/server/sqlite.Client"
	list, err := s.clients(ctx, op, fingerprint, "WHERE fingerprint = ?", fingerprint)
	if err != nil {
		return server.Client{}, err
	}
	if len(list) == 0 {
		return server.Client{}, claviger.E(op, claviger.KeyNotFound, fingerprint, nil)
	}
	return list[0], nil
}

// Clients returns the clients of an organization.
func (s *Store) Clients(ctx context.Context, org string) ([]server.Client, error) {
	return s.clients(ctx, "trustee/server/sqlite.Clients", org, "WHERE org = ?1 OR ?1 = ''", org)
}

func (s *Store) clients(ctx context.Context, op, key, where string, args ...any) ([]server.Client, error) {
	var list []server.Client
	err := eachRow(ctx, s.db.Reader, selectClient+where+" ORDER BY fingerprint", args, func(rows *sql.Rows) error {
		c, err := scanClient(rows)
		list = append(list, c)
		return err
	})
	if err != nil {
		return nil, s.fail(op, key, err)
	}
	return list, nil
}

// SetState sets the state of a client.
func (s *Store) SetState(ctx context.Context, fingerprint string, state server.State) error {
	return s.mutate(ctx, "trustee/server/sqlite.SetState", fingerprint,
		&replica.Change{Op: replica.OpSetState, Name: fingerprint, State: state})
}

// Put adds a deposit.
func (s *Store) Put(ctx context.Context, r server.Row, replaces string, once server.Once) error {
	return s.mutate(ctx, "trustee/server/sqlite.Put", r.Label, &replica.Change{Op: replica.OpPut, Deposit: &r,
		Replaces: replaces, Once: once})
}

// Get returns a live deposit.
func (s *Store) Get(ctx context.Context, uuid string) (server.Row, error) {
	return s.row(ctx, "trustee/server/sqlite.Get", uuid, "uuid = ? AND deleted IS NULL", uuid)
}

// Find returns a live deposit by its label.
func (s *Store) Find(ctx context.Context, owner, label string) (server.Row, error) {
	return s.row(ctx, "trustee/server/sqlite.Find", label, "owner = ? AND label = ? AND deleted IS NULL", owner, label)
}

func (s *Store) row(ctx context.Context, op, key, where string, args ...any) (server.Row, error) {
	list, err := s.rows(ctx, op, key, "content", "WHERE "+where, args...)
	if err != nil {
		return server.Row{}, err
	}
	if len(list) == 0 {
		return server.Row{}, claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	return list[0], nil
}

// List returns deposits without content.
func (s *Store) List(ctx context.Context, owner string, a trustee.ListArgs) ([]server.Row, error) {
	where := "WHERE owner = ? AND label || char(0) || uuid > ? AND substr(label, 1, ?) = ? AND deleted IS NULL"
	if a.Deleted {
		where = "WHERE owner = ? AND label || char(0) || uuid > ? AND substr(label, 1, ?) = ? AND deleted IS NOT NULL"
	}
	return s.rows(ctx, "trustee/server/sqlite.List", a.Prefix, "NULL", where+" ORDER BY label, uuid LIMIT ?", owner,
		a.After, len([]rune(a.Prefix)), a.Prefix, a.Limit)
}

func (s *Store) rows(ctx context.Context, op, key, content, rest string, args ...any) ([]server.Row, error) {
	var list []server.Row
	err := eachRow(ctx, s.db.Reader, selectDeposit+content+" FROM deposit "+rest, args, func(rows *sql.Rows) error {
		r, err := scanDeposit(rows)
		list = append(list, r)
		return err
	})
	if err != nil {
		return nil, s.fail(op, key, err)
	}
	return list, nil
}

// Delete makes deposits unreadable.
func (s *Store) Delete(ctx context.Context, owner string, uuids []string, at time.Time, once server.Once) error {
	return s.mutate(ctx, "trustee/server/sqlite.Delete", strings.Join(uuids, " "),
		&replica.Change{Op: replica.OpDelete, Owner: owner, UUIDs: uuids, At: at, Once: once})
}

// Undelete makes deleted deposits live again.
func (s *Store) Undelete(ctx context.Context, owner string, uuids []string, once server.Once) error {
	return s.mutate(ctx, "trustee/server/sqlite.Undelete", strings.Join(uuids, " "),
		&replica.Change{Op: replica.OpUndelete, Owner: owner, UUIDs: uuids, Once: once})
}

// Purge destroys deleted deposits.
func (s *Store) Purge(ctx context.Context, owner string, uuids []string, once server.Once) error {
	return s.mutate(ctx, "trustee/server/sqlite.Purge", strings.Join(uuids, " "),
		&replica.Change{Op: replica.OpPurge, Owner: owner, UUIDs: uuids, Once: once})
}

// Forget removes expired records.
func (s *Store) Forget(ctx context.Context, now time.Time) error {
	return s.mutate(ctx, "trustee/server/sqlite.Forget", "", &replica.Change{Op: replica.OpForget, At: now})
}
