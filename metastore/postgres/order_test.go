package postgres_test

import (
	"slices"
	"testing"
	"time"

	"claviger/metastore"
	"claviger/metastore/postgres"
)

// TestOrderOfUses checks that RecordUses and AddUse write their rows in one order, so that two nodes cannot deadlock.
func TestOrderOfUses(t *testing.T) {
	ctx, uri := t.Context(), emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri})
	last := time.UnixMilli(1)
	var uses []metastore.Use
	for _, of := range []string{"b", "a"} {
		for _, version := range []string{"k@1", "k@0"} {
			for _, op := range []string{"y", "x"} {
				uses = append(uses, metastore.Use{Source: of, Version: version, Op: op, Count: 1, Last: last})
			}
		}
	}
	given := slices.Clone(uses)
	if err := s.AddUse(ctx, uses); err != nil {
		t.Fatal(err)
	}
	lastUses := []metastore.LastUse{{Version: "k@1", Last: last}, {Version: "k@0", Last: last}}
	if err := s.RecordUses(ctx, lastUses); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(uses, given) {
		t.Errorf("AddUse has changed its argument to %+v", uses)
	}
	// A new table holds its rows in the order of their insertion.
	for statement, want := range map[string]string{
		`SELECT string_agg(version, ' ' ORDER BY ctid) FROM version_use`: "k@0 k@1",
		`SELECT string_agg(source || substr(version, 3) || op, ' ' ORDER BY ctid) FROM source_use`: "a0x a0y a1x a1y " +
			"b0x b0y b1x b1y",
	} {
		if got := query(t, uri, statement); got != want {
			t.Errorf("%s: %q, want %q", statement, got, want)
		}
	}
}
