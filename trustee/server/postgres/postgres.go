// Package postgres keeps a Key Trustee Server's organizations, clients and deposits in a PostgreSQL
// database, version 13 or newer. Several servers of one identity may use one database.
//
// PostgreSQL's streaming replication makes the second copy. A server whose database is a standby answers
// reads and refuses changes, like the passive one of two servers.
package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/pgdb"
	"claviger/trustee"
	"claviger/trustee/server"
)

//go:embed migrations/*.sql
var migrations embed.FS

// parts are the schema's constraints and indexes.
//
//go:embed parts.txt
var parts string

const (
	// schemaVersion is the number of the newest file in migrations.
	schemaVersion = 1
	// schemaLock is the advisory lock for upgrades of the schema: "CLTR".
	schemaLock = 0x434c5452
)

// Config is the configuration of a store.
type Config struct {
	// URI is the URI of the database in the form of libpq, without a password. A single host may be a
	// standby. If there are several hosts, the primary is used, unless target_session_attrs says
	// otherwise.
	URI string
	// Where says where the URI is configured, for errors.
	Where string
	// Identity is the fingerprint of the server. A database belongs to one identity.
	Identity string
	// Claim gives the identity a database that belongs to no identity. If it is false, such a database
	// is an error of kind Invalid.
	Claim bool
	// ReadOnly is for a caller that only reads: no session can write, a standby is accepted as server, and the schema
	// is not upgraded.
	ReadOnly bool
	Log      *slog.Logger // nil discards
	// RetryTimeout is how long a call tries to reach the database; 0 is 5 s.
	RetryTimeout time.Duration
}

// Store is a store in a PostgreSQL database.
type Store struct {
	db       *pgdb.DB
	failures atomic.Int64
}

var _ server.Store = (*Store)(nil)

