package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"claviger"
	"claviger/metastore"
	"claviger/sqlitedb"
)

const (
	// One statement reads a key with its versions, so both are of the same moment. The inner join is right because
	// every key has a version.
	selectByName = `
		SELECT k.cipher, k.bit_length, k.description, k.attributes, k.created, v.id, v.object, v.created, v.check_value
		FROM ez_key k JOIN key_version v ON v.key_id = k.id
		WHERE k.name = ? ORDER BY v.seq`
	selectByVersion = `
		SELECT k.cipher, k.bit_length, k.description, k.attributes, k.created,
		       (SELECT n.id FROM key_version n WHERE n.key_id = k.id ORDER BY n.seq DESC LIMIT 1),
		       (SELECT count(*) FROM key_version n WHERE n.key_id = k.id), v.object, v.created, v.check_value
		FROM key_version v JOIN ez_key k ON k.id = v.key_id
		WHERE k.name = ? AND v.id = ?`
	selectRefs = `
		SELECT v.id, v.object FROM key_version v JOIN ez_key k ON k.id = v.key_id WHERE k.name = ? ORDER BY v.seq`
)

// Names returns all key names, sorted by bytes.
func (s *Store) Names(ctx context.Context) ([]string, error) {
	const op = "metastore/sqlite.Names"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	names, err := collect(ctx, s.db.Reader, func(r *sql.Rows) (name string, err error) {
		err = r.Scan(&name)
		return name, err
	}, `SELECT name FROM ez_key ORDER BY name`)
	return names, s.fail(op, "", err)
}

// Page returns a page of names, in the order of the rows of ez_key.
func (s *Store) Page(ctx context.Context, from string, n int) (names []string, next string, err error) {
	const op = "metastore/sqlite.Page"
	if err := s.usable(op); err != nil {
		return nil, "", err
	}
	after, err := metastore.ParsePage(op, from)
	if err != nil {
		return nil, "", err
	}
	names, err = collect(ctx, s.db.Reader, func(r *sql.Rows) (name string, err error) {
		err = r.Scan(&after, &name)
		return name, err
	}, `SELECT id, name FROM ez_key WHERE id > ? ORDER BY id LIMIT ?`, after, n)
	if err != nil {
		return nil, "", s.fail(op, "", err)
	}
	return names, metastore.NextPage(len(names) == n, after), nil
}

// Get returns the keys of those names, nil for a missing one.
func (s *Store) Get(ctx context.Context, names ...string) ([]*metastore.Key, error) {
	const op = "metastore/sqlite.Get"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	keys := make([]*metastore.Key, len(names))
	for i, name := range names {
		k, err := s.get(ctx, name)
		if err != nil {
			return nil, s.fail(op, name, err)
		}
		keys[i] = k
	}
	return keys, nil
}

func (s *Store) get(ctx context.Context, name string) (*metastore.Key, error) {
	rows, err := s.byName.QueryContext(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err below returns the error
	var k *metastore.Key
	for rows.Next() {
		var m metadataRow
		var v metastore.Version
		var created int64
		if err := rows.Scan(&m.cipher, &m.bits, &m.description, &m.attributes, &m.created, &v.ID, &v.Object, &created,
			&v.Check); err != nil {
			return nil, err
		}
		if k == nil {
			md, err := m.metadata(name)
			if err != nil {
				return nil, err
			}
			k = &metastore.Key{Metadata: md}
		}
		v.Created = fromMillis(created)
		k.List = append(k.List, v)
	}
	if k != nil {
		k.Versions = metastore.CountVersions(k.List)
	}
	return k, rows.Err()
}

// ByVersion returns the version with this full name, and its key.
func (s *Store) ByVersion(ctx context.Context, version string) (*claviger.Metadata, metastore.Version, error) {
	const op = "metastore/sqlite.ByVersion"
	if err := s.usable(op); err != nil {
		return nil, metastore.Version{}, err
	}
	key, ok := claviger.KeyOfVersion(version)
	if !ok {
		return nil, metastore.Version{}, claviger.E(op, claviger.VersionNotFound, version, nil)
	}
	var m metadataRow
	var newest string
	var count int
	var created int64
	v := metastore.Version{ID: version[len(key)+1:]}
	err := s.byVersion.QueryRowContext(ctx, key, v.ID).Scan(&m.cipher, &m.bits, &m.description, &m.attributes,
		&m.created, &newest, &count, &v.Object, &created, &v.Check)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, metastore.Version{}, claviger.E(op, claviger.VersionNotFound, version, nil)
	}
	if err != nil {
		return nil, metastore.Version{}, s.fail(op, version, err)
	}
	md, err := m.metadata(key)
	if err != nil {
		return nil, metastore.Version{}, s.fail(op, version, err)
	}
	md.Versions = claviger.CountVersions(newest, count)
	v.Created = fromMillis(created)
	return &md, v, nil
}

