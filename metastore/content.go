package metastore

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"

	"claviger"
)

// Settings of a store itself. They are not part of its content.
const (
	// SettingMoved says where a store was moved to (JSON of Moved). No server uses the store
	// after that.
	SettingMoved = "store.moved"
	// SettingChanges counts the changes of a store in a file.
	SettingChanges = "store.changes"
	// SettingProbe is written to test whether a store accepts changes.
	SettingProbe = "probe.write"
	// SettingBackup marks a file that was written as a backup, with the time (RFC 3339).
	SettingBackup = "backup.made"
	// SettingOldest is the oldest schema version whose programs work with the store's schema.
	SettingOldest = "schema.oldest"
)

// Table is a table that all stores have. It is copied row by row, with the numbers that the store gave to the rows,
// because the order of rows has a meaning.
type Table struct {
	Name    string
	Columns []string
	Order   string // ORDER BY of the rows; it sorts alike in each store
	Serial  string // the column that the store numbers; "" for none
}

// Tables are the tables that are copied, each after the tables that its rows refer to. A column with a list (ids and
// objects of intents) is JSON.
var Tables = []Table{
	{"ez_key", []string{"id", "name", "cipher", "bit_length", "description", "attributes", "created"}, "id", "id"},
	{"key_version", []string{"key_id", "seq", "id", "object", "created", "check_value"}, "key_id, seq", ""},
	{"deleted_key", []string{"id", "name", "since", "cipher", "bit_length", "description", "attributes", "created"},
		"id", "id"},
	{"deleted_version", []string{"key_id", "seq", "id", "object", "created", "check_value"}, "key_id, seq", ""},
	{"key_number", []string{"name", "first", "next"}, "name, first", ""},
	{"intent", []string{"seq", "key", "op", "ids", "objects", "begun", "payload"}, "seq", "seq"},
	{"journal", []string{"seq", "run", "item", "data", "at"}, "seq", "seq"},
	{"source_use", []string{"source", "version", "op", "count", "last"}, "source, version, op", ""},
	{"version_use", []string{"version", "last"}, "version", ""},
	{"version_unused", []string{"version"}, "version", ""},
	{"setting", []string{"name", "value"}, "name", ""},
	{"master_key", []string{"id", "expires", "key"}, "id", ""},
	{"delegation", []string{"sequence", "identifier", "password", "renew"}, "sequence", ""},
}

// Content is the whole content of a store at one moment, including delegation tokens and master keys. It is as secret
// as the store.
type Content struct {
	// Rows are the rows of each table, in the table's order; a value is an int64, string,
	// []byte or nil.
	Rows map[string][][]any
	// NextToken and NextMasterKey are the next numbers of delegation tokens and master keys.
	NextToken, NextMasterKey int64
}

// Movable is a store whose content can be copied to another store.
type Movable interface {
	// Content reads the whole content, at one moment.
	Content(ctx context.Context) (*Content, error)
	// Fill writes the whole content, or nothing. Kind Invalid if the store is not empty.
	Fill(ctx context.Context, c *Content) error
}

// RemoveOwnSettings removes the settings of the store itself from the content.
func (c *Content) RemoveOwnSettings() {
	c.Rows["setting"] = slices.DeleteFunc(c.Rows["setting"], func(row []any) bool {
		return slices.Contains([]any{SettingMoved, SettingChanges, SettingProbe, SettingBackup, SettingOldest}, row[0])
	})
}

// Empty reports whether the content is that of a new store.
func (c *Content) Empty() bool {
	for name, rows := range c.Rows {
		for _, row := range rows {
			if name != "setting" || row[0] != SettingLastUsesSince {
				return false
			}
		}
	}
	return true
}

// Differ returns the names of the tables in which the copy o differs; nil if it is equal. The next numbers of o may be
// higher.
func (c *Content) Differ(o *Content) (tables []string) {
	for _, t := range Tables {
		if len(c.Rows[t.Name])+len(o.Rows[t.Name]) > 0 && !reflect.DeepEqual(c.Rows[t.Name], o.Rows[t.Name]) {
			tables = append(tables, t.Name)
		}
	}
	if c.NextToken > o.NextToken || c.NextMasterKey > o.NextMasterKey {
		tables = append(tables, "counters")
	}
	return tables
}

// Moved says where a store was moved to.
type Moved struct {
	To string    `json:"to"` // URI, without secrets
	At time.Time `json:"at"`
}

// MovedTo returns the mark of a store that was moved, or nil.
func MovedTo(ctx context.Context, s Settings) (*Moved, error) {
	text, _, err := s.Setting(ctx, SettingMoved)
	if err != nil || text == "" {
		return nil, err
	}
	return ParseMoved(text)
}

// ParseMoved reads the value of SettingMoved.
func ParseMoved(text string) (*Moved, error) {
	m := &Moved{}
	if err := json.Unmarshal([]byte(text), m); err != nil {
		return nil, claviger.Errorf("metastore.MovedTo", claviger.Internal, "", "setting %s: %w", SettingMoved, err)
	}
	return m, nil
}

// ClearMoved removes the mark of a move, so that servers may use the store again. It is for a store whose new location
// is lost.
func ClearMoved(ctx context.Context, s Settings) error { return s.SetSetting(ctx, SettingMoved, "") }

// SetMoved marks a store as moved, so that no server uses it any more.
func SetMoved(ctx context.Context, s Settings, to string) error {
	text, err := json.Marshal(Moved{To: to, At: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return fmt.Errorf("setting %s: %w", SettingMoved, err)
	}
	return s.SetSetting(ctx, SettingMoved, string(text))
}
