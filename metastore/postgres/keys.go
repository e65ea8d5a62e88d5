package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
	"claviger/pgdb"
)

const (
	// One statement reads all keys with their versions, so all are of the same moment. The inner join is right because
	// every key has a version.
	selectByName = `
		SELECT k.name, k.cipher, k.bit_length, k.description, k.attributes, k.created, v.id, v.object, v.created,
			v.check_value
		FROM ez_key k JOIN key_version v ON v.key_id = k.id
		WHERE k.name = ANY($1) ORDER BY k.id, v.seq`
	selectByVersion = `
		SELECT k.cipher, k.bit_length, k.description, k.attributes, k.created,
		       (SELECT n.id FROM key_version n WHERE n.key_id = k.id ORDER BY n.seq DESC LIMIT 1),
		       (SELECT count(*) FROM key_version n WHERE n.key_id = k.id), v.object, v.created, v.check_value
		FROM key_version v JOIN ez_key k ON k.id = v.key_id
		WHERE k.name = $1 AND v.id = $2`
)

// The unique indexes of names are indexes of their digests, see 00006_names.sql. ON CONFLICT must have the same
// expressions as the indexes.
const (
	digestName    = `sha256(replace(name, '\', '\\')::bytea)`
	digestSource  = `sha256(replace(source, '\', '\\')::bytea)`
	digestVersion = `sha256(replace(version, '\', '\\')::bytea)`
	digestItem    = `sha256(replace(item, '\', '\\')::bytea)`
)

// storable reports whether PostgreSQL can store a text. A name that it cannot store does not exist.
func storable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// Names returns all key names, sorted by bytes.
func (s *Store) Names(ctx context.Context) (names []string, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Names", "", func(ctx context.Context) error {
		rows, _ := s.db.Pool().Query(ctx, `SELECT name FROM ez_key ORDER BY name`) // the rows carry the error
		names, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err == nil && !metastore.AllowsIncomplete(ctx) { // a list without a name says that this key does not exist
		err = s.checkComplete("metastore/postgres.Names", "")
	}
	return names, err
}

// Page returns a page of names, in the order of the rows of ez_key.
func (s *Store) Page(ctx context.Context, from string, n int) (names []string, next string, err error) {
	const op = "metastore/postgres.Page"
	after, err := metastore.ParsePage(op, from)
	if err != nil {
		return nil, "", err
	}
	last := after
	err = s.db.Read(ctx, op, "", func(ctx context.Context) error {
		rows, _ := s.db.Pool().Query(ctx, `SELECT id, name FROM ez_key WHERE id > $1 ORDER BY id LIMIT $2`, after,
			n) // the rows carry the error
		names, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (name string, err error) {
			err = r.Scan(&last, &name)
			return name, err
		})
		return err
	})
	if err == nil && !metastore.AllowsIncomplete(ctx) { // as in Names
		err = s.checkComplete(op, "")
	}
	return names, metastore.NextPage(len(names) == n, last), err
}

