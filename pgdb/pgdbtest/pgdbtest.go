// Package pgdbtest has the tests that every store in PostgreSQL passes.
package pgdbtest

import (
	"flag"
	"os"
	"strings"
	"testing"

	"claviger"
	"claviger/durable"
	"claviger/pgdb"
)

var update = flag.Bool("update", false, "rewrite parts.txt after a new migration")

// minParts is lower than the number of parts of any store. It detects a query that finds nothing.
const minParts = 5

// Parts describes a store whose schema is compared with its list of parts.
type Parts struct {
	URI   string // URI of an empty database
	Table string // table with the schema's version
	File  string // file with the list of parts, in the folder of the test
	// Open opens and closes the store.
	Open func() error
	// Break are statements that remove parts. Lacks is a part of the error of Open after that.
	Break []string
	Lacks string
}

// TestParts demands that File lists the parts of a new database, and that Open refuses a database without some parts,
// as after an interrupted restore.
func TestParts(t *testing.T, p Parts) {
	ctx := t.Context()
	if err := p.Open(); err != nil {
		t.Fatal(err)
	}
	db, err := pgdb.Open(ctx, pgdb.Config{URI: p.URI, What: "test", Where: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	parts, err := db.Parts(ctx, p.Table)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(parts, "\n") + "\n"
	if *update {
		if err := durable.Replace(p.File, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(p.File)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) || len(parts) < minParts {
		t.Errorf("a new database has\n%s\n%s has\n%s\nrun go test -run TestParts -update after a new migration",
			got, p.File, want)
	}
	for _, statement := range p.Break {
		if _, err := db.Pool().Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Open(); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), p.Lacks) {
		t.Errorf("without %q: %v", p.Break, err)
	}
}