// Open opens the store and upgrades its schema, unless Config.ReadOnly is set. Kind Invalid if the database belongs to
// another identity.
func Open(ctx context.Context, c Config) (*Store, error) {
	const op = "trustee/server/postgres.Open"
	db, err := pgdb.Open(ctx, pgdb.Config{
		URI: c.URI, What: "trustee's store", Where: c.Where, Log: c.Log, RetryTimeout: c.RetryTimeout, Standby: true,
		ReadOnly:       c.ReadOnly,
		UnknownOutcome: "the client repeats the request, and learns the outcome",
	})
	if err != nil {
		return nil, err
	}
	s := &Store{db: db}
	if err := s.prepare(ctx, c); err != nil {
		err = s.fail(op, "", err) // before Close, after which each error says that the store is closed
		db.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) prepare(ctx context.Context, c Config) error {
	const op = "trustee/server/postgres.Open"
	err := s.db.Migrate(ctx, pgdb.Schema{Migrations: migrations, Version: schemaVersion, Table: "trustee_db_version",
		Parts: parts, Lock: s.lockSchema})
	if err != nil {
		return err
	}
	var owner string
	err = s.db.Read(ctx, op, "", func(ctx context.Context) error {
		return s.db.Pool().QueryRow(ctx, `SELECT fingerprint FROM trustee_identity`).Scan(&owner)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		if !c.Claim {
			return claviger.Errorf(op, claviger.Invalid, "", "%s: the database %s is not a Key Trustee Server's yet: "+
				"claviger trustee init --store URI gives it to this one", c.Where, s.db.URI())
		}
		err = s.db.Update(ctx, op, "", pgx.ReadCommitted, func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO trustee_identity VALUES (true, $1) ON CONFLICT DO NOTHING`,
				c.Identity); err != nil {
				return err
			}
			return tx.QueryRow(ctx, `SELECT fingerprint FROM trustee_identity`).Scan(&owner)
		})
	}
	if err == nil && owner != c.Identity {
		err = claviger.Errorf(op, claviger.Invalid, "", "%s: the database %s belongs to the Key Trustee Server %s, "+
			"but this one is %s: name a database of its own, or copy the folder of the other", c.Where, s.db.URI(),
			owner, c.Identity)
	}
	return err
}

// lockSchema takes a lock that belongs to a session, and ends with the session.
func (s *Store) lockSchema(ctx context.Context) (func(), error) {
	conn, err := s.db.Pool().Acquire(ctx)
	if err != nil {
		return nil, err
	}
	own := conn.Hijack()
	unlock := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pgdb.ConnectTimeout)
		defer cancel()
		_ = own.Close(ctx) // if the session is lost, so is its lock
	}
	if _, err := own.Exec(ctx, `SELECT pg_advisory_lock($1)`, schemaLock); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// URI returns the URI of the database, without secrets.
func (s *Store) URI() string { return s.db.URI() }

// Close ends all connections.
func (s *Store) Close() error {
	s.db.Close()
	return nil
}

// Check makes one round trip.
func (s *Store) Check(ctx context.Context) error {
	_, err := s.Role(ctx)
	return err
}

// Role returns RolePassive for a standby, and RoleActive for a primary.
func (s *Store) Role(ctx context.Context) (server.Role, error) {
	const op = "trustee/server/postgres.Role"
	role := server.RoleActive
	standby, err := s.db.Standby(ctx, op)
	if standby {
		role = server.RolePassive
	}
	return role, s.fail(op, "", err)
}

// Release empties the database. It then belongs to no identity.
func (s *Store) Release(ctx context.Context) error {
	const op = "trustee/server/postgres.Release"
	return s.change(ctx, op, "", server.Once{}, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `TRUNCATE trustee_org, trustee_client, trustee_deposit, trustee_once, trustee_identity`)
		return err
	})
}

// promoteTimeout is how long a standby may take to become a primary.
const promoteTimeout = 60 * time.Second

// Promote makes the database, a standby, a primary. The role needs EXECUTE on the function
// pg_promote.
func (s *Store) Promote(ctx context.Context) error {
	const op = "trustee/server/postgres.Promote"
	return s.db.Once(ctx, op, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(ctx context.Context, tx pgx.Tx) error {
		var done bool
		err := tx.QueryRow(ctx, `SELECT pg_promote(true, $1)`, int(promoteTimeout.Seconds())).Scan(&done)
		switch {
		case pgdb.Code(err) == pgdb.Rights:
			return claviger.Errorf(op, claviger.Denied, "", "the role may not promote %s (%w): on the primary, in "+
				"this database, GRANT EXECUTE ON FUNCTION pg_promote TO the role; or run pg_ctl promote on the "+
				"standby's host", s.db.URI(), err)
		case err == nil && !done:
			return claviger.Errorf(op, claviger.Unavailable, "", "%s has not become a primary within %v: see its log",
				s.db.URI(), promoteTimeout)
		}
		return err
	})
}

// Deposits counts the live deposits, and the deleted deposits that are not purged.
func (s *Store) Deposits(ctx context.Context) (live, deleted int64, err error) {
	const op = "trustee/server/postgres.Deposits"
	err = s.db.Read(ctx, op, "", func(ctx context.Context) error {
		return s.db.Pool().QueryRow(ctx,
			`SELECT count(*) FILTER (WHERE deleted IS NULL), count(deleted) FROM trustee_deposit`).Scan(&live, &deleted)
	})
	return live, deleted, s.fail(op, "", err)
}

// Wrapped calls f for each live deposit that a Keeper has wrapped, with the first bytes of its content.
func (s *Store) Wrapped(ctx context.Context, bytes int, f func(uuid string, head []byte)) error {
	const op = "trustee/server/postgres.Wrapped"
	err := s.db.Read(ctx, op, "", func(ctx context.Context) error {
		rows, _ := s.db.Pool().Query(ctx, // ForEachRow returns the error
			`SELECT uuid, substring(content FROM 1 FOR $1) FROM trustee_deposit WHERE wrapped AND deleted IS NULL`,
			bytes)
		var uuid string
		var head []byte
		_, err := pgx.ForEachRow(rows, []any{&uuid, &head}, func() error {
			f(uuid, head)
			return nil
		})
		return err
	})
	return s.fail(op, "", err)
}

// CheckWrites commits a message into PostgreSQL's write-ahead log. That changes no table, but needs a
// writable primary with room on its disk.
func (s *Store) CheckWrites(ctx context.Context) error {
	if role, err := s.Role(ctx); err != nil || role == server.RolePassive {
		return err
	}
	return s.change(ctx, "trustee/server/postgres.CheckWrites", "", server.Once{},
		func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `SELECT pg_logical_emit_message(true, 'claviger', $1)`,
				strings.Repeat("0", probeRoom))
			return err
		})
}

// probeRoom is how many bytes CheckWrites writes.
const probeRoom = 8 << 10

// Failures returns how often the store failed. A refusal is not a failure.
func (s *Store) Failures() int64 { return s.failures.Load() }

// fail turns an error into a *claviger.Error, and counts it if the store is at fault.
func (s *Store) fail(op, key string, err error) error {
	if err == nil {
		return nil
	}
	if pgdb.Code(err) == pgdb.ReadOnly { // the database is a standby
		return server.RolePassive.MayChange(op, key)
	}
	err = s.db.Fail(op, key, err)
	if kind := claviger.KindOf(err); (kind == claviger.Unavailable || kind == claviger.Internal) &&
		!errors.Is(err, context.Canceled) {
		s.failures.Add(1)
	}
	return err
}

// change runs f in one transaction. The end of ctx stops it only before the transaction begins: a client
// that disconnects does not stop a running change.
func (s *Store) change(ctx context.Context, op, key string, once server.Once,
	f func(ctx context.Context, tx pgx.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return s.fail(op, key, err)
	}
	err := s.db.Update(context.WithoutCancel(ctx), op, key, pgx.ReadCommitted,
		func(ctx context.Context, tx pgx.Tx) error {
			if once.Digest != "" {
				tag, err := tx.Exec(ctx,
					`INSERT INTO trustee_once (digest, until) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
					once.Digest, once.Until.UnixMilli())
				if err != nil {
					return err
				}
				if tag.RowsAffected() == 0 {
					return claviger.E(op, claviger.Invalid, "", trustee.ErrReplay)
				}
			}
			err := f(ctx, tx)
			if pgdb.Code(err) == pgdb.Unique {
				return claviger.E(op, claviger.KeyExists, key, nil)
			}
			return err
		})
	return s.fail(op, key, err)
}