// Insert adds a key and drops its intent.
func (s *Store) Insert(ctx context.Context, k metastore.Key) error {
	return s.insert(ctx, "metastore/sqlite.Insert", k, noStep)
}

// FinishCreate ends a step that made a key.
func (s *Store) FinishCreate(ctx context.Context, i metastore.Intent, k metastore.Key) error {
	const op = "metastore/sqlite.FinishCreate"
	return s.insert(ctx, op, k, mayFinish(op, i, k.Name, k.List...))
}

// insert adds a key, if check returns nil.
func (s *Store) insert(ctx context.Context, op string, k metastore.Key, check stepCheck) error {
	if len(k.List) == 0 {
		return claviger.Errorf(op, claviger.Invalid, k.Name, "a key needs at least one version")
	}
	attributes := encodeAttributes(k.Attributes)
	return s.update(ctx, op, k.Name, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx,
			`INSERT INTO ez_key (name, cipher, bit_length, description, attributes, created) VALUES (?, ?, ?, ?, ?, ?)`,
			k.Name, k.Cipher, k.BitLength, k.Description, attributes, millis(k.Created))
		if sqlitedb.NotUnique(err) {
			return claviger.E(op, claviger.KeyExists, k.Name, nil)
		}
		if err == nil {
			err = check(ctx, tx)
		}
		if err != nil {
			return err
		}
		id, err := r.LastInsertId()
		if err != nil {
			return err
		}
		for seq, v := range k.List {
			if err := insertVersion(ctx, tx, op, k.Name, id, seq, v); err != nil {
				return err
			}
		}
		return dropIntent(ctx, tx, k.Name)
	})
}

func insertVersion(ctx context.Context, tx *sql.Tx, op, name string, key int64, seq int, v metastore.Version) error {
	if v.ID == "" || v.Object == "" {
		return claviger.Errorf(op, claviger.Invalid, name,
			"a version needs an id and an HSM object; this one has %q and %q", v.ID, v.Object)
	}
	_, err := tx.ExecContext(ctx,
		`INSERT INTO key_version (key_id, seq, id, object, created, check_value) VALUES (?, ?, ?, ?, ?, ?)`,
		key, seq, v.ID, v.Object, millis(v.Created), notNil(v.Check))
	if sqlitedb.NotUnique(err) {
		return fmt.Errorf("version %s or HSM object %s is already in use by another version: %w",
			claviger.VersionName(name, v.ID), v.Object, err)
	}
	if err != nil {
		return err
	}
	return recordNumber(ctx, tx, name, v.ID)
}

// Append adds a version and drops the key's intent.
func (s *Store) Append(ctx context.Context, key string, v metastore.Version) error {
	return s.appendVersion(ctx, "metastore/sqlite.Append", key, v, noStep)
}

// FinishRoll ends a step that made a version.
func (s *Store) FinishRoll(ctx context.Context, i metastore.Intent, v metastore.Version) error {
	const op = "metastore/sqlite.FinishRoll"
	return s.appendVersion(ctx, op, i.Key, v, mayFinish(op, i, i.Key, v))
}

// appendVersion adds a version, if check returns nil.
func (s *Store) appendVersion(ctx context.Context, op, key string, v metastore.Version, check stepCheck) error {
	return s.update(ctx, op, key, func(tx *sql.Tx) error {
		if err := check(ctx, tx); err != nil {
			return err
		}
		if err := addVersion(ctx, tx, op, key,
			`SELECT k.id, max(v.seq) + 1 FROM ez_key k JOIN key_version v ON v.key_id = k.id WHERE k.name = ?
				GROUP BY k.id`, v); err != nil {
			return err
		}
		return dropIntent(ctx, tx, key)
	})
}

