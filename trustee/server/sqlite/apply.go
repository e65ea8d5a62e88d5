package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"claviger"
	"claviger/sqlitedb"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// apply makes a change and records the digest of its request. The result depends only on ch and the
// tables, so it is the same at a second store with the same records. apply changes only the field Client
// of ch, to the stored client.
func apply(ctx context.Context, tx *sql.Tx, op string, ch *replica.Change) error {
	if err := record(ctx, tx, op, ch.Once); err != nil {
		return err
	}
	exec := func(key, query string, args ...any) error {
		res, err := tx.ExecContext(ctx, query, args...)
		if err != nil {
			return err
		}
		return changed(op, key, res, 1)
	}
	each := func(query string, further ...any) error {
		for _, uuid := range ch.UUIDs {
			if err := exec(uuid, query, append([]any{uuid, ch.Owner}, further...)...); err != nil {
				return err
			}
		}
		return nil
	}
	switch ch.Op {
	case replica.OpAddOrg:
		if ch.Org != nil {
			return insertOrg(ctx, tx, ch.Org)
		}
	case replica.OpSetAuth:
		return exec(ch.Name, "UPDATE org SET auth = ? WHERE name = ?", ch.Auth, ch.Name)
	case replica.OpAddClient:
		if ch.Client != nil {
			return addClient(ctx, tx, op, ch.Client)
		}
	case replica.OpSetState:
		return exec(ch.Name, "UPDATE client SET state = ? WHERE fingerprint = ?", ch.State, ch.Name)
	case replica.OpPut:
		if ch.Deposit == nil {
			break
		}
		if ch.Replaces != "" {
			if err := exec(ch.Replaces, "DELETE FROM deposit WHERE uuid = ? AND owner = ? AND deleted IS NULL",
				ch.Replaces, ch.Deposit.Owner); err != nil {
				return err
			}
		}
		return insertDeposit(ctx, tx, ch.Deposit)
	case replica.OpDelete:
		return each("UPDATE deposit SET deleted = ?3 WHERE uuid = ?1 AND owner = ?2 AND deleted IS NULL",
			ch.At.UnixMilli())
	case replica.OpUndelete:
		return each("UPDATE deposit SET deleted = NULL WHERE uuid = ?1 AND owner = ?2 AND deleted IS NOT NULL")
	case replica.OpPurge:
		return each("DELETE FROM deposit WHERE uuid = ?1 AND owner = ?2 AND deleted IS NOT NULL")
	case replica.OpForget:
		_, err := tx.ExecContext(ctx, "DELETE FROM once WHERE until < ?", ch.At.UnixMilli())
		if err == nil {
			_, err = tx.ExecContext(ctx, "DELETE FROM deposit WHERE expires < ?", ch.At.UnixMilli())
		}
		return err
	}
	return claviger.Errorf(op, claviger.Internal, "", "a change %q is unknown, or lacks its arguments", ch.Op)
}

// record records the digest of a request, and refuses a request whose digest is recorded.
func record(ctx context.Context, tx *sql.Tx, op string, once server.Once) error {
	if once.Digest == "" {
		return nil
	}
	res, err := tx.ExecContext(ctx, "INSERT INTO once (digest, until) VALUES (?, ?) ON CONFLICT DO NOTHING",
		once.Digest, once.Until.UnixMilli())
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		err = claviger.E(op, claviger.Invalid, "", trustee.ErrReplay)
	}
	return err
}

// unfit reports whether an error means that a change or a record does not fit the records of the store. Any
// other error means that the store failed, so the same change may succeed later.
func unfit(err error) bool {
	var known *claviger.Error
	return errors.As(err, &known) || errors.Is(err, errEmptyRecord) || sqlitedb.Constraint(err)
}

// addClient adds a client, and sets c to the stored client.
func addClient(ctx context.Context, tx *sql.Tx, op string, c *server.Client) error {
	if c.State == server.Pending {
		var waiting int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM client WHERE org = ? AND state = ? AND fingerprint "+
			"<> ?", c.Org, server.Pending, c.Fingerprint).Scan(&waiting); err != nil {
			return err
		}
		if waiting >= server.MaxPending {
			return claviger.Errorf(op, claviger.Denied, c.Fingerprint, "%d clients of organization %s already wait "+
				"for an operator: claviger orgtool clients shows them", waiting, c.Org)
		}
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO client (fingerprint, org, public_key, state, created) VALUES (?, ?, "+
		"?, ?, ?) ON CONFLICT DO NOTHING",
		c.Fingerprint, c.Org, c.PublicKey, c.State, c.Created.UnixMilli())
	if sqlitedb.ForeignKey(err) {
		return claviger.E(op, claviger.KeyNotFound, c.Org, nil)
	}
	if err != nil {
		return err
	}
	var created int64
	var org string
	if err := tx.QueryRowContext(ctx, "SELECT org, state, created FROM client WHERE fingerprint = ?",
		c.Fingerprint).Scan(&org, &c.State, &created); err != nil {
		return err
	}
	if org != c.Org {
		return claviger.E(op, claviger.KeyExists, c.Fingerprint, nil)
	}
	c.Created = time.UnixMilli(created)
	return nil
}
