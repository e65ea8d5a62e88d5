package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"claviger"
	"claviger/metastore"
)

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// Begin writes an intent, or returns the pending intent of the same key and Op.
func (s *Store) Begin(ctx context.Context, i metastore.Intent) (metastore.Intent, error) {
	const op = "metastore/sqlite.Begin"
	if i.Key == "" || i.Op == "" {
		return metastore.Intent{}, claviger.Errorf(op, claviger.Invalid, i.Key,
			"an intent needs a key and an operation")
	}
	if i.Begun.IsZero() {
		i.Begun = now()
	}
	var out metastore.Intent
	err := s.update(ctx, op, i.Key, func(tx *sql.Tx) (err error) {
		out, err = begin(ctx, tx, op, i)
		return err
	})
	if err != nil {
		return metastore.Intent{}, err
	}
	return out, nil
}

// Take gives a step to the caller.
func (s *Store) Take(ctx context.Context, i metastore.Intent, step string) (metastore.Intent, error) {
	const op = "metastore/sqlite.Take"
	taken := i.AfterTake(step, now())
	err := s.update(ctx, op, i.Key, func(tx *sql.Tx) error {
		if err := stillPending(op, i)(ctx, tx); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE intent SET op = ?, begun = ? WHERE key = ?`, taken.Op,
			millis(taken.Begun), i.Key)
		return err
	})
	if err != nil {
		return metastore.Intent{}, err
	}
	return taken, nil
}

// stepCheck returns an error if a transaction must not finish a step.
type stepCheck func(ctx context.Context, tx *sql.Tx) error

// noStep is for changes that are no steps.
func noStep(context.Context, *sql.Tx) error { return nil }

// mayFinish refuses versions that are not those of the step, and what stillPending refuses.
func mayFinish(op string, i metastore.Intent, key string, list ...metastore.Version) stepCheck {
	return func(ctx context.Context, tx *sql.Tx) error {
		if err := metastore.CheckFinished(op, i, key, list); err != nil {
			return err
		}
		return stillPending(op, i)(ctx, tx)
	}
}

// stillPending refuses a change if the store does not have the step any more, or if another process has taken it.
func stillPending(op string, i metastore.Intent) stepCheck {
	return func(ctx context.Context, tx *sql.Tx) error {
		pending, err := collect(ctx, tx, scanIntent, selectIntent, i.Key)
		if err != nil {
			return err
		}
		return metastore.CheckTaken(op, i, pending)
	}
}

func begin(ctx context.Context, tx *sql.Tx, op string, i metastore.Intent) (metastore.Intent, error) {
	pending, err := collect(ctx, tx, scanIntent, selectIntent, i.Key)
	if err != nil {
		return i, err
	}
	if len(pending) == 1 {
		if pending[0].Op == i.Op {
			return pending[0], nil
		}
		return i, claviger.Errorf(op, claviger.Unavailable, i.Key, "a %s of this key, begun %s, must be finished "+
			"before its %s can begin",
			pending[0].Op, pending[0].Begun.Format(time.RFC3339), i.Op)
	}
	i.Refs = slices.Clone(i.Refs)
	if err := assignNumbers(ctx, tx, op, i.Key, i.Refs); err != nil {
		return i, err
	}
	ids, objects := encodeRefs(i.Refs)
	if _, err := tx.ExecContext(ctx,
		`INSERT INTO intent (key, op, ids, objects, begun, payload)
			VALUES (?, ?, ?, ?, ?, ?)`, i.Key, i.Op, ids, objects, millis(i.Begun), notNil(i.Payload)); err != nil {
		return i, err
	}
	i.Begun = fromMillis(millis(i.Begun)) // as the store returns it later
	return i, nil
}

const selectIntent = `SELECT key, op, ids, objects, begun, payload FROM intent WHERE key = ?`

func scanIntent(r *sql.Rows) (i metastore.Intent, err error) {
	var ids, objects string
	var begun int64
	if err := r.Scan(&i.Key, &i.Op, &ids, &objects, &begun, &i.Payload); err != nil {
		return i, err
	}
	i.Begun = fromMillis(begun)
	if i.Refs, err = decodeRefs(ids, objects); err != nil {
		return i, fmt.Errorf("intent of key %q is damaged: %w", i.Key, err)
	}
	return i, nil
}

// encodeRefs returns the two JSON lists of a row.
func encodeRefs(refs []metastore.Ref) (ids, objects string) {
	lists := [2][]string{make([]string, len(refs)), make([]string, len(refs))}
	for i, r := range refs {
		lists[0][i], lists[1][i] = r.ID, r.Object
	}
	first, _ := json.Marshal(lists[0]) // never fails
	second, _ := json.Marshal(lists[1])
	return string(first), string(second)
}

func decodeRefs(ids, objects string) ([]metastore.Ref, error) {
	var lists [2][]string
	for i, s := range []string{ids, objects} {
		if err := json.Unmarshal([]byte(s), &lists[i]); err != nil {
			return nil, err
		}
	}
	if len(lists[1]) == 0 {
		// A server of an older release, which still ran after the upgrade, wrote this row. Before versions were
		// numbered, their ids were the CKA_IDs.
		lists[1] = lists[0]
	}
	if len(lists[0]) != len(lists[1]) {
		return nil, fmt.Errorf("%d ids, %d objects", len(lists[0]), len(lists[1]))
	}
	refs := make([]metastore.Ref, len(lists[0]))
	for i := range refs {
		refs[i] = metastore.Ref{ID: lists[0][i], Object: lists[1][i]}
	}
	return refs, nil
}

// Pending returns the intents of these keys, or all intents, oldest first.
func (s *Store) Pending(ctx context.Context, keys ...string) ([]metastore.Intent, error) {
	const op = "metastore/sqlite.Pending"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	where, args := "", []any(nil)
	if len(keys) > 0 {
		where, args = "WHERE key IN (SELECT value FROM json_each(?)) ", []any{jsonList(keys)}
	}
	all, err := collect(ctx, s.db.Reader, scanIntent,
		`SELECT key, op, ids, objects, begun, payload FROM intent `+where+`ORDER BY seq`, args...)
	return all, s.fail(op, "", err)
}

// Drop ends an intent. It does nothing if there is none.
func (s *Store) Drop(ctx context.Context, key string) error {
	return s.update(ctx, "metastore/sqlite.Drop", key, func(tx *sql.Tx) error { return dropIntent(ctx, tx, key) })
}

func dropIntent(ctx context.Context, tx *sql.Tx, key string) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM intent WHERE key = ?`, key)
	return err
}

// AddUse adds to the counters, all in one transaction.
func (s *Store) AddUse(ctx context.Context, uses []metastore.Use) error {
	const op = "metastore/sqlite.AddUse"
	if len(uses) == 0 {
		return s.usable(op)
	}
	return s.update(ctx, op, "", func(tx *sql.Tx) error {
		for _, u := range uses {
			if _, err := tx.ExecContext(ctx, `
				INSERT INTO source_use (source, version, op, count, last) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT DO UPDATE SET count = count + excluded.count, last = max(last, excluded.last)`,
				u.Source, u.Version, u.Op, u.Count, millis(u.Last)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Uses returns all counters.
func (s *Store) Uses(ctx context.Context) ([]metastore.Use, error) {
	const op = "metastore/sqlite.Uses"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	all, err := collect(ctx, s.db.Reader, func(r *sql.Rows) (u metastore.Use, err error) {
		var last int64
		err = r.Scan(&u.Source, &u.Version, &u.Op, &u.Count, &last)
		u.Last = fromMillis(last)
		return u, err
	}, `SELECT source, version, op, count, last FROM source_use ORDER BY source, version, op`)
	return all, s.fail(op, "", err)
}

// Put writes or replaces a record of the journal. A replaced record keeps its position.
func (s *Store) Put(ctx context.Context, run, item string, record []byte) error {
	const op = "metastore/sqlite.Put"
	if run == "" {
		return claviger.Errorf(op, claviger.Invalid, item, "a record of the journal needs the name of its run")
	}
	return s.update(ctx, op, item, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
			INSERT INTO journal (run, item, data, at) VALUES (?, ?, ?, ?)
			ON CONFLICT (run, item) DO UPDATE
				SET data = excluded.data, at = excluded.at`, run, item, notNil(record), millis(now()))
		return err
	})
}

// Records returns a run's records in order of first writing.
func (s *Store) Records(ctx context.Context, run string) ([]metastore.Record, error) {
	const op = "metastore/sqlite.Records"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	all, err := collect(ctx, s.db.Reader, func(r *sql.Rows) (rec metastore.Record, err error) {
		var at int64
		err = r.Scan(&rec.Item, &rec.Data, &at)
		rec.At = fromMillis(at)
		return rec, err
	}, `SELECT item, data, at FROM journal WHERE run = ? ORDER BY seq`, run)
	return all, s.fail(op, "", err)
}

// Runs returns the names of all runs, oldest first.
func (s *Store) Runs(ctx context.Context) ([]string, error) {
	const op = "metastore/sqlite.Runs"
	if err := s.usable(op); err != nil {
		return nil, err
	}
	all, err := collect(ctx, s.db.Reader, func(r *sql.Rows) (run string, err error) {
		err = r.Scan(&run)
		return run, err
	}, `SELECT run FROM journal GROUP BY run ORDER BY min(seq)`)
	return all, s.fail(op, "", err)
}

// Setting returns a named value.
func (s *Store) Setting(ctx context.Context, name string) (value string, ok bool, err error) {
	const op = "metastore/sqlite.Setting"
	if err := s.usable(op); err != nil {
		return "", false, err
	}
	err = s.db.Reader.QueryRowContext(ctx, `SELECT value FROM setting WHERE name = ?`, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, s.fail(op, "", fmt.Errorf("setting %s: %w", name, err))
	}
	return value, true, nil
}

// SetSetting writes or replaces a named value.
func (s *Store) SetSetting(ctx context.Context, name, value string) error {
	return s.update(ctx, "metastore/sqlite.SetSetting", "", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx,
			`INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE
				SET value = excluded.value`, name, value)
		return err
	})
}
