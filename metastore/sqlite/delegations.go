package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"time"

	"claviger"
	"claviger/metastore"
)

// A store of one node keeps tokens so that they survive a restart of the server.
var _ metastore.Delegations = (*Store)(nil)

// NextSequences reserves n sequence numbers.
func (s *Store) NextSequences(ctx context.Context, n int32) (first int32, err error) {
	return s.next(ctx, "metastore/sqlite.NextSequences", "token", n)
}

// NextKeyID returns an id that no master key has had.
func (s *Store) NextKeyID(ctx context.Context) (id int32, err error) {
	return s.next(ctx, "metastore/sqlite.NextKeyID", "master key", 1)
}

// next takes n numbers from a counter, and returns the first.
func (s *Store) next(ctx context.Context, op, counter string, n int32) (first int32, err error) {
	if n <= 0 {
		return 0, claviger.Errorf(op, claviger.Invalid, "", "%d numbers cannot be reserved: it must be at least 1", n)
	}
	err = s.update(ctx, op, "", func(tx *sql.Tx) error {
		var next int64
		if err := tx.QueryRowContext(ctx, `SELECT next FROM counter WHERE name = ?`, counter).Scan(&next); err != nil {
			return err
		}
		if next > math.MaxInt32-int64(n)+1 {
			return claviger.Errorf(op, claviger.Internal, "", "metastore %s: the numbers of %ss are used up at %d",
				s.db.Path(), counter, next)
		}
		first = int32(next)
		_, err := tx.ExecContext(ctx, `UPDATE counter SET next = next + ? WHERE name = ?`, n, counter)
		return err
	})
	return first, err
}

// PutMasterKey writes or replaces a key.
func (s *Store) PutMasterKey(ctx context.Context, k metastore.MasterKey) error {
	_, err := s.exec(ctx, "metastore/sqlite.PutMasterKey", `
		INSERT INTO master_key (id, expires, key) VALUES (?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET expires = excluded.expires,
			key = excluded.key`, k.ID, millis(k.Expires), []byte(k.Key))
	return err
}

// MasterKeys returns all keys, by ID.
func (s *Store) MasterKeys(ctx context.Context) (all []metastore.MasterKey, err error) {
	const op = "metastore/sqlite.MasterKeys"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	rows, err := s.db.Reader.QueryContext(ctx, `SELECT id, expires, key FROM master_key ORDER BY id`)
	if err != nil {
		return nil, s.fail(op, "", err)
	}
	defer rows.Close()
	for rows.Next() {
		var k metastore.MasterKey
		var expires int64
		if err := rows.Scan(&k.ID, &expires, (*[]byte)(&k.Key)); err != nil {
			return nil, s.fail(op, "", err)
		}
		k.Expires = fromMillis(expires)
		all = append(all, k)
	}
	return all, s.fail(op, "", rows.Err())
}

// RemoveMasterKey removes a key.
func (s *Store) RemoveMasterKey(ctx context.Context, id int32) error {
	_, err := s.exec(ctx, "metastore/sqlite.RemoveMasterKey", `DELETE FROM master_key WHERE id = ?`, id)
	return err
}

// PutDelegation writes or replaces a token.
func (s *Store) PutDelegation(ctx context.Context, d metastore.Delegation) error {
	_, err := s.exec(ctx, "metastore/sqlite.PutDelegation", `
		INSERT INTO delegation (sequence, identifier, password, renew) VALUES (?, ?, ?, ?)
		ON CONFLICT (sequence) DO UPDATE
			SET identifier = excluded.identifier, password = excluded.password, renew = excluded.renew`,
		d.Sequence, d.Identifier, []byte(d.Password), millis(d.Renew))
	return err
}

// RenewDelegation changes Renew of a token that still exists.
func (s *Store) RenewDelegation(ctx context.Context, sequence int32, renew time.Time) (ok bool, err error) {
	n, err := s.exec(ctx, "metastore/sqlite.RenewDelegation", `UPDATE delegation SET renew = ? WHERE sequence = ?`,
		millis(renew), sequence)
	return n == 1, err
}

// Delegation returns the current state of a token.
func (s *Store) Delegation(ctx context.Context, sequence int32) (d metastore.Delegation, ok bool, err error) {
	const op = "metastore/sqlite.Delegation"
	if err := s.usable(op); err != nil {
		return d, false, err
	}
	var renew int64
	err = s.db.Reader.QueryRowContext(ctx, `SELECT identifier, password, renew FROM delegation WHERE sequence = ?`,
		sequence).Scan(&d.Identifier, (*[]byte)(&d.Password), &renew)
	if errors.Is(err, sql.ErrNoRows) {
		return metastore.Delegation{}, false, nil
	}
	if err != nil {
		return metastore.Delegation{}, false, s.fail(op, "", err)
	}
	d.Sequence, d.Renew = sequence, fromMillis(renew)
	return d, true, nil
}

// RemoveDelegation removes a token.
func (s *Store) RemoveDelegation(ctx context.Context, sequence int32) (ok bool, err error) {
	n, err := s.exec(ctx, "metastore/sqlite.RemoveDelegation", `DELETE FROM delegation WHERE sequence = ?`, sequence)
	return n == 1, err
}

// RemoveExpired removes the expired tokens.
func (s *Store) RemoveExpired(ctx context.Context, before time.Time) (int, error) {
	n, err := s.exec(ctx, "metastore/sqlite.RemoveExpired", `DELETE FROM delegation WHERE renew < ?`, millis(before))
	return int(n), err
}

// CountDelegations counts the tokens.
func (s *Store) CountDelegations(ctx context.Context) (n int, err error) {
	const op = "metastore/sqlite.CountDelegations"
	if err := s.usable(op); err != nil {
		return 0, err
	}
	err = s.db.Reader.QueryRowContext(ctx, `SELECT count(*) FROM delegation`).Scan(&n)
	return n, s.fail(op, "", err)
}

// Identifiers calls fn with the identifier of each token.
func (s *Store) Identifiers(ctx context.Context, fn func(identifier []byte)) error {
	const op = "metastore/sqlite.Identifiers"
	if err := s.usable(op); err != nil {
		return err
	}
	rows, err := s.db.Reader.QueryContext(ctx, `SELECT identifier FROM delegation`)
	if err != nil {
		return s.fail(op, "", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return s.fail(op, "", err)
		}
		fn(id)
	}
	return s.fail(op, "", rows.Err())
}

// exec runs one statement that changes rows, and returns the number of changed rows.
func (s *Store) exec(ctx context.Context, op, statement string, args ...any) (n int64, err error) {
	err = s.update(ctx, op, "", func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, statement, args...)
		if err == nil {
			n, err = r.RowsAffected()
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}
