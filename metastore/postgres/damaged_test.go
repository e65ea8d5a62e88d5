package postgres_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// TestDamagedAttributes checks that attributes which are not texts are an error, and that the error gives the
// connection back to the pool.
func TestDamagedAttributes(t *testing.T) {
	uri := emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri})
	for _, name := range []string{"deleted", "k"} {
		k := key(name, name+"1")
		k.List = append(k.List, metastore.Version{ID: name + "2", Object: name + "2", Check: []byte{1}})
		if err := s.Insert(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SoftDelete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	exec(t, uri, `UPDATE ez_key SET attributes = '{"a": 1}'; UPDATE deleted_key SET attributes = '{"a": 1}'`)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 10 { // more often than the pool has connections
		_, get := s.Get(ctx, "k")
		_, _, byVersion := s.ByVersion(ctx, "k@k1")
		_, deleted := s.DeletedKeys(ctx)
		for name, err := range map[string]error{"Get": get, "ByVersion": byVersion, "DeletedKeys": deleted} {
			if err == nil || !strings.Contains(err.Error(), "attributes of the key are damaged") {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

// TestDamagedSettings checks that settings which a store reads itself must have their form.
func TestDamagedSettings(t *testing.T) {
	s := openConfig(t, postgres.Config{URI: emptyStore(t)})
	if err := s.SetSetting(t.Context(), metastore.SettingLastUsesSince, "yesterday"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.LastUses(t.Context(), "k@0"); !claviger.Is(err, claviger.Internal) ||
		!strings.Contains(err.Error(), metastore.SettingLastUsesSince) {
		t.Errorf("LastUses: %v", err)
	}
	if err := s.SetSetting(t.Context(), metastore.SettingMoved, "{"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetSetting(t.Context(), "name", "value"); !claviger.Is(err, claviger.Internal) {
		t.Errorf("a change after half a mark that the store was moved: %v", err)
	}
}

// TestFillRefusesTexts checks that the error names the row that has a text which PostgreSQL cannot store, or the list
// of changes that cannot be read.
func TestFillRefusesTexts(t *testing.T) {
	s := openConfig(t, postgres.Config{URI: emptyStore(t)})
	for want, rows := range map[string]map[string][][]any{
		"the row of the key has in column cipher": {"ez_key": {{int64(1), "the key", "a\x00", int64(128), nil, "{}",
			int64(1)}}},
		"the row of 1 has in column item": {"journal": {{int64(1), "a run", "a\xff", []byte{}, int64(1)}}},
		"the row of the intent has in column op": {"intent": {{int64(1), "the intent", "a\x00", "[]", "[]", int64(1),
			[]byte{}}}},
		"setting history.changes": {"setting": {{"history.changes", "{"}}},
	} {
		err := s.Fill(t.Context(), &metastore.Content{Rows: rows})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
