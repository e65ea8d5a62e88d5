package postgres

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
	"claviger/pgdb"
)

// SoftDelete moves a key to the deleted keys, and announces a deletion.
func (s *Store) SoftDelete(ctx context.Context, key string) error {
	const op = "metastore/postgres.SoftDelete"
	return s.update(ctx, op, key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		var id int64
		err := tx.QueryRow(ctx, `
			INSERT INTO deleted_key (name, since, cipher, bit_length, description, attributes, created)
			SELECT name, greatest($1, `+clockMillis+`), cipher, bit_length, description, attributes, created
				FROM ez_key WHERE name = $2 RETURNING id`, millis(now()), key).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if err != nil {
			return err
		}
		if err := requireNoStep(ctx, tx, op, key, "deletion"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
			INSERT INTO deleted_version (key_id, seq, id, object, created, check_value)
			SELECT $1, v.seq, v.id, v.object, v.created, v.check_value FROM key_version v
				JOIN ez_key k ON k.id = v.key_id WHERE k.name = $2`, id, key); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM ez_key WHERE name = $1`, key); err != nil {
			return err
		}
		return notify(ctx, tx, metastore.Notice{Key: key, Change: metastore.Deleted})
	})
}

// requireNoStep returns an error if a step of the key is unfinished. what is the operation that the caller refuses.
func requireNoStep(ctx context.Context, tx pgx.Tx, op, key, what string) error {
	rows, _ := tx.Query(ctx, selectIntent, key) // the rows carry the error
	pending, err := pgx.CollectRows(rows, scanIntent)
	if err != nil || len(pending) == 0 {
		return err
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "a %s of this key, begun %s, must be finished before its %s",
		pending[0].Op, pending[0].Begun.Format(time.RFC3339), what)
}

// DeletedKeys returns the deleted keys of these names, or all deleted keys if there are no names.
func (s *Store) DeletedKeys(ctx context.Context, names ...string) (all []metastore.DeletedKey, err error) {
	where, args := "", []any(nil)
	if len(names) > 0 {
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !storable(n) })
		if len(names) == 0 {
			return nil, s.db.Usable("metastore/postgres.DeletedKeys")
		}
		// Without names the query has no such condition, because PostgreSQL would not use the index for an optional
		// one.
		where, args = "WHERE k.name = ANY($1) ", []any{names}
	}
	err = s.db.Read(ctx, "metastore/postgres.DeletedKeys", "", func(ctx context.Context) error {
		all = nil
		rows, _ := s.db.Pool().Query(ctx, `
			SELECT k.id, k.name, k.since, k.cipher, k.bit_length, k.description, k.attributes, k.created, v.id,
				v.object, v.created, v.check_value
			FROM deleted_key k
				JOIN deleted_version v ON v.key_id = k.id `+where+`ORDER BY k.id, v.seq`,
			args...) // the rows carry the error
		defer rows.Close()
		var last int64
		for rows.Next() {
			var m metadataRow
			var v metastore.Version
			var name string
			var id, since, created int64
			if err := rows.Scan(&id, &name, &since, &m.cipher, &m.bits, &m.description, &m.attributes, &m.created,
				&v.ID, &v.Object, &created, &v.Check); err != nil {
				return err
			}
			if len(all) == 0 || id != last {
				md, err := m.metadata(name)
				if err != nil {
					return err
				}
				all = append(all, metastore.DeletedKey{Key: metastore.Key{Metadata: md}, Since: fromMillis(since)})
				last = id
			}
			v.Created = fromMillis(created)
			k := &all[len(all)-1]
			k.List = append(k.List, v)
			k.Versions = metastore.CountVersions(k.List)
		}
		return rows.Err()
	})
	return all, err
}

// Undelete moves the deleted key that has that version back to the live keys, and announces a creation.
func (s *Store) Undelete(ctx context.Context, key, version string) error {
	const op = "metastore/postgres.Undelete"
	return s.update(ctx, op, key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		if !storable(key) || !storable(version) {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		var from, id int64
		err := tx.QueryRow(ctx, `
			SELECT k.id FROM deleted_key k JOIN deleted_version v ON v.key_id = k.id WHERE k.name = $1 AND v.id = $2
				ORDER BY k.id DESC LIMIT 1`, key, version).Scan(&from)
		if errors.Is(err, pgx.ErrNoRows) {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `
			INSERT INTO ez_key (name, cipher, bit_length, description, attributes, created)
			SELECT name, cipher, bit_length, description, attributes, created FROM deleted_key WHERE id = $1
				RETURNING id`, from).Scan(&id)
		if pgdb.UniqueOn(err, "ez_key_name_digest") {
			return claviger.E(op, claviger.KeyExists, key, nil)
		}
		if err != nil {
			return err
		}
		if err := requireNoStep(ctx, tx, op, key, "undeletion"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
			INSERT INTO key_version (key_id, seq, id, object, created, check_value)
			SELECT $1, seq, id, object, created, check_value FROM deleted_version
				WHERE key_id = $2`, id, from); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM deleted_key WHERE id = $1`, from); err != nil {
			return err
		}
		return notify(ctx, tx, metastore.Notice{Key: key, Change: metastore.Created})
	})
}

