package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
)

var (
	_ metastore.Cluster        = (*Store)(nil)
	_ metastore.Epochs         = (*Store)(nil)
	_ metastore.NoticeProgress = (*Store)(nil)
	_ metastore.Holder         = (*Store)(nil)
)

// NextSequences reserves n sequence numbers. nextval and setval are two steps, so an advisory lock makes them one.
func (s *Store) NextSequences(ctx context.Context, n int32) (first int32, err error) {
	const op = "metastore/postgres.NextSequences"
	if n <= 0 {
		return 0, claviger.Errorf(op, claviger.Invalid, "", "%d numbers cannot be reserved: it must be at least 1", n)
	}
	err = s.updateFenced(ctx, op, "", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lockID("token sequence")); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `WITH first AS MATERIALIZED (SELECT nextval('token_sequence') AS n)
			SELECT first.n FROM first, LATERAL (SELECT setval('token_sequence',
				first.n + $1 - 1)) AS moved`, n).Scan(&first)
	})
	return first, err
}

// NextKeyID returns an id that no master key has had.
func (s *Store) NextKeyID(ctx context.Context) (id int32, err error) {
	// Read repeats a query whose answer was lost. An id that is skipped does not matter.
	err = s.db.Read(ctx, "metastore/postgres.NextKeyID", "", func(ctx context.Context) error {
		return s.db.Pool().QueryRow(ctx, `SELECT nextval('master_key_id')`).Scan(&id)
	})
	return id, err
}

// PutMasterKey writes or replaces a key.
func (s *Store) PutMasterKey(ctx context.Context, k metastore.MasterKey) error {
	_, err := s.write(ctx, "metastore/postgres.PutMasterKey", "", `
		INSERT INTO master_key (id, expires, key) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET expires = excluded.expires,
			key = excluded.key`, k.ID, millis(k.Expires), []byte(k.Key))
	return err
}

// MasterKeys returns all keys, by ID.
func (s *Store) MasterKeys(ctx context.Context) (all []metastore.MasterKey, err error) {
	err = s.db.Read(ctx, "metastore/postgres.MasterKeys", "", func(ctx context.Context) error {
		// the rows carry the error
		rows, _ := s.db.Pool().Query(ctx, `SELECT id, expires, key FROM master_key ORDER BY id`)
		all, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (k metastore.MasterKey, err error) {
			var expires int64
			err = r.Scan(&k.ID, &expires, (*[]byte)(&k.Key))
			k.Expires = fromMillis(expires)
			return k, err
		})
		return err
	})
	return all, err
}

// RemoveMasterKey removes a key.
func (s *Store) RemoveMasterKey(ctx context.Context, id int32) error {
	_, err := s.write(ctx, "metastore/postgres.RemoveMasterKey", "", `DELETE FROM master_key WHERE id = $1`, id)
	return err
}

// PutDelegation writes or replaces a token.
func (s *Store) PutDelegation(ctx context.Context, d metastore.Delegation) error {
	_, err := s.write(ctx, "metastore/postgres.PutDelegation", "", `
		INSERT INTO delegation (sequence, identifier, password, renew) VALUES ($1, $2, $3, $4)
		ON CONFLICT (sequence) DO UPDATE
			SET identifier = excluded.identifier, password = excluded.password, renew = excluded.renew`,
		d.Sequence, d.Identifier, []byte(d.Password), millis(d.Renew))
	return err
}

// RenewDelegation changes Renew of a token that still exists.
func (s *Store) RenewDelegation(ctx context.Context, sequence int32, renew time.Time) (ok bool, err error) {
	n, err := s.write(ctx, "metastore/postgres.RenewDelegation", "",
		`UPDATE delegation SET renew = $2 WHERE sequence = $1`, sequence, millis(renew))
	return n == 1, err
}

