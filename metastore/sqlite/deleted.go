package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"claviger"
	"claviger/metastore"
	"claviger/sqlitedb"
)

// SoftDelete moves a key to the deleted keys.
func (s *Store) SoftDelete(ctx context.Context, key string) error {
	const op = "metastore/sqlite.SoftDelete"
	return s.update(ctx, op, key, func(tx *sql.Tx) error {
		var id int64
		err := tx.QueryRowContext(ctx, `
			INSERT INTO deleted_key (name, since, cipher, bit_length, description, attributes, created)
			SELECT name, max(?, `+newestTime+`), cipher, bit_length, description, attributes, created
				FROM ez_key WHERE name = ? RETURNING id`, millis(now()), key).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if err != nil {
			return err
		}
		if err := requireNoStep(ctx, tx, op, key, "deletion"); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `
			INSERT INTO deleted_version (key_id, seq, id, object, created, check_value)
			SELECT ?, v.seq, v.id, v.object, v.created, v.check_value FROM key_version v
				JOIN ez_key k ON k.id = v.key_id WHERE k.name = ?`, id, key); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM ez_key WHERE name = ?`, key)
		return err
	})
}

// requireNoStep returns an error if a step of the key is unfinished. what is the operation that the caller refuses.
func requireNoStep(ctx context.Context, tx *sql.Tx, op, key, what string) error {
	pending, err := collect(ctx, tx, scanIntent, selectIntent, key)
	if err != nil || len(pending) == 0 {
		return err
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "a %s of this key, begun %s, must be finished before its %s",
		pending[0].Op, pending[0].Begun.Format(time.RFC3339), what)
}

// jsonList returns the names as a JSON list, for json_each. JSON cannot hold a name that is not UTF-8, and no key has
// such a name.
func jsonList(names []string) string {
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !utf8.ValidString(n) })
	list, _ := json.Marshal(names) // never fails
	return string(list)
}

// DeletedKeys returns the deleted keys of these names, or all deleted keys if there are no names.
func (s *Store) DeletedKeys(ctx context.Context, names ...string) ([]metastore.DeletedKey, error) {
	const op = "metastore/sqlite.DeletedKeys"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	type row struct {
		id  int64
		key metastore.DeletedKey
		v   metastore.Version
	}
	where, args := "", []any(nil)
	if len(names) > 0 {
		// Without names the query has no such condition, because SQLite would not use the index for an optional one.
		where, args = "WHERE k.name IN (SELECT value FROM json_each(?)) ", []any{jsonList(names)}
	}
	rows, err := collect(ctx, s.db.Reader, func(r *sql.Rows) (row, error) {
		var x row
		var m metadataRow
		var name string
		var since, created int64
		if err := r.Scan(&x.id, &name, &since, &m.cipher, &m.bits, &m.description, &m.attributes, &m.created, &x.v.ID,
			&x.v.Object, &created, &x.v.Check); err != nil {
			return x, err
		}
		md, err := m.metadata(name)
		x.key = metastore.DeletedKey{Key: metastore.Key{Metadata: md}, Since: fromMillis(since)}
		x.v.Created = fromMillis(created)
		return x, err
	}, `
		SELECT k.id, k.name, k.since, k.cipher, k.bit_length, k.description, k.attributes, k.created, v.id, v.object,
			v.created, v.check_value
		FROM deleted_key k JOIN deleted_version v ON v.key_id = k.id `+where+`ORDER BY k.id, v.seq`, args...)
	if err != nil {
		return nil, s.fail(op, "", err)
	}
	var all []metastore.DeletedKey
	var last int64
	for _, x := range rows {
		if len(all) == 0 || x.id != last {
			all, last = append(all, x.key), x.id
		}
		k := &all[len(all)-1]
		k.List = append(k.List, x.v)
		k.Versions = metastore.CountVersions(k.List)
	}
	return all, nil
}

// Undelete moves the deleted key that has that version back to the live keys.
func (s *Store) Undelete(ctx context.Context, key, version string) error {
	const op = "metastore/sqlite.Undelete"
	return s.update(ctx, op, key, func(tx *sql.Tx) error {
		var from, id int64
		err := tx.QueryRowContext(ctx, `
			SELECT k.id FROM deleted_key k JOIN deleted_version v ON v.key_id = k.id WHERE k.name = ? AND v.id = ?
				ORDER BY k.id DESC LIMIT 1`, key, version).Scan(&from)
		if errors.Is(err, sql.ErrNoRows) {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, `
			INSERT INTO ez_key (name, cipher, bit_length, description, attributes, created)
			SELECT name, cipher, bit_length, description, attributes, created FROM deleted_key WHERE id = ?
				RETURNING id`, from).Scan(&id)
		if sqlitedb.NotUnique(err) {
			return claviger.E(op, claviger.KeyExists, key, nil)
		}
		if err != nil {
			return err
		}
		if err := requireNoStep(ctx, tx, op, key, "undeletion"); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `
			INSERT INTO key_version (key_id, seq, id, object, created, check_value)
			SELECT ?, seq, id, object, created, check_value FROM deleted_version
				WHERE key_id = ?`, id, from); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM deleted_key WHERE id = ?`, from)
		return err
	})
}

