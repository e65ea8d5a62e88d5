package postgres_test

import (
	"strings"
	"testing"
	"time"

	"claviger/metastore"
	"claviger/metastore/postgres"
)

// TestContentForm checks the form in which Content has lists, and that it leaves out the store's own settings.
func TestContentForm(t *testing.T) {
	ctx := t.Context()
	s := openConfig(t, postgres.Config{URI: emptyStore(t)})
	step := metastore.Intent{Key: "k", Op: "create", Refs: []metastore.Ref{{Object: "aa"}, {Object: "bb"}}}
	if _, err := s.Begin(ctx, step); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckWrites(ctx); err != nil {
		t.Fatal(err)
	}
	c, err := s.Content(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if rows := c.Rows["intent"]; len(rows) != 1 || rows[0][3] != `["0","1"]` || rows[0][4] != `["aa","bb"]` {
		t.Errorf("intents %v", rows)
	}
	for _, row := range c.Rows["setting"] {
		if row[0] == metastore.SettingProbe {
			t.Errorf("Content has the setting %v", row)
		}
	}
}

// TestUsedVersionIsNotUnused checks that the use of a version removes its row of the versions that were never used.
func TestUsedVersionIsNotUnused(t *testing.T) {
	ctx, uri := t.Context(), emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri})
	step := metastore.Intent{Key: "k", Op: "create", Refs: []metastore.Ref{{Object: "aa"}, {Object: "bb"}}}
	if _, err := s.Begin(ctx, step); err != nil {
		t.Fatal(err)
	}
	if err := s.RecordUses(ctx, []metastore.LastUse{{Version: "k@0", Last: time.UnixMilli(1)}}); err != nil {
		t.Fatal(err)
	}
	if got := query(t, uri, `SELECT string_agg(version, ' ') FROM version_unused`); got != "k@1" {
		t.Errorf("never used: %q", got)
	}
}

// TestVersionInUse checks that the error of a version names the id or HSM object that another version has.
func TestVersionInUse(t *testing.T) {
	ctx := t.Context()
	s := openConfig(t, postgres.Config{URI: emptyStore(t)})
	if err := s.Insert(ctx, key("k", "aa")); err != nil {
		t.Fatal(err)
	}
	sameID := key("k", "aa").List[0]
	sameID.Object = "another"
	for what, err := range map[string]error{
		"an object of another key": s.Insert(ctx, key("l", "aa")),
		"an id of the same key":    s.Append(ctx, "k", sameID),
	} {
		if err == nil || !strings.Contains(err.Error(), "is already in use by another version") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