// Delegation returns the current state of a token.
func (s *Store) Delegation(ctx context.Context, sequence int32) (d metastore.Delegation, ok bool, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Delegation", "", func(ctx context.Context) error {
		var renew int64
		err := s.db.Pool().QueryRow(ctx, `SELECT identifier, password, renew FROM delegation WHERE sequence = $1`,
			sequence).Scan(&d.Identifier, (*[]byte)(&d.Password), &renew)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		d.Sequence, d.Renew, ok = sequence, fromMillis(renew), err == nil
		return err
	})
	return d, ok, err
}

// RemoveDelegation removes a token, and sends a notice to all nodes. If the answer of the commit is lost, write finds
// out whether the commit succeeded, so exactly one caller gets ok.
func (s *Store) RemoveDelegation(ctx context.Context, sequence int32) (ok bool, err error) {
	text, _ := json.Marshal(payload{Change: metastore.TokenRemoved, Token: sequence}) // never fails
	n, err := s.write(ctx, "metastore/postgres.RemoveDelegation", "", `
		WITH gone AS (DELETE FROM delegation WHERE sequence = $1 RETURNING sequence)
		SELECT pg_notify($2, $3) FROM gone`, sequence, channel, string(text))
	return n == 1, err
}

// RemoveExpired removes the expired tokens. It skips rows that another node is removing at the same time.
func (s *Store) RemoveExpired(ctx context.Context, before time.Time) (n int, err error) {
	return s.write(ctx, "metastore/postgres.RemoveExpired", "",
		`DELETE FROM delegation WHERE sequence IN (SELECT sequence FROM delegation
			WHERE renew < $1 FOR UPDATE SKIP LOCKED)`, millis(before))
}

// CountDelegations counts the tokens.
func (s *Store) CountDelegations(ctx context.Context) (n int, err error) {
	err = s.db.Read(ctx, "metastore/postgres.CountDelegations", "", func(ctx context.Context) error {
		return s.db.Pool().QueryRow(ctx, `SELECT count(*) FROM delegation`).Scan(&n)
	})
	return n, err
}

// Identifiers calls fn with the identifier of each token.
func (s *Store) Identifiers(ctx context.Context, fn func(identifier []byte)) error {
	var all [][]byte // Read may repeat the query, but fn must be called once for each token
	err := s.db.Read(ctx, "metastore/postgres.Identifiers", "", func(ctx context.Context) (err error) {
		rows, _ := s.db.Pool().Query(ctx, `SELECT identifier FROM delegation`) // the rows carry the error
		all, err = pgx.CollectRows(rows, pgx.RowTo[[]byte])
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range all {
		fn(id)
	}
	return nil
}

// SignerSecrets returns the current secrets.
func (s *Store) SignerSecrets(ctx context.Context) (out metastore.SignerSecrets, ok bool, err error) {
	err = s.db.Read(ctx, "metastore/postgres.SignerSecrets", "", func(ctx context.Context) error {
		var rollover int64
		err := s.db.Pool().QueryRow(ctx, `SELECT version, next, current, previous, rollover FROM signer_secrets`).
			Scan(&out.Version, (*[]byte)(&out.Next), (*[]byte)(&out.Current), (*[]byte)(&out.Previous), &rollover)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		out.Rollover, ok = fromMillis(rollover), err == nil
		return err
	})
	return out, ok, err
}

// SwapSignerSecrets writes v if the store's version is still v.Version.
func (s *Store) SwapSignerSecrets(ctx context.Context, v metastore.SignerSecrets) (ok bool, err error) {
	statement := `UPDATE signer_secrets SET version = version + 1, next = $2, current = $3, previous = $4, rollover = $5
		WHERE version = $1`
	if v.Version == 0 {
		statement = `INSERT INTO signer_secrets (version, next, current, previous, rollover)
			VALUES ($1 + 1::bigint, $2, $3, $4, $5) ON CONFLICT DO NOTHING`
	}
	n, err := s.write(ctx, "metastore/postgres.SwapSignerSecrets", "", statement, v.Version, []byte(v.Next),
		[]byte(v.Current), []byte(v.Previous), millis(v.Rollover))
	return n == 1, err
}