// Discard removes deleted keys of a name, and writes an intent to delete their HSM objects.
func (s *Store) Discard(ctx context.Context, key string, ids ...string) (in metastore.Intent, err error) {
	const op = "metastore/sqlite.Discard"
	list, _ := json.Marshal(ids) // never fails
	err = s.update(ctx, op, key, func(tx *sql.Tx) error {
		const selectKeys = `SELECT k.id FROM deleted_key k JOIN deleted_version v ON v.key_id = k.id WHERE k.name = ?
			AND v.id IN (SELECT value FROM json_each(?))`
		refs, err := collect(ctx, tx, scanRef,
			`SELECT id, object FROM deleted_version
				WHERE key_id IN (`+selectKeys+`) ORDER BY key_id, seq`, key, string(list))
		if err != nil {
			return err
		}
		if len(refs) == 0 {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM deleted_key WHERE id IN (`+selectKeys+`)`, key,
			string(list)); err != nil {
			return err
		}
		in, err = beginDelete(ctx, tx, op, key, refs)
		return err
	})
	if err != nil {
		return metastore.Intent{}, err
	}
	return in, nil
}

// RecordUses moves the times of last uses forward, all in one transaction.
func (s *Store) RecordUses(ctx context.Context, uses []metastore.LastUse) error {
	const op = "metastore/sqlite.RecordUses"
	if len(uses) == 0 {
		return s.usable(op)
	}
	return s.update(ctx, op, "", func(tx *sql.Tx) error {
		for _, u := range uses {
			if _, err := tx.ExecContext(ctx,
				`INSERT INTO version_use (version, last) VALUES (?, ?) ON CONFLICT DO UPDATE
					SET last = max(last, excluded.last)`, u.Version, millis(u.Last)); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `DELETE FROM version_unused WHERE version = ?`, u.Version); err != nil {
				return err
			}
		}
		return nil
	})
}

// LastUses returns when versions were last used.
func (s *Store) LastUses(ctx context.Context, versions ...string) (last []time.Time, since time.Time, err error) {
	const op = "metastore/sqlite.LastUses"
	value, _, err := s.Setting(ctx, metastore.SettingLastUsesSince)
	if err != nil {
		return nil, time.Time{}, err
	}
	ms, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return nil, time.Time{}, claviger.Errorf(op, claviger.Internal, "", "metastore %s: setting %s: %w",
			s.db.Path(), metastore.SettingLastUsesSince, err)
	}
	last = make([]time.Time, len(versions))
	for i, v := range versions {
		var ms int64
		err := s.db.Reader.QueryRowContext(ctx, `SELECT last FROM version_use WHERE version = ?`, v).Scan(&ms)
		switch {
		case err == nil:
			last[i] = fromMillis(ms)
		case !errors.Is(err, sql.ErrNoRows):
			return nil, time.Time{}, s.fail(op, v, err)
		}
	}
	return last, fromMillis(ms), nil
}

// NeverUsed reports whether it is certain that the version was never used. It reads both tables: a server of an older
// program, which still runs after an upgrade, records a use in version_use only.
func (s *Store) NeverUsed(ctx context.Context, version string) (never bool, err error) {
	const op = "metastore/sqlite.NeverUsed"
	if err := s.usable(op); err != nil {
		return false, err
	}
	err = s.db.Reader.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM version_unused WHERE version = ?1)
		AND NOT EXISTS (SELECT 1 FROM version_use WHERE version = ?1)`, version).Scan(&never)
	return never, s.fail(op, version, err)
}

// ForgetUnused makes NeverUsed false for every version.
func (s *Store) ForgetUnused(ctx context.Context) error {
	_, err := s.exec(ctx, "metastore/sqlite.ForgetUnused", `DELETE FROM version_unused`)
	return err
}