// execOne runs a statement that must change exactly one row.
func execOne(ctx context.Context, tx pgx.Tx, op, key, query string, args ...any) error {
	tag, err := tx.Exec(ctx, query, args...)
	if err == nil && tag.RowsAffected() != 1 {
		err = claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	return err
}

// AddOrg adds an organization.
func (s *Store) AddOrg(ctx context.Context, o server.Org) error {
	return s.change(ctx, "trustee/server/postgres.AddOrg", o.Name, server.Once{},
		func(ctx context.Context, tx pgx.Tx) error {
			return insert(ctx, tx, server.Record{Org: &o})
		})
}

// SetAuth sets the secret of an organization.
func (s *Store) SetAuth(ctx context.Context, org, auth string) error {
	const op = "trustee/server/postgres.SetAuth"
	return s.change(ctx, op, org, server.Once{}, func(ctx context.Context, tx pgx.Tx) error {
		return execOne(ctx, tx, op, org, `UPDATE trustee_org SET auth = $2 WHERE name = $1`, org, auth)
	})
}

// AddClient adds a client.
func (s *Store) AddClient(ctx context.Context, c server.Client, once server.Once) (server.Client, error) {
	const op = "trustee/server/postgres.AddClient"
	err := s.change(ctx, op, c.Fingerprint, once, func(ctx context.Context, tx pgx.Tx) error {
		if c.State == server.Pending {
			// Transactions that count pending clients wait for each other.
			if err := execOne(ctx, tx, op, c.Org, `SELECT FROM trustee_org WHERE name = $1 FOR NO KEY UPDATE`,
				c.Org); err != nil {
				return err
			}
			var waiting int
			err := tx.QueryRow(ctx, `SELECT count(*) FROM trustee_client
				WHERE org = $1 AND state = 'pending' AND fingerprint <> $2`, c.Org, c.Fingerprint).Scan(&waiting)
			if err != nil {
				return err
			}
			if waiting >= server.MaxPending {
				return claviger.Errorf(op, claviger.Denied, c.Fingerprint, "%d clients of organization %s already "+
					"wait for an operator: claviger orgtool clients shows them", waiting, c.Org)
			}
		}
		_, err := tx.Exec(ctx, insertClient+` ON CONFLICT DO NOTHING`, clientArgs(&c)...)
		if pgdb.Code(err) == pgdb.ForeignKey {
			return claviger.E(op, claviger.KeyNotFound, c.Org, nil)
		}
		if err != nil {
			return err
		}
		stored, err := collect(ctx, tx, selectClient+`WHERE fingerprint = $1`, scanClient, c.Fingerprint)
		if err != nil {
			return err
		}
		if len(stored) == 0 || stored[0].Org != c.Org {
			return claviger.E(op, claviger.KeyExists, c.Fingerprint, nil)
		}
		c.State, c.Created = stored[0].State, stored[0].Created
		return nil
	})
	if err != nil {
		return server.Client{}, err
	}
	return c, nil
}

// SetState sets the state of a client.
func (s *Store) SetState(ctx context.Context, fingerprint string, state server.State) error {
	const op = "trustee/server/postgres.SetState"
	return s.change(ctx, op, fingerprint, server.Once{}, func(ctx context.Context, tx pgx.Tx) error {
		return execOne(ctx, tx, op, fingerprint, `UPDATE trustee_client SET state = $2 WHERE fingerprint = $1`,
			fingerprint, state)
	})
}

// Put adds a deposit.
func (s *Store) Put(ctx context.Context, r server.Row, replaces string, once server.Once) error {
	const op = "trustee/server/postgres.Put"
	return s.change(ctx, op, r.Label, once, func(ctx context.Context, tx pgx.Tx) error {
		if replaces != "" {
			if err := execOne(ctx, tx, op, replaces,
				`DELETE FROM trustee_deposit WHERE uuid = $1 AND owner = $2 AND deleted IS NULL`, replaces,
				r.Owner); err != nil {
				return err
			}
		}
		return insert(ctx, tx, server.Record{Deposit: &r})
	})
}

// each changes all named deposits of the owner, or none. All callers change them in the same order, so
// that two transactions never wait for each other. They would wait for deadlock_timeout.
func (s *Store) each(ctx context.Context, op, owner string, uuids []string, once server.Once, query string,
	further ...any) error {
	uuids = slices.Sorted(slices.Values(uuids))
	return s.change(ctx, op, strings.Join(uuids, " "), once, func(ctx context.Context, tx pgx.Tx) error {
		for _, uuid := range uuids {
			if err := execOne(ctx, tx, op, uuid, query, append([]any{uuid, owner}, further...)...); err != nil {
				return err
			}
		}
		return nil
	})
}

// Delete makes deposits unreadable.
func (s *Store) Delete(ctx context.Context, owner string, uuids []string, at time.Time, once server.Once) error {
	return s.each(ctx, "trustee/server/postgres.Delete", owner, uuids, once,
		`UPDATE trustee_deposit SET deleted = $3 WHERE uuid = $1 AND owner = $2 AND deleted IS NULL`, at.UnixMilli())
}

// Undelete makes deleted deposits live again.
func (s *Store) Undelete(ctx context.Context, owner string, uuids []string, once server.Once) error {
	return s.each(ctx, "trustee/server/postgres.Undelete", owner, uuids, once,
		`UPDATE trustee_deposit SET deleted = NULL WHERE uuid = $1 AND owner = $2 AND deleted IS NOT NULL`)
}

// Purge destroys deleted deposits.
func (s *Store) Purge(ctx context.Context, owner string, uuids []string, once server.Once) error {
	return s.each(ctx, "trustee/server/postgres.Purge", owner, uuids, once,
		`DELETE FROM trustee_deposit WHERE uuid = $1 AND owner = $2 AND deleted IS NOT NULL`)
}

// Forget removes expired records.
func (s *Store) Forget(ctx context.Context, now time.Time) error {
	return s.change(ctx, "trustee/server/postgres.Forget", "", server.Once{},
		func(ctx context.Context, tx pgx.Tx) error {
			for _, query := range []string{`DELETE FROM trustee_once WHERE until < $1`,
				`DELETE FROM trustee_deposit WHERE expires < $1`} {
				if _, err := tx.Exec(ctx, query, now.UnixMilli()); err != nil {
					return fmt.Errorf("forget: %w", err)
				}
			}
			return nil
		})
}
