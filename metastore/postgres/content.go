package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
)

var _ metastore.Movable = (*Store)(nil)

// The sequences give the numbers of delegation tokens and of master keys.
const tokenSequence, masterKeySequence = "token_sequence", "master_key_id"

// Content reads the whole content, see metastore.Movable.
func (s *Store) Content(ctx context.Context) (c *metastore.Content, err error) {
	const op = "metastore/postgres.Content"
	if err := s.checkComplete(op, ""); err != nil {
		return nil, err
	}
	var lost []changeRecord
	// All queries of a repeatable-read transaction see the same moment.
	err = s.db.Update(ctx, op, "", pgx.RepeatableRead, func(ctx context.Context, tx pgx.Tx) (err error) {
		if err := s.requireOwnSchema(ctx, tx, op); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, selectLost) // the rows carry the error
		if lost, err = pgx.CollectRows(rows, scanChange); err == nil {
			c, err = contentOf(ctx, tx)
		}
		return err
	})
	if err == nil && len(lost) > 0 { // other nodes have found changes missing
		s.setLost(lost)
		err = s.checkComplete(op, "")
	}
	return c, err
}

// settingHistory is a setting that exists only in a Content: the rows of the table change, as a JSON list. A node that
// has seen these changes demands them of the copy too. A store in a file keeps the setting like any other, so a later
// copy to a database has the changes again.
const settingHistory = "history.changes"

// addHistory adds settingHistory to a content.
func addHistory(ctx context.Context, tx pgx.Tx, c *metastore.Content) error {
	rows, _ := tx.Query(ctx, `SELECT seq, id, key, at, change FROM change ORDER BY seq`) // the rows carry the error
	changes, err := pgx.CollectRows(rows, scanChange)
	if err != nil || len(changes) == 0 {
		return err
	}
	// An older release may have copied the setting from a file into the table, because it does not know the setting.
	c.Rows["setting"] = slices.DeleteFunc(c.Rows["setting"], func(row []any) bool { return row[0] == settingHistory })
	text, _ := json.Marshal(changes) // never fails
	row := []any{settingHistory, string(text)}
	// contentOf has sorted the settings by name.
	at, _ := slices.BinarySearchFunc(c.Rows["setting"], row, func(a, b []any) int {
		return strings.Compare(fmt.Sprint(a[0]), fmt.Sprint(b[0]))
	})
	c.Rows["setting"] = slices.Insert(c.Rows["setting"], at, row)
	return nil
}

// fillHistory writes the changes of settingHistory into their table.
func fillHistory(ctx context.Context, tx pgx.Tx, text string) error {
	var changes []changeRecord
	if err := json.Unmarshal([]byte(text), &changes); err != nil {
		return fmt.Errorf("setting %s: %w", settingHistory, err)
	}
	rows := make([][]any, len(changes))
	for i, m := range changes {
		rows[i] = []any{m.Seq, m.ID, m.Key, m.Change, m.At}
	}
	return fillTable(ctx, tx, metastore.Table{Name: "change", Columns: []string{"seq", "id", "key", "change", "at"},
		Serial: "seq"}, rows)
}

func contentOf(ctx context.Context, tx pgx.Tx) (*metastore.Content, error) {
	c := &metastore.Content{Rows: map[string][][]any{}}
	for _, t := range metastore.Tables {
		columns := strings.Join(t.Columns, ", ")
		if t.Name == "intent" {
			columns = strings.Replace(columns, "ids, objects",
				"array_to_json(ids)::text, array_to_json(objects)::text", 1)
		}
		// the rows carry the error
		rows, _ := tx.Query(ctx, fmt.Sprintf("SELECT %s FROM %s ORDER BY %s", columns, t.Name, t.Order))
		all, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) ([]any, error) {
			row, err := r.Values()
			for i, v := range row {
				if n, ok := v.(int32); ok {
					row[i] = int64(n)
				}
			}
			return row, err
		})
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", t.Name, err)
		}
		c.Rows[t.Name] = all
	}
	for sequence, next := range map[string]*int64{tokenSequence: &c.NextToken, masterKeySequence: &c.NextMasterKey} {
		if err := tx.QueryRow(ctx, "SELECT last_value + is_called::int FROM "+sequence).Scan(next); err != nil {
			return nil, err
		}
	}
	c.RemoveOwnSettings()
	return c, addHistory(ctx, tx, c)
}

