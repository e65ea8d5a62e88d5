package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"claviger/trustee/server"
)

// The queries of each table. After selectDeposit comes content or NULL, and then FROM.
const (
	selectOrg     = "SELECT name, uuid, contacts, auth, created FROM org "
	selectClient  = "SELECT fingerprint, org, public_key, state, created FROM client "
	selectDeposit = "SELECT uuid, owner, org, label, access, expires, deleted, statement, signature, wrapped, "
)

// queryer is a connection or a transaction.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// eachRow calls f with each row. query is a constant of this package.
func eachRow(ctx context.Context, q queryer, query string, args []any, f func(*sql.Rows) error) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func scanOrg(rows *sql.Rows) (server.Org, error) {
	var o server.Org
	var contacts []byte
	var created int64
	err := rows.Scan(&o.Name, &o.UUID, &contacts, &o.Auth, &created)
	if err == nil {
		err = json.Unmarshal(contacts, &o.Contacts)
	}
	o.Created = time.UnixMilli(created)
	return o, err
}

func scanClient(rows *sql.Rows) (server.Client, error) {
	var c server.Client
	var created int64
	err := rows.Scan(&c.Fingerprint, &c.Org, &c.PublicKey, &c.State, &created)
	c.Created = time.UnixMilli(created)
	return c, err
}

func scanDeposit(rows *sql.Rows) (server.Row, error) {
	var r server.Row
	var access []byte
	var expires, deleted sql.NullInt64
	err := rows.Scan(&r.UUID, &r.Owner, &r.Org, &r.Label, &access, &expires, &deleted, &r.Sealed.Statement,
		&r.Sealed.Signature, &r.Wrapped, &r.Sealed.Content)
	if err == nil {
		err = json.Unmarshal(access, &r.Access)
	}
	if expires.Valid {
		r.Expires = time.UnixMilli(expires.Int64)
	}
	if deleted.Valid {
		at := time.UnixMilli(deleted.Int64).UTC()
		r.Sealed.Deleted = &at
	}
	return r, err
}

// insert adds a record.
func insert(ctx context.Context, tx *sql.Tx, r server.Record) error {
	switch {
	case r.Org != nil:
		return insertOrg(ctx, tx, r.Org)
	case r.Client != nil:
		c := r.Client
		_, err := tx.ExecContext(ctx, "INSERT INTO client (fingerprint, org, public_key, state, created) VALUES (?, "+
			"?, ?, ?, ?)", c.Fingerprint, c.Org, c.PublicKey, c.State, c.Created.UnixMilli())
		return err
	case r.Deposit != nil:
		return insertDeposit(ctx, tx, r.Deposit)
	case r.Once != nil:
		_, err := tx.ExecContext(ctx, "INSERT INTO once (digest, until) VALUES (?, ?)", r.Once.Digest,
			r.Once.Until.UnixMilli())
		return err
	}
	return errEmptyRecord
}

func insertOrg(ctx context.Context, tx *sql.Tx, o *server.Org) error {
	contacts, err := json.Marshal(append([]string{}, o.Contacts...))
	if err == nil {
		_, err = tx.ExecContext(ctx, "INSERT INTO org (name, uuid, contacts, auth, created) VALUES (?, ?, ?, ?, ?)",
			o.Name, o.UUID, string(contacts), o.Auth, o.Created.UnixMilli())
	}
	return err
}

func insertDeposit(ctx context.Context, tx *sql.Tx, r *server.Row) error {
	access, err := json.Marshal(append([]string{}, r.Access...))
	if err != nil {
		return err
	}
	var deleted any
	if r.Sealed.Deleted != nil {
		deleted = r.Sealed.Deleted.UnixMilli()
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO deposit (uuid, owner, org, label, access, expires, deleted, statement, "+
		"signature, content, wrapped) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		r.UUID, r.Owner, r.Org, r.Label, string(access), millis(r.Expires), deleted, r.Sealed.Statement,
		r.Sealed.Signature, r.Sealed.Content, r.Wrapped)
	return err
}

// millis returns the stored form of a time.
func millis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMilli()
}