// Get returns the keys of those names, nil for a missing one.
func (s *Store) Get(ctx context.Context, names ...string) ([]*metastore.Key, error) {
	var found map[string]*metastore.Key
	queried := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !storable(name) })
	one := ""
	if len(names) == 1 {
		one = names[0]
	}
	err := s.db.Read(ctx, "metastore/postgres.Get", one, func(ctx context.Context) error {
		found = make(map[string]*metastore.Key, len(names))
		rows, _ := s.db.Pool().Query(ctx, selectByName, queried) // the rows carry the error
		defer rows.Close()
		for rows.Next() {
			if err := scanKey(rows, found); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	if len(found) < len(queried) {
		if err := s.notFound(ctx, "metastore/postgres.Get", one, nil); err != nil {
			return nil, err
		}
	}
	keys := make([]*metastore.Key, len(names))
	returned := make(map[*metastore.Key]bool, len(found))
	for i, name := range names {
		k := found[name]
		if returned[k] { // a name that occurs twice: the two results must not share a slice or map
			c := *k
			c.List, c.Attributes = slices.Clone(k.List), cloneAttributes(k.Attributes)
			k = &c
		} else if k != nil {
			returned[k] = true
		}
		keys[i] = k
	}
	return keys, nil
}

func cloneAttributes(a map[string]string) map[string]string {
	c := make(map[string]string, len(a))
	for k, v := range a {
		c[k] = v
	}
	return c
}

// scanKey adds a row of selectByName to the keys that were found.
func scanKey(rows pgx.Rows, found map[string]*metastore.Key) error {
	var m metadataRow
	var v metastore.Version
	var name string
	var created int64
	if err := rows.Scan(&name, &m.cipher, &m.bits, &m.description, &m.attributes, &m.created, &v.ID, &v.Object,
		&created, &v.Check); err != nil {
		return err
	}
	k := found[name]
	if k == nil {
		md, err := m.metadata(name)
		if err != nil {
			return err
		}
		k = &metastore.Key{Metadata: md}
		found[name] = k
	}
	v.Created = fromMillis(created)
	k.List = append(k.List, v)
	k.Versions = metastore.CountVersions(k.List)
	return nil
}

// ByVersion returns the version with this full name, and its key.
func (s *Store) ByVersion(ctx context.Context, version string) (*claviger.Metadata, metastore.Version, error) {
	const op = "metastore/postgres.ByVersion"
	if err := s.db.Usable(op); err != nil {
		return nil, metastore.Version{}, err
	}
	key, ok := claviger.KeyOfVersion(version)
	if !ok || !storable(version) {
		return nil, metastore.Version{}, claviger.E(op, claviger.VersionNotFound, version, nil)
	}
	var m metadataRow
	var newest string
	var count int
	var created int64
	v := metastore.Version{ID: version[len(key)+1:]}
	err := s.db.Read(ctx, op, version, func(ctx context.Context) error {
		err := s.db.Pool().QueryRow(ctx, selectByVersion, key, v.ID).Scan(&m.cipher, &m.bits, &m.description,
			&m.attributes, &m.created, &newest, &count, &v.Object, &created, &v.Check)
		if errors.Is(err, pgx.ErrNoRows) {
			return s.notFound(ctx, op, version, claviger.E(op, claviger.VersionNotFound, version, nil))
		}
		return err
	})
	if err != nil {
		return nil, metastore.Version{}, err
	}
	md, err := m.metadata(key)
	if err != nil {
		return nil, metastore.Version{}, s.db.Fail(op, version, err)
	}
	md.Versions = claviger.CountVersions(newest, count)
	v.Created = fromMillis(created)
	return &md, v, nil
}

// Epoch returns a number that differs after each change of the key, see metastore.Epochs.
func (s *Store) Epoch(ctx context.Context, key string) (epoch int64, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Epoch", key, func(ctx context.Context) error {
		if !storable(key) {
			return nil
		}
		err := s.db.Pool().QueryRow(ctx, `SELECT epoch FROM ez_key WHERE name = $1`, key).Scan(&epoch)
		if errors.Is(err, pgx.ErrNoRows) {
			return s.notFound(ctx, "metastore/postgres.Epoch", key, nil)
		}
		return err
	})
	return epoch, err
}

// Insert adds a key, drops its intent, and announces the change.
func (s *Store) Insert(ctx context.Context, k metastore.Key) error {
	return s.insert(ctx, "metastore/postgres.Insert", k, noStep)
}

// FinishCreate ends a step that made a key.
func (s *Store) FinishCreate(ctx context.Context, i metastore.Intent, k metastore.Key) error {
	const op = "metastore/postgres.FinishCreate"
	return s.insert(ctx, op, k, mayFinish(op, i, k.Name, k.List...))
}

// insert adds a key, if check returns nil.
func (s *Store) insert(ctx context.Context, op string, k metastore.Key, check stepCheck) error {
	if len(k.List) == 0 {
		return claviger.Errorf(op, claviger.Invalid, k.Name, "a key needs at least one version")
	}
	attributes := encodeAttributes(k.Attributes)
	return s.update(ctx, op, k.Name, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		var id int64
		err := tx.QueryRow(ctx,
			`INSERT INTO ez_key (name, cipher, bit_length, description, attributes, created)
				VALUES ($1, $2, $3, $4, $5, $6) RETURNING id`,
			k.Name, k.Cipher, k.BitLength, k.Description, attributes, millis(k.Created)).Scan(&id)
		if pgdb.UniqueOn(err, "ez_key_name_digest") {
			return claviger.E(op, claviger.KeyExists, k.Name, nil)
		}
		if err == nil {
			err = check(ctx, tx)
		}
		if err != nil {
			return err
		}
		for seq, v := range k.List {
			if err := insertVersion(ctx, tx, op, k.Name, id, seq, v); err != nil {
				return err
			}
		}
		return finish(ctx, tx, k.Name, metastore.Created)
	})
}

