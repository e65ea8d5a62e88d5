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

var update = flag.Bool("update", false, "write parts.txt anew, after a new migration")

// leastParts is fewer than any store's schema has: a query that finds nothing is noticed.
const leastParts = 5

// Parts describes a store whose schema is compared with its list of parts.
type Parts struct {
	URI   string // of an empty database
	Table string // with the schema's version
	File  string // the list of parts, beside the test
	// Open opens and closes the store.
	Open func() error
	// Break are statements that remove parts, and Lacks is what Open then says of them.
	Break []string
	Lacks string
}

// TestParts demands that File names what a new database has, and that a database which lacks
// parts, as after a restoration that was broken off, is not opened.
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
	if got != string(want) || len(parts) < leastParts {
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