// Discard removes deleted keys of a name, and writes an intent to delete their HSM objects. It records the change of
// the key, so that a node finds it missing after a failover to an older standby.
func (s *Store) Discard(ctx context.Context, key string, ids ...string) (in metastore.Intent, err error) {
	const op = "metastore/postgres.Discard"
	ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !storable(id) })
	err = s.update(ctx, op, key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		if !storable(key) {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		const selectKeys = `SELECT k.id FROM deleted_key k JOIN deleted_version v ON v.key_id = k.id WHERE k.name = $1
			AND v.id = ANY($2)`
		// the rows carry the error
		rows, _ := tx.Query(ctx,
			`SELECT id, object FROM deleted_version WHERE key_id IN (`+selectKeys+`) ORDER BY key_id, seq`, key, ids)
		refs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[metastore.Ref])
		if err != nil {
			return err
		}
		if len(refs) == 0 {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM deleted_key WHERE id IN (`+selectKeys+`)`, key, ids); err != nil {
			return err
		}
		if in, err = beginDelete(ctx, tx, op, key, refs); err != nil {
			return err
		}
		return notify(ctx, tx, metastore.Notice{Key: key, Change: metastore.Deleted})
	})
	if err != nil {
		return metastore.Intent{}, err
	}
	return in, nil
}

// RecordUses moves the times of last uses forward, all in one transaction, but not beyond the database server's clock.
// A node whose clock is ahead would otherwise write a time that later uses cannot move forward.
func (s *Store) RecordUses(ctx context.Context, uses []metastore.LastUse) error {
	const op = "metastore/postgres.RecordUses"
	if len(uses) == 0 {
		return s.db.Usable(op)
	}
	// All nodes lock the rows in the same order, so they cannot deadlock.
	sorted := slices.Clone(uses)
	slices.SortFunc(sorted, func(a, b metastore.LastUse) int { return cmp.Compare(a.Version, b.Version) })
	return s.updateFenced(ctx, op, "", func(ctx context.Context, tx pgx.Tx) error {
		var batch pgx.Batch
		for _, u := range sorted {
			batch.Queue(`INSERT INTO version_use AS u (version, last)
				VALUES ($1, least($2, `+clockMillis+`)) ON CONFLICT (`+digestVersion+`)
					DO UPDATE SET last = greatest(u.last, excluded.last)`, u.Version, millis(u.Last))
			batch.Queue(`DELETE FROM version_unused WHERE version = $1`, u.Version)
		}
		return tx.SendBatch(ctx, &batch).Close()
	})
}

// LastUses returns when versions were last used.
func (s *Store) LastUses(ctx context.Context, versions ...string) (last []time.Time, since time.Time, err error) {
	const op = "metastore/postgres.LastUses"
	value, _, err := s.Setting(ctx, metastore.SettingLastUsesSince)
	if err != nil {
		return nil, time.Time{}, err
	}
	ms, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return nil, time.Time{}, claviger.Errorf(op, claviger.Internal, "", "metastore %s: setting %s: %w", s.db.URI(),
			metastore.SettingLastUsesSince, err)
	}
	found := map[string]int64{}
	err = s.db.Read(ctx, op, "", func(ctx context.Context) error {
		// the rows carry the error
		rows, _ := s.db.Pool().Query(ctx, `SELECT version, last FROM version_use WHERE version = ANY($1)`, versions)
		var version string
		var at int64
		_, err := pgx.ForEachRow(rows, []any{&version, &at}, func() error { found[version] = at; return nil })
		return err
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	last = make([]time.Time, len(versions))
	for i, v := range versions {
		if at, ok := found[v]; ok {
			last[i] = fromMillis(at)
		}
	}
	return last, fromMillis(ms), nil
}

// NeverUsed reports whether it is certain that the version was never used. It reads both tables: a node with an older
// program, which still runs after an upgrade, records a use in version_use only.
func (s *Store) NeverUsed(ctx context.Context, version string) (never bool, err error) {
	err = s.db.Read(ctx, "metastore/postgres.NeverUsed", version, func(ctx context.Context) error {
		if !storable(version) {
			return nil
		}
		return s.db.Pool().QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM version_unused WHERE version = $1)
			AND NOT EXISTS (SELECT 1 FROM version_use WHERE version = $1)`, version).Scan(&never)
	})
	return never, err
}

// ForgetUnused makes NeverUsed false for every version.
func (s *Store) ForgetUnused(ctx context.Context) error {
	_, err := s.write(ctx, "metastore/postgres.ForgetUnused", "", `DELETE FROM version_unused`)
	return err
}
