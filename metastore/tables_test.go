package metastore_test

import (
	"database/sql"
	"path/filepath"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/metastore/sqlite"
)

// notCopied are the columns that are not copied to another store, with the reason.
var notCopied = []string{
	"counter.name", "counter.next", // Content.NextToken and NextMasterKey
	// An epoch has a meaning only for the nodes of one database.
	"ez_key.epoch",
	"change.seq", "change.id", "change.key", "change.change", "change.at", // in settingHistory of package postgres
	"lost_change.id", "lost_change.seq", "lost_change.key", "lost_change.at", "lost_change.told", "lost_change.change",
	// After a copy, clients log in again.
	"signer_secrets.one", "signer_secrets.version", "signer_secrets.next", "signer_secrets.current",
	"signer_secrets.previous", "signer_secrets.rollover",
}

// TestEveryColumnIsCopied checks that each column of the schemas is in Tables or in notCopied.
func TestEveryColumnIsCopied(t *testing.T) {
	checkColumns(t, "sqlite", sqliteColumns(t))
	checkColumns(t, "postgres", postgresColumns(t))
}

func checkColumns(t *testing.T, store string, columns []string) {
	t.Helper()
	var copied []string
	for _, table := range metastore.Tables {
		for _, c := range table.Columns {
			copied = append(copied, table.Name+"."+c)
		}
	}
	if len(columns) < len(copied) {
		t.Errorf("%s has only the columns %q", store, columns)
	}
	for _, column := range columns {
		if !slices.Contains(copied, column) && !slices.Contains(notCopied, column) {
			t.Errorf("%s: column %s is not copied to another store: add it to Tables, or to notCopied with the reason",
				store, column)
		}
	}
}

func sqliteColumns(t *testing.T) (columns []string) {
	t.Helper()
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "m.db")
	s, err := sqlite.Open(ctx, path)
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx,
		`SELECT t.name || '.' || c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'
			AND t.name NOT LIKE 'sqlite_%' AND t.name <> 'goose_db_version'`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var column string
		if err := rows.Scan(&column); err != nil {
			t.Fatal(err)
		}
		columns = append(columns, column)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return columns
}

func postgresColumns(t *testing.T) []string {
	t.Helper()
	ctx := t.Context()
	uri := pgtest.Shared(t).Database(t)
	p, err := postgres.Open(ctx, postgres.Config{URI: uri})
	if err == nil {
		err = p.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // an error does not matter
	list, _ := conn.Query(ctx,
		`SELECT table_name || '.' || column_name FROM information_schema.columns
			WHERE table_schema = 'public' AND table_name <> 'goose_db_version'`)
	columns, err := pgx.CollectRows(list, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return columns
}