// Fill writes the content of another store into this one, which must be empty.
func (s *Store) Fill(ctx context.Context, c *metastore.Content) error {
	const op = "metastore/postgres.Fill"
	if err := s.checkComplete(op, ""); err != nil {
		return err
	}
	return s.db.Update(ctx, op, "", pgx.Serializable, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.requireOwnSchema(ctx, tx, op); err != nil {
			return err
		}
		has, err := contentOf(ctx, tx)
		if err != nil {
			return err
		}
		if !has.Empty() {
			return claviger.Errorf(op, claviger.Invalid, "", "metastore %s is not empty", s.db.URI())
		}
		for _, t := range metastore.Tables {
			if err := fillTable(ctx, tx, t, c.Rows[t.Name]); err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
		}
		for sequence, next := range map[string]int64{tokenSequence: c.NextToken, masterKeySequence: c.NextMasterKey} {
			if _, err := tx.Exec(ctx,
				`SELECT setval('`+sequence+`', greatest($1,
					(SELECT last_value + is_called::int FROM `+sequence+`)), false)`, next); err != nil {
				return err
			}
		}
		return nil
	})
}

func fillTable(ctx context.Context, tx pgx.Tx, t metastore.Table, rows [][]any) (err error) {
	name := max(0, slices.IndexFunc(t.Columns, func(c string) bool { return c == "name" || c == "key" }))
	for _, row := range rows {
		for i, value := range row {
			if text, ok := value.(string); ok && (!utf8.ValidString(text) || strings.ContainsRune(text, 0)) {
				return claviger.Errorf("metastore/postgres.Fill", claviger.Invalid, "",
					"the row of %s has in column %s a text that PostgreSQL cannot store, because it is not UTF-8 or "+
						"has a NUL character: change it in the old metastore, while no process uses that one",
					claviger.Printable(fmt.Sprint(row[name])), t.Columns[i])
			}
		}
	}
	switch t.Name {
	case "setting": // an empty store already has some settings
		for _, row := range rows {
			if text, _ := row[1].(string); row[0] == settingHistory {
				if err := fillHistory(ctx, tx, text); err != nil {
					return err
				}
				continue
			}
			if _, err := tx.Exec(ctx,
				`INSERT INTO setting (name, value) VALUES ($1, $2)
					ON CONFLICT (`+digestName+`) DO UPDATE SET value = excluded.value`, row...); err != nil {
				return err
			}
		}
	case "intent": // the JSON lists become arrays
		for _, row := range rows {
			if _, err := tx.Exec(ctx, `INSERT INTO intent (seq, key, op, ids, objects, begun,
				payload) OVERRIDING SYSTEM VALUE
				VALUES ($1, $2, $3, ARRAY(SELECT json_array_elements_text($4::json)),
					ARRAY(SELECT json_array_elements_text($5::json)), $6, $7)`, row...); err != nil {
				return err
			}
		}
	default:
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{t.Name}, t.Columns, pgx.CopyFromRows(rows)); err != nil {
			return err
		}
	}
	if t.Serial != "" && len(rows) > 0 { // the next row must get a higher number than these
		_, err = tx.Exec(ctx, fmt.Sprintf("SELECT setval(pg_get_serial_sequence('%[1]s', '%[2]s'), (SELECT "+
			"max(%[2]s) FROM %[1]s))", t.Name, t.Serial))
	}
	return err
}
