package postgres

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
)

// oldestSchema returns what recordOldest of the newest program has recorded, 0 if none has.
func (s *Store) oldestSchema(ctx context.Context) (version int64, err error) {
	text, ok, err := s.Setting(ctx, metastore.SettingOldest)
	if err != nil || !ok {
		return 0, err
	}
	return parseOldest(text)
}

func parseOldest(text string) (int64, error) {
	version, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("setting %s: %w", metastore.SettingOldest, err)
	}
	return version, nil
}

// recordOldest records oldestSchema. Older schemas have another index of the settings' names, so the statement does not
// name an index.
func (s *Store) recordOldest(ctx context.Context) error {
	return s.db.Update(ctx, "metastore/postgres.recordOldest", "", pgx.Serializable,
		func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `DELETE FROM setting WHERE name = $1`, metastore.SettingOldest); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO setting (name, value) VALUES ($1, $2)`, metastore.SettingOldest,
				strconv.Itoa(oldestSchema))
			return err
		})
}

// tooNew returns an error if this program does not work with the schema. oldest is the value of the setting, "" if
// there is none.
func (s *Store) tooNew(op, key, oldest string) error {
	if oldest == "" {
		return nil
	}
	version, err := parseOldest(oldest)
	if err != nil || version <= schemaVersion {
		return err
	}
	return claviger.Errorf(op, claviger.Unavailable, key, "%w: a newer claviger has upgraded the metastore %s, and "+
		"works only beside programs that know schema version %d; this one knows %d: install the newer one on this "+
		"node, too", errFenced, s.db.URI(), version, schemaVersion)
}

// requireOwnSchema returns an error if a newer program has upgraded the schema. A caller that copies the whole store
// would leave out what the newer program has added.
func (s *Store) requireOwnSchema(ctx context.Context, tx pgx.Tx, op string) error {
	var version int64
	err := tx.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&version)
	if err != nil || version <= schemaVersion {
		return err
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "a newer claviger has upgraded the metastore %s to schema "+
		"version %d, and this one knows %d: use the newer one", s.db.URI(), version, schemaVersion)
}
