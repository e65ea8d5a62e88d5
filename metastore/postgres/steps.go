package postgres

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
)

// Begin writes an intent, or returns the pending intent of the same key and Op.
func (s *Store) Begin(ctx context.Context, i metastore.Intent) (out metastore.Intent, err error) {
	const op = "metastore/postgres.Begin"
	if i.Key == "" || i.Op == "" {
		return metastore.Intent{}, claviger.Errorf(op, claviger.Invalid, i.Key,
			"an intent needs a key and an operation")
	}
	if i.Begun.IsZero() {
		i.Begun = now()
	}
	err = s.update(ctx, op, i.Key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) (err error) {
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
	const op = "metastore/postgres.Take"
	taken := i.AfterTake(step, now())
	err := s.update(ctx, op, i.Key, pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		if err := stillPending(op, i)(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE intent SET op = $1, begun = $2 WHERE key = $3`, taken.Op, millis(taken.Begun),
			i.Key)
		return err
	})
	if err != nil {
		return metastore.Intent{}, err
	}
	return taken, nil
}

// stepCheck returns an error if a transaction must not finish a step.
type stepCheck func(ctx context.Context, tx pgx.Tx) error

// noStep is for changes that are no steps.
func noStep(context.Context, pgx.Tx) error { return nil }

// mayFinish refuses versions that are not those of the step, and what stillPending refuses.
func mayFinish(op string, i metastore.Intent, key string, list ...metastore.Version) stepCheck {
	return func(ctx context.Context, tx pgx.Tx) error {
		if err := metastore.CheckFinished(op, i, key, list); err != nil {
			return err
		}
		return stillPending(op, i)(ctx, tx)
	}
}

// stillPending refuses a change if the store does not have the step any more, or if another process has taken it.
func stillPending(op string, i metastore.Intent) stepCheck {
	return func(ctx context.Context, tx pgx.Tx) error {
		pending, err := pendingOf(ctx, tx, i.Key)
		if err != nil {
			return err
		}
		return metastore.CheckTaken(op, i, pending)
	}
}

// pendingOf returns the intent of a key, if there is one.
func pendingOf(ctx context.Context, tx pgx.Tx, key string) ([]metastore.Intent, error) {
	rows, _ := tx.Query(ctx, selectIntent, key) // the rows carry the error
	return pgx.CollectRows(rows, scanIntent)
}

func begin(ctx context.Context, tx pgx.Tx, op string, i metastore.Intent) (metastore.Intent, error) {
	pending, err := pendingOf(ctx, tx, i.Key)
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
	ids, objects := splitRefs(i.Refs)
	payload := i.Payload
	if payload == nil {
		payload = []byte{} // the column is NOT NULL
	}
	if _, err := tx.Exec(ctx,
		`INSERT INTO intent (key, op, ids, objects, begun, payload)
			VALUES ($1, $2, $3, $4, $5, $6)`, i.Key, i.Op, ids, objects, millis(i.Begun), payload); err != nil {
		return i, err
	}
	i.Begun = fromMillis(millis(i.Begun)) // as the store returns it later
	return i, nil
}

const selectIntent = `SELECT key, op, ids, objects, begun, payload FROM intent WHERE key = $1`

func scanIntent(r pgx.CollectableRow) (i metastore.Intent, err error) {
	var begun int64
	var ids, objects []string
	if err := r.Scan(&i.Key, &i.Op, &ids, &objects, &begun, &i.Payload); err != nil {
		return i, err
	}
	i.Begun = fromMillis(begun)
	i.Refs = make([]metastore.Ref, len(ids)) // a CHECK of the table demands that objects has the same length
	for n := range ids {
		i.Refs[n] = metastore.Ref{ID: ids[n], Object: objects[n]}
	}
	return i, nil
}

// splitRefs returns the two columns of a row, which are never nil.
func splitRefs(refs []metastore.Ref) (ids, objects []string) {
	ids, objects = make([]string, len(refs)), make([]string, len(refs))
	for i, r := range refs {
		ids[i], objects[i] = r.ID, r.Object
	}
	return ids, objects
}

// Pending returns the intents of these keys, or all intents, oldest first.
func (s *Store) Pending(ctx context.Context, keys ...string) (all []metastore.Intent, err error) {
	const op = "metastore/postgres.Pending"
	where, args := "", []any(nil)
	if len(keys) > 0 {
		keys = slices.DeleteFunc(slices.Clone(keys), func(n string) bool { return !storable(n) })
		if len(keys) == 0 {
			return nil, s.db.Usable(op)
		}
		where, args = "WHERE key = ANY($1) ", []any{keys}
	}
	err = s.db.Read(ctx, op, "", func(ctx context.Context) error {
		// the rows carry the error
		rows, _ := s.db.Pool().Query(ctx,
			`SELECT key, op, ids, objects, begun, payload FROM intent `+where+`ORDER BY seq`, args...)
		all, err = pgx.CollectRows(rows, scanIntent)
		return err
	})
	return all, err
}

// Drop ends an intent. It does nothing if there is none.
func (s *Store) Drop(ctx context.Context, key string) error {
	_, err := s.write(ctx, "metastore/postgres.Drop", key, `DELETE FROM intent WHERE key = $1`, key)
	return err
}

// execRepeatable runs one statement in its own transaction. After a lost answer the statement is repeated, so it must
// be harmless to run it twice. It does not check the fence, so it is only for data that does not belong to the store's
// content, and for the mark that the store was moved.
func (s *Store) execRepeatable(ctx context.Context, op, key, statement string, args ...any) error {
	return s.db.Read(ctx, op, key, func(ctx context.Context) error {
		_, err := s.db.Pool().Exec(ctx, statement, args...)
		return err
	})
}

// AddUse adds to the counters, all in one transaction.
func (s *Store) AddUse(ctx context.Context, uses []metastore.Use) error {
	const op = "metastore/postgres.AddUse"
	if len(uses) == 0 {
		return s.db.Usable(op)
	}
	// All nodes lock the rows in the same order, so they cannot deadlock.
	sorted := slices.Clone(uses)
	slices.SortFunc(sorted, func(a, b metastore.Use) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Op, b.Op))
	})
	return s.updateFenced(ctx, op, "", func(ctx context.Context, tx pgx.Tx) error {
		var batch pgx.Batch
		for _, u := range sorted {
			batch.Queue(`
				INSERT INTO source_use AS u (source, version, op, count, last) VALUES ($1, $2, $3, $4, $5)
				ON CONFLICT (`+digestSource+`, `+digestVersion+`, op) DO UPDATE SET count = u.count + excluded.count,
					last = greatest(u.last, excluded.last)`,
				u.Source, u.Version, u.Op, u.Count, millis(u.Last))
		}
		return tx.SendBatch(ctx, &batch).Close()
	})
}

// Uses returns all counters.
func (s *Store) Uses(ctx context.Context) (all []metastore.Use, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Uses", "", func(ctx context.Context) error {
		// the rows carry the error
		rows, _ := s.db.Pool().Query(ctx,
			`SELECT source, version, op, count, last FROM source_use ORDER BY source, version, op`)
		all, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (u metastore.Use, err error) {
			var last int64
			err = r.Scan(&u.Source, &u.Version, &u.Op, &u.Count, &last)
			u.Last = fromMillis(last)
			return u, err
		})
		return err
	})
	return all, err
}

// Put writes or replaces a record of the journal. A replaced record keeps its position.
func (s *Store) Put(ctx context.Context, run, item string, record []byte) error {
	const op = "metastore/postgres.Put"
	if run == "" {
		return claviger.Errorf(op, claviger.Invalid, item, "a record of the journal needs the name of its run")
	}
	if record == nil {
		record = []byte{} // the column is NOT NULL
	}
	_, err := s.write(ctx, op, item, `
		INSERT INTO journal (run, item, data, at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (run, `+digestItem+`) DO UPDATE SET data = excluded.data, at = excluded.at`, run, item, record,
		millis(now()))
	return err
}

// Records returns a run's records in order of first writing.
func (s *Store) Records(ctx context.Context, run string) (all []metastore.Record, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Records", "", func(ctx context.Context) error {
		// the rows carry the error
		rows, _ := s.db.Pool().Query(ctx, `SELECT item, data, at FROM journal WHERE run = $1 ORDER BY seq`, run)
		all, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (rec metastore.Record, err error) {
			var at int64
			err = r.Scan(&rec.Item, &rec.Data, &at)
			rec.At = fromMillis(at)
			return rec, err
		})
		return err
	})
	return all, err
}

// Runs returns the names of all runs, oldest first.
func (s *Store) Runs(ctx context.Context) (all []string, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Runs", "", func(ctx context.Context) error {
		// the rows carry the error
		rows, _ := s.db.Pool().Query(ctx, `SELECT run FROM journal GROUP BY run ORDER BY min(seq)`)
		all, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return all, err
}

// Setting returns a named value.
func (s *Store) Setting(ctx context.Context, name string) (value string, ok bool, err error) {
	err = s.db.Read(ctx, "metastore/postgres.Setting", "", func(ctx context.Context) error {
		err := s.db.Pool().QueryRow(ctx, `SELECT value FROM setting WHERE name = $1`, name).Scan(&value)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		ok = err == nil
		return err
	})
	return value, ok, err
}

// SetSetting writes or replaces a named value.
func (s *Store) SetSetting(ctx context.Context, name, value string) error {
	const op = "metastore/postgres.SetSetting"
	statement := `INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (` + digestName +
		`) DO UPDATE SET value = excluded.value`
	if name == metastore.SettingMoved {
		return s.execRepeatable(ctx, op, "", statement, name, value)
	}
	_, err := s.write(ctx, op, "", statement, name, value)
	return err
}
