package postgres

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// The queries of each table. After selectDeposit comes content or NULL, and then FROM.
const (
	selectOrg     = `SELECT name, uuid, contacts, auth, created FROM trustee_org `
	selectClient  = `SELECT fingerprint, org, public_key, state, created FROM trustee_client `
	selectDeposit = `SELECT uuid, owner, org, label, access, expires, deleted, statement, signature, wrapped, `
	selectOnce    = `SELECT digest, until FROM trustee_once `

	insertOrg    = `INSERT INTO trustee_org (name, uuid, contacts, auth, created) VALUES ($1, $2, $3, $4, $5)`
	insertClient = `INSERT INTO trustee_client (fingerprint, org, public_key, state, created)
		VALUES ($1, $2, $3, $4, $5)`
	insertDeposit = `INSERT INTO trustee_deposit (uuid, owner, org, label, access, expires, deleted,
		statement, signature, content, wrapped) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`
	insertOnce = `INSERT INTO trustee_once (digest, until) VALUES ($1, $2)`
)

// queryer is a pool or a transaction.
type queryer interface {
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
}

func collect[T any](ctx context.Context, q queryer, query string, scan pgx.RowToFunc[T], args ...any) ([]T, error) {
	rows, _ := q.Query(ctx, query, args...) // CollectRows returns the error
	return pgx.CollectRows(rows, scan)
}

func scanOrg(row pgx.CollectableRow) (o server.Org, err error) {
	var created int64
	err = row.Scan(&o.Name, &o.UUID, &o.Contacts, &o.Auth, &created)
	o.Created = time.UnixMilli(created)
	return o, err
}

func scanClient(row pgx.CollectableRow) (c server.Client, err error) {
	var created int64
	err = row.Scan(&c.Fingerprint, &c.Org, &c.PublicKey, &c.State, &created)
	c.Created = time.UnixMilli(created)
	return c, err
}

func scanDeposit(row pgx.CollectableRow) (r server.Row, err error) {
	var expires, deleted *int64
	err = row.Scan(&r.UUID, &r.Owner, &r.Org, &r.Label, &r.Access, &expires, &deleted, &r.Sealed.Statement,
		&r.Sealed.Signature, &r.Wrapped, &r.Sealed.Content)
	if expires != nil {
		r.Expires = time.UnixMilli(*expires)
	}
	if deleted != nil {
		at := time.UnixMilli(*deleted).UTC()
		r.Sealed.Deleted = &at
	}
	return r, err
}

func scanOnce(row pgx.CollectableRow) (o server.Once, err error) {
	var until int64
	err = row.Scan(&o.Digest, &until)
	o.Until = time.UnixMilli(until)
	return o, err
}

func clientArgs(c *server.Client) []any {
	return []any{c.Fingerprint, c.Org, filled(c.PublicKey), string(c.State), c.Created.UnixMilli()}
}

// filled returns an empty slice for nil, which would be stored as NULL.
func filled(b []byte) []byte { return append([]byte{}, b...) }

func millis(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	ms := t.UnixMilli()
	return &ms
}

// statement returns the query that adds a record.
func statement(r *server.Record) (query string, args []any, err error) {
	switch {
	case r.Org != nil:
		o := r.Org
		return insertOrg, []any{o.Name, o.UUID, append([]string{}, o.Contacts...), o.Auth, o.Created.UnixMilli()}, nil
	case r.Client != nil:
		return insertClient, clientArgs(r.Client), nil
	case r.Deposit != nil:
		d := r.Deposit
		var deleted *int64
		if d.Sealed.Deleted != nil {
			deleted = millis(*d.Sealed.Deleted)
		}
		return insertDeposit, []any{d.UUID, d.Owner, d.Org, d.Label, append([]string{}, d.Access...), millis(d.Expires),
			deleted,
			filled(d.Sealed.Statement), filled(d.Sealed.Signature), filled(d.Sealed.Content), d.Wrapped}, nil
	case r.Once != nil:
		return insertOnce, []any{r.Once.Digest, r.Once.Until.UnixMilli()}, nil
	}
	return "", nil, errors.New("an empty record")
}

func insert(ctx context.Context, tx pgx.Tx, r server.Record) error {
	query, args, err := statement(&r)
	if err == nil {
		_, err = tx.Exec(ctx, query, args...)
	}
	return err
}

// list returns the rows of a query.
func list[T any](ctx context.Context, s *Store, op, key, query string, scan pgx.RowToFunc[T], args ...any) (found []T,
	err error) {
	err = s.db.Read(ctx, op, key, func(ctx context.Context) error {
		found, err = collect(ctx, s.db.Pool(), query, scan, args...)
		return err
	})
	return found, s.fail(op, key, err)
}