// encodeAttributes returns the value of the column attributes.
func encodeAttributes(attributes map[string]string) string {
	if attributes == nil {
		return "{}"
	}
	data, _ := json.Marshal(attributes) // never fails
	return string(data)
}

// finish drops the key's intent and announces the change.
func finish(ctx context.Context, tx pgx.Tx, key string, change metastore.Change) error {
	if _, err := tx.Exec(ctx, `DELETE FROM intent WHERE key = $1`, key); err != nil {
		return err
	}
	return notify(ctx, tx, metastore.Notice{Key: key, Change: change})
}

func insertVersion(ctx context.Context, tx pgx.Tx, op, name string, key int64, seq int, v metastore.Version) error {
	if v.ID == "" || v.Object == "" {
		return claviger.Errorf(op, claviger.Invalid, name,
			"a version needs an id and an HSM object; this one has %q and %q", v.ID, v.Object)
	}
	check := v.Check
	if check == nil {
		check = []byte{} // the column is NOT NULL
	}
	_, err := tx.Exec(ctx,
		`INSERT INTO key_version (key_id, seq, id, object, created, check_value)
			VALUES ($1, $2, $3, $4, $5, $6)`, key, seq, v.ID, v.Object, millis(v.Created), check)
	if pgdb.UniqueOn(err, "key_version_object_key") || pgdb.UniqueOn(err, "key_version_key_id_id_key") {
		return fmt.Errorf("version %s or HSM object %s is already in use by another version: %w",
			claviger.VersionName(name, v.ID), v.Object, err)
	}
	if err != nil {
		return err
	}
	return recordNumber(ctx, tx, name, v.ID)
}

// Append adds a version, drops the key's intent, and announces the change.
func (s *Store) Append(ctx context.Context, key string, v metastore.Version) error {
	return s.appendVersion(ctx, "metastore/postgres.Append", key, v, noStep)
}

// FinishRoll ends a step that made a version.
func (s *Store) FinishRoll(ctx context.Context, i metastore.Intent, v metastore.Version) error {
	const op = "metastore/postgres.FinishRoll"
	return s.appendVersion(ctx, op, i.Key, v, mayFinish(op, i, i.Key, v))
}

// appendVersion adds a version, if check returns nil.
func (s *Store) appendVersion(ctx context.Context, op, key string, v metastore.Version, check stepCheck) error {
	return s.update(ctx, op, key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		if err := check(ctx, tx); err != nil {
			return err
		}
		if err := addVersion(ctx, tx, op, key, `SELECT max(seq) + 1 FROM key_version WHERE key_id = $1`,
			v); err != nil {
			return err
		}
		return finish(ctx, tx, key, metastore.Rolled)
	})
}

// addVersion adds a version to a key. seqQuery returns the seq of the new version.
func addVersion(ctx context.Context, tx pgx.Tx, op, key, seqQuery string, v metastore.Version) error {
	var id int64
	var seq int
	// The update locks the row, so a second transaction that rolls the key waits for this one.
	err := tx.QueryRow(ctx, `UPDATE ez_key SET epoch = nextval('key_epoch') WHERE name = $1 RETURNING id`,
		key).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	if err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, seqQuery, id).Scan(&seq); err != nil {
		return err
	}
	return insertVersion(ctx, tx, op, key, id, seq, v)
}

// Prepend adds a version before all others, and announces the change.
func (s *Store) Prepend(ctx context.Context, key string, v metastore.Version) error {
	const op = "metastore/postgres.Prepend"
	return s.update(ctx, op, key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		if err := addVersion(ctx, tx, op, key, `SELECT min(seq) - 1 FROM key_version WHERE key_id = $1`,
			v); err != nil {
			return err
		}
		return notify(ctx, tx, metastore.Notice{Key: key, Change: metastore.Invalidated})
	})
}

