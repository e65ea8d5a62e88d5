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

// notCopied are columns that a store has for itself, and why.
var notCopied = []string{
	"counter.name", "counter.next", // Content.NextToken and NextMasterKey
	"ez_key.epoch",                                                        // of the nodes of one database
	"change.seq", "change.id", "change.key", "change.change", "change.at", // its history
	"lost_change.id", "lost_change.seq", "lost_change.key", "lost_change.at", "lost_change.told", "lost_change.change",
	// clients log in once more
	"signer_secrets.one", "signer_secrets.version", "signer_secrets.next", "signer_secrets.current",
	"signer_secrets.previous", "signer_secrets.rollover",
}

// TestEveryColumnIsCopied: what a schema gets is copied, or is among what is not.
func TestEveryColumnIsCopied(t *testing.T) {
	ctx := t.Context()
	var want []string
	for _, table := range metastore.Tables {
		for _, c := range table.Columns {
			want = append(want, table.Name+"."+c)
		}
	}
	check := func(store string, has []string) {
		t.Helper()
		if len(has) < len(want) {
			t.Errorf("%s has the columns %q alone", store, has)
		}
		for _, column := range has {
			if !slices.Contains(want, column) && !slices.Contains(notCopied, column) {
				t.Errorf("%s: column %s is not copied to another store: add it to Tables, or say why not", store,
					column)
			}
		}
	}

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
	var has []string
	for rows.Next() {
		var column string
		if err := rows.Scan(&column); err != nil {
			t.Fatal(err)
		}
		has = append(has, column)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	check("sqlite", has)

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
	defer conn.Close(ctx) //nolint:errcheck // of a test
	list, _ := conn.Query(ctx,
		`SELECT table_name || '.' || column_name FROM information_schema.columns
			WHERE table_schema = 'public' AND table_name <> 'goose_db_version'`)
	if has, err = pgx.CollectRows(list, pgx.RowTo[string]); err != nil {
		t.Fatal(err)
	}
	check("postgres", has)
}