// addVersion adds a version to a key. query returns the key's id, and the seq of the new version.
func addVersion(ctx context.Context, tx *sql.Tx, op, key, query string, v metastore.Version) error {
	var id int64
	var seq int
	err := tx.QueryRowContext(ctx, query, key).Scan(&id, &seq)
	if errors.Is(err, sql.ErrNoRows) {
		return claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	if err != nil {
		return err
	}
	return insertVersion(ctx, tx, op, key, id, seq, v)
}

// Prepend adds a version before all others.
func (s *Store) Prepend(ctx context.Context, key string, v metastore.Version) error {
	const op = "metastore/sqlite.Prepend"
	return s.update(ctx, op, key, func(tx *sql.Tx) error {
		return addVersion(ctx, tx, op, key,
			`SELECT k.id, min(v.seq) - 1 FROM ez_key k JOIN key_version v ON v.key_id = k.id WHERE k.name = ?
				GROUP BY k.id`, v)
	})
}

// Amend changes a key's description, attributes and creation time.
func (s *Store) Amend(ctx context.Context, m claviger.Metadata) error {
	const op = "metastore/sqlite.Amend"
	attributes := encodeAttributes(m.Attributes)
	return s.update(ctx, op, m.Name, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, `UPDATE ez_key SET description = ?, attributes = ?, created = ? WHERE name = ?`,
			m.Description, attributes, millis(m.Created), m.Name)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n > 0 {
			return err
		}
		return claviger.E(op, claviger.KeyNotFound, m.Name, nil)
	})
}

// Remove removes a key, and writes an intent to delete its HSM objects.
func (s *Store) Remove(ctx context.Context, key string) (metastore.Intent, error) {
	const op = "metastore/sqlite.Remove"
	var in metastore.Intent
	err := s.update(ctx, op, key, func(tx *sql.Tx) error {
		refs, err := collect(ctx, tx, scanRef, selectRefs, key)
		if err != nil {
			return err
		}
		if len(refs) == 0 {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM ez_key WHERE name = ?`, key); err != nil {
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

// RemoveVersion removes an old version, and writes an intent to delete its HSM object.
func (s *Store) RemoveVersion(ctx context.Context, key, id string) (in metastore.Intent, err error) {
	const op = "metastore/sqlite.RemoveVersion"
	err = s.update(ctx, op, key, func(tx *sql.Tx) error {
		all, err := collect(ctx, tx, scanRef, selectRefs, key)
		if err != nil {
			return err
		}
		ref, err := metastore.OldVersion(op, key, id, all)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM key_version WHERE object = ?`, ref.Object); err != nil {
			return err
		}
		in, err = beginDelete(ctx, tx, op, key, []metastore.Ref{ref})
		return err
	})
	if err != nil {
		return metastore.Intent{}, err
	}
	return in, nil
}

func scanRef(r *sql.Rows) (ref metastore.Ref, err error) {
	err = r.Scan(&ref.ID, &ref.Object)
	return ref, err
}

// beginDelete writes the intent to delete a key's HSM objects. If a delete of the key was begun before, beginDelete
// adds the refs that its intent lacks.
func beginDelete(ctx context.Context, tx *sql.Tx, op, key string, refs []metastore.Ref) (metastore.Intent, error) {
	in, err := begin(ctx, tx, op, metastore.Intent{Key: key, Op: "delete", Refs: refs, Begun: now()})
	if err != nil {
		return in, err
	}
	var added bool
	for _, ref := range refs {
		if !slices.Contains(in.Refs, ref) {
			in.Refs, added = append(in.Refs, ref), true
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM version_use WHERE version = ?`,
			claviger.VersionName(key, ref.ID)); err != nil {
			return in, err
		}
	}
	if !added {
		return in, nil
	}
	ids, objects := encodeRefs(in.Refs)
	_, err = tx.ExecContext(ctx, `UPDATE intent SET ids = ?, objects = ? WHERE key = ?`, ids, objects, key)
	return in, err
}

// metadataRow holds the columns of a row that become claviger.Metadata.
type metadataRow struct {
	cipher      string
	bits        int
	description sql.NullString
	attributes  string
	created     int64
}

func (r *metadataRow) metadata(name string) (claviger.Metadata, error) {
	m := claviger.Metadata{Name: name, Cipher: r.cipher, BitLength: r.bits, Created: fromMillis(r.created)}
	if r.description.Valid {
		m.Description = &r.description.String
	}
	if err := json.Unmarshal([]byte(r.attributes), &m.Attributes); err != nil {
		return m, fmt.Errorf("attributes of the key are damaged: %w", err)
	}
	return m, nil
}

// encodeAttributes returns the value of the column attributes.
func encodeAttributes(a map[string]string) string {
	if a == nil {
		return "{}"
	}
	b, _ := json.Marshal(a) // never fails
	return string(b)
}

// notNil turns nil into an empty blob, because the columns are NOT NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// querier is a pool or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// collect runs a query and scans all of its rows.
func collect[T any](ctx context.Context, q querier, scan func(*sql.Rows) (T, error), query string, args ...any) (
	[]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err below returns the error
	var all []T
	for rows.Next() {
		t, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, rows.Err()
}