// Amend changes a key's description, attributes and creation time, and announces the change.
func (s *Store) Amend(ctx context.Context, m claviger.Metadata) error {
	const op = "metastore/postgres.Amend"
	attributes := encodeAttributes(m.Attributes)
	return s.update(ctx, op, m.Name, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		r, err := tx.Exec(ctx,
			`UPDATE ez_key SET description = $1, attributes = $2, created = $3, epoch = nextval('key_epoch')
				WHERE name = $4`,
			m.Description, attributes, millis(m.Created), m.Name)
		if err != nil {
			return err
		}
		if r.RowsAffected() == 0 {
			return claviger.E(op, claviger.KeyNotFound, m.Name, nil)
		}
		return notify(ctx, tx, metastore.Notice{Key: m.Name, Change: metastore.Invalidated})
	})
}

// Remove removes a key, writes an intent to delete its HSM objects, and announces the change.
func (s *Store) Remove(ctx context.Context, key string) (in metastore.Intent, err error) {
	const op = "metastore/postgres.Remove"
	err = s.update(ctx, op, key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, selectRefs, key) // the rows carry the error
		refs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[metastore.Ref])
		if err != nil {
			return err
		}
		if len(refs) == 0 {
			return claviger.E(op, claviger.KeyNotFound, key, nil)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM ez_key WHERE name = $1`, key); err != nil {
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

// RemoveVersion removes an old version, writes an intent to delete its HSM object, and announces the change.
func (s *Store) RemoveVersion(ctx context.Context, key, id string) (in metastore.Intent, err error) {
	const op = "metastore/postgres.RemoveVersion"
	err = s.update(ctx, op, key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, selectRefs, key) // the rows carry the error
		all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[metastore.Ref])
		if err != nil {
			return err
		}
		ref, err := metastore.OldVersion(op, key, id, all)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE ez_key SET epoch = nextval('key_epoch') WHERE name = $1`, key); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM key_version WHERE object = $1`, ref.Object); err != nil {
			return err
		}
		if in, err = beginDelete(ctx, tx, op, key, []metastore.Ref{ref}); err != nil {
			return err
		}
		return notify(ctx, tx, metastore.Notice{Key: key, Change: metastore.Invalidated})
	})
	if err != nil {
		return metastore.Intent{}, err
	}
	return in, nil
}

// selectRefs selects the versions of a key, oldest first.
const selectRefs = `SELECT v.id, v.object FROM key_version v JOIN ez_key k ON k.id = v.key_id WHERE k.name = $1
	ORDER BY v.seq`

// beginDelete writes the intent to delete a key's HSM objects. If a delete of the key was begun before, beginDelete
// adds the refs that its intent lacks.
func beginDelete(ctx context.Context, tx pgx.Tx, op, key string, refs []metastore.Ref) (metastore.Intent, error) {
	in, err := begin(ctx, tx, op, metastore.Intent{Key: key, Op: "delete", Refs: refs, Begun: now()})
	if err != nil {
		return in, err
	}
	all := slices.Clone(in.Refs)
	versions := make([]string, len(refs))
	for i, ref := range refs {
		versions[i] = claviger.VersionName(key, ref.ID)
		if !slices.Contains(all, ref) {
			all = append(all, ref)
		}
	}
	if _, err := tx.Exec(ctx, `DELETE FROM version_use WHERE version = ANY($1)`, versions); err != nil {
		return in, err
	}
	if len(all) > len(in.Refs) {
		in.Refs = all
		ids, objects := splitRefs(all)
		_, err = tx.Exec(ctx, `UPDATE intent SET ids = $1, objects = $2 WHERE key = $3`, ids, objects, key)
	}
	return in, err
}

// metadataRow holds the columns of a row that become claviger.Metadata.
type metadataRow struct {
	cipher      string
	bits        int
	description *string
	attributes  string
	created     int64
}

func (r *metadataRow) metadata(name string) (claviger.Metadata, error) {
	m := claviger.Metadata{Name: name, Cipher: r.cipher, BitLength: r.bits, Description: r.description,
		Created: fromMillis(r.created)}
	if err := json.Unmarshal([]byte(r.attributes), &m.Attributes); err != nil {
		return m, fmt.Errorf("attributes of the key are damaged: %w", err)
	}
	return m, nil
}