// first returns the first row of a query. Kind KeyNotFound if there is none.
func first[T any](ctx context.Context, s *Store, op, key, query string, scan pgx.RowToFunc[T], args ...any) (none T,
	err error) {
	found, err := list(ctx, s, op, key, query, scan, args...)
	if err == nil && len(found) == 0 {
		err = claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	if err != nil {
		return none, err
	}
	return found[0], nil
}

// Orgs returns all organizations.
func (s *Store) Orgs(ctx context.Context) ([]server.Org, error) {
	return list(ctx, s, "trustee/server/postgres.Orgs", "", selectOrg+`ORDER BY name`, scanOrg)
}

// Org returns an organization.
func (s *Store) Org(ctx context.Context, name string) (server.Org, error) {
	return first(ctx, s, "trustee/server/postgres.Org", name, selectOrg+`WHERE name = $1`, scanOrg, name)
}

// Client returns a client.
func (s *Store) Client(ctx context.Context, fingerprint string) (server.Client, error) {
	return first(ctx, s, "trustee/server/postgres.Client", fingerprint, selectClient+`WHERE fingerprint = $1`,
		scanClient, fingerprint)
}

// Clients returns the clients of an organization.
func (s *Store) Clients(ctx context.Context, org string) ([]server.Client, error) {
	return list(ctx, s, "trustee/server/postgres.Clients", org,
		selectClient+`WHERE org = $1 OR $1 = '' ORDER BY fingerprint`, scanClient, org)
}

// Get returns a live deposit.
func (s *Store) Get(ctx context.Context, uuid string) (server.Row, error) {
	return first(ctx, s, "trustee/server/postgres.Get", uuid,
		selectDeposit+`content FROM trustee_deposit WHERE uuid = $1 AND deleted IS NULL`, scanDeposit, uuid)
}

// Find returns a live deposit by its label.
func (s *Store) Find(ctx context.Context, owner, label string) (server.Row, error) {
	return first(ctx, s, "trustee/server/postgres.Find", label,
		selectDeposit+`content FROM trustee_deposit WHERE owner = $1 AND label = $2 AND deleted IS NULL`, scanDeposit,
		owner, label)
}

// List returns deposits without content.
func (s *Store) List(ctx context.Context, owner string, a trustee.ListArgs) ([]server.Row, error) {
	const op = "trustee/server/postgres.List"
	query := selectDeposit + `NULL::bytea FROM trustee_deposit
		WHERE owner = $1 AND label >= $2 AND starts_with(label, $2) AND (label, uuid) > ($3, $4) AND deleted IS NULL
		ORDER BY label, uuid LIMIT $5`
	if a.Deleted {
		query = strings.Replace(query, "deleted IS NULL", "deleted IS NOT NULL", 1)
	}
	label, uuid, _ := strings.Cut(a.After, "\x00")
	if strings.Contains(a.Prefix+uuid, "\x00") {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "a label must not contain a zero byte")
	}
	return list(ctx, s, op, a.Prefix, query, scanDeposit, owner, a.Prefix, label, uuid, a.Limit)
}

// Export calls f with all records that the store held at one moment.
func (s *Store) Export(ctx context.Context, f func(server.Record) error) error {
	const op = "trustee/server/postgres.Export"
	err := s.db.Once(ctx, op, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(ctx context.Context, tx pgx.Tx) error {
			for _, table := range []struct {
				query string
				scan  pgx.RowToFunc[server.Record]
			}{
				{selectOrg + `ORDER BY name`, func(row pgx.CollectableRow) (server.Record, error) {
					o, err := scanOrg(row)
					return server.Record{Org: &o}, err
				}},
				{selectClient + `ORDER BY fingerprint`, func(row pgx.CollectableRow) (server.Record, error) {
					c, err := scanClient(row)
					return server.Record{Client: &c}, err
				}},
				{selectDeposit + `content FROM trustee_deposit ORDER BY uuid`,
					func(row pgx.CollectableRow) (server.Record, error) {
						r, err := scanDeposit(row)
						return server.Record{Deposit: &r}, err
					}},
				{selectOnce + `ORDER BY digest`, func(row pgx.CollectableRow) (server.Record, error) {
					o, err := scanOnce(row)
					return server.Record{Once: &o}, err
				}},
			} {
				if err := export(ctx, tx, table.query, table.scan, f); err != nil {
					return err
				}
			}
			return nil
		})
	return s.fail(op, "", err)
}

// export calls f with each row as it arrives, so that the store need not fit into memory.
func export(ctx context.Context, tx pgx.Tx, query string, scan pgx.RowToFunc[server.Record],
	f func(server.Record) error) error {
	rows, _ := tx.Query(ctx, query) // rows.Err returns the error
	defer rows.Close()
	for rows.Next() {
		r, err := scan(rows)
		if err == nil {
			err = f(r)
		}
		if err != nil {
			return err
		}
	}
	return rows.Err()
}

// importBatch is how many records Import sends to the server at once.
const importBatch = 200

// Import replaces all records of the store.
func (s *Store) Import(ctx context.Context, next func() (server.Record, error)) error {
	const op = "trustee/server/postgres.Import"
	err := s.db.Once(ctx, op, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
		// A change that another process makes meanwhile would be lost.
		_, err := tx.Exec(ctx,
			`LOCK TABLE trustee_org, trustee_client, trustee_deposit, trustee_once IN EXCLUSIVE MODE`)
		if err != nil {
			return err
		}
		for _, table := range []string{"once", "deposit", "client", "org"} {
			if _, err := tx.Exec(ctx, `DELETE FROM trustee_`+table); err != nil {
				return err
			}
		}
		for n, more := 1, true; more; {
			var batch pgx.Batch
			for batch.Len() < importBatch {
				r, err := next()
				if errors.Is(err, io.EOF) {
					more = false
					break
				}
				if err != nil {
					return err
				}
				query, args, err := statement(&r)
				if err != nil {
					return claviger.Errorf(op, claviger.Invalid, "", "record %d cannot be imported: %w", n+batch.Len(),
						err)
				}
				batch.Queue(query, args...).Exec(func(pgconn.CommandTag) error { n++; return nil })
			}
			if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
				return claviger.Errorf(op, claviger.Invalid, "", "record %d cannot be imported: %w", n, err)
			}
		}
		return nil
	})
	return s.fail(op, "", err)
}
