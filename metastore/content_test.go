package metastore_test

import (
	"context"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/metastore/sqlite"
)

// full has the methods to fill each table of a store.
type full interface {
	metastore.Store
	metastore.Movable
	metastore.Delegations
}

// fill writes at least one row into each table.
func fill(t *testing.T, s full) {
	t.Helper()
	ctx := t.Context()
	at := time.UnixMilli(1764000000000).UTC()
	description, empty := "zone of <finance> & co", ""
	object := 0
	version := func(id string) metastore.Version {
		object++
		return metastore.Version{ID: id, Object: fmt.Sprintf("%016x", object),
			Created: at.Add(time.Duration(object) * time.Second), Check: []byte{1, 2, 3, 4, 5, 6, 7, byte(object)}}
	}
	key := func(name string, d *string, attributes map[string]string, ids ...string) metastore.Key {
		k := metastore.Key{Metadata: claviger.Metadata{Name: name, Cipher: claviger.DefaultCipher, BitLength: 256,
			Created: at, Description: d, Attributes: attributes}}
		for _, id := range ids {
			k.List = append(k.List, version(id))
		}
		return k
	}
	steps := []func() error{
		func() error {
			return s.Insert(ctx, key("zone", &description, map[string]string{"key.acl.name": "finänce"}, "3", "4"))
		},
		func() error { return s.Insert(ctx, key("old", &empty, nil, "0123456789abcdef")) },
		func() error { return s.Prepend(ctx, "zone", version("2")) },
		func() error { return s.Append(ctx, "zone", version("7")) },
		func() error { return s.Insert(ctx, key("gone", nil, nil, "0")) },
		func() error { return s.SoftDelete(ctx, "gone") },
		func() error { return s.Insert(ctx, key("gone", nil, map[string]string{"a": "b"}, "1")) },
		func() error { return s.SoftDelete(ctx, "gone") },
		func() error { return s.SkipNumbers(ctx, "elsewhere", 40) },
		func() error {
			_, err := s.Begin(ctx, metastore.Intent{Key: "begun", Op: "create",
				Refs: []metastore.Ref{{Object: "00000000000000aa"},
					{Object: "00000000000000bb"}}, Begun: at, Payload: []byte(`{"bits":128}`)})
			return err
		},
		func() error { return s.Put(ctx, "migration-1", "", []byte(`{"state":"done"}`)) },
		func() error { return s.Put(ctx, "migration-1", "zone", []byte{0, 255, 7}) },
		func() error { return s.Put(ctx, "adoption", "", nil) },
		func() error {
			return s.AddUse(ctx, []metastore.Use{{Source: "kms://a", Version: "zone@3", Op: "decrypt", Count: 7,
				Last: at}})
		},
		func() error { return s.RecordUses(ctx, []metastore.LastUse{{Version: "zone@7", Last: at}}) },
		func() error { return s.SetSetting(ctx, "store.id", strings.Repeat("ab", 16)) },
		func() error { return s.SetSetting(ctx, metastore.SettingLastUsesSince, "1700000000000") },
		func() error { _, err := s.NextSequences(ctx, 12); return err },
		func() error { _, err := s.NextKeyID(ctx); return err },
		func() error {
			return s.PutMasterKey(ctx, metastore.MasterKey{ID: 1, Expires: at, Key: []byte("secret")})
		},
		func() error {
			return s.PutDelegation(ctx, metastore.Delegation{Sequence: 12, Identifier: []byte("id"),
				Password: []byte("pw"), Renew: at})
		},
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

// readAll returns the results of the methods that read, by a short name.
func readAll(t *testing.T, s full) map[string]any {
	t.Helper()
	ctx := t.Context()
	results := map[string]any{}
	add := func(what string, v any, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		results[what] = v
	}
	names, err := s.Names(ctx)
	add("names", names, err)
	keys, err := s.Get(ctx, "zone", "old")
	add("keys", keys, err)
	deleted, err := s.DeletedKeys(ctx)
	add("deleted", deleted, err)
	for _, name := range []string{"zone", "old", "gone", "elsewhere", "begun"} {
		next, err := s.NextNumber(ctx, name)
		add("next "+name, next, err)
		given, err := s.Numbered(ctx, name, 1)
		add("given "+name, given, err)
	}
	pending, err := s.Pending(ctx)
	add("pending", pending, err)
	runs, err := s.Runs(ctx)
	add("runs", runs, err)
	records, err := s.Records(ctx, "migration-1")
	add("records", records, err)
	uses, err := s.Uses(ctx)
	add("uses", uses, err)
	last, since, err := s.LastUses(ctx, "zone@7", "zone@3")
	add("last", last, err)
	add("since", since, err)
	id, _, err := s.Setting(ctx, "store.id")
	add("id", id, err)
	masters, err := s.MasterKeys(ctx)
	add("masters", masters, err)
	token, ok, err := s.Delegation(ctx, 12)
	add("token", token, err)
	add("token exists", ok, nil)
	return results
}

// TestContent copies the content of each kind of store to each kind of store. All reads must return the same from the
// copy, and the next rows of the copy must get higher numbers than the copied rows.
func TestContent(t *testing.T) {
	kinds := map[string]func(*testing.T) full{
		"sqlite": func(t *testing.T) full {
			s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "m.db"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
		"postgres": func(t *testing.T) full {
			s, err := postgres.Open(t.Context(), postgres.Config{URI: pgtest.Shared(t).Database(t)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
	}
	for from, openFrom := range kinds {
		for to, openTo := range kinds {
			t.Run(from+" to "+to, func(t *testing.T) {
				ctx := t.Context()
				a, b := openFrom(t), openTo(t)
				fill(t, a)
				c, err := a.Content(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, table := range metastore.Tables {
					if len(c.Rows[table.Name]) == 0 {
						t.Errorf("table %s is empty", table.Name)
					}
				}
				if err := metastore.SetMoved(ctx, a, b.URI()); err != nil {
					t.Fatal(err)
				}
				if err := b.Fill(ctx, c); err != nil {
					t.Fatal(err)
				}
				if got, err := b.Content(ctx); err != nil || c.Differ(got) != nil || got.NextToken != c.NextToken ||
					got.NextMasterKey != c.NextMasterKey {
					t.Errorf("%v, differing in %q: %v", err, c.Differ(got), got)
				}
				if want, got := readAll(t, a), readAll(t, b); !reflect.DeepEqual(got, want) {
					for what := range want {
						if !reflect.DeepEqual(got[what], want[what]) {
							t.Errorf("%s is %+v, want %+v", what, got[what], want[what])
						}
					}
				}
				if m, err := metastore.MovedTo(ctx, a); err != nil || m == nil || m.To != b.URI() {
					t.Errorf("%+v, %v", m, err)
				}
				if m, err := metastore.MovedTo(ctx, b); err != nil || m != nil {
					t.Errorf("the copy is marked as moved: %+v, %v", m, err)
				}
				if err := b.Fill(ctx, c); !claviger.Is(err, claviger.Invalid) {
					t.Errorf("Fill of a store that is not empty: %v", err)
				}
				useCopy(ctx, t, b)
			})
		}
	}
}

// useCopy adds rows to a store that was filled with the content of another store.
func useCopy(ctx context.Context, t *testing.T, s full) {
	t.Helper()
	if first, err := s.NextSequences(ctx, 1); err != nil || first != 13 {
		t.Errorf("the next token is %d, %v", first, err)
	}
	if id, err := s.NextKeyID(ctx); err != nil || id != 2 {
		t.Errorf("the next master key is %d, %v", id, err)
	}
	if err := s.SoftDelete(ctx, "zone"); err != nil {
		t.Error(err)
	}
	if list, err := s.DeletedKeys(ctx); err != nil || len(list) != 3 || list[2].Name != "zone" ||
		len(list[2].List) != 4 {
		t.Errorf("%+v, %v", list, err)
	}
	in, err := s.Begin(ctx, metastore.Intent{Key: "zone", Op: "create",
		Refs: []metastore.Ref{{Object: "00000000000000cc"}}})
	if err != nil || in.Refs[0].ID != "8" {
		t.Errorf("%+v, %v", in, err)
	}
	if err := s.Put(ctx, "later", "", nil); err != nil {
		t.Error(err)
	}
	if runs, err := s.Runs(ctx); err != nil || strings.Join(runs, " ") != "migration-1 adoption later" {
		t.Errorf("%q, %v", runs, err)
	}
}

// TestTextThatPostgreSQLCannotKeep checks that Fill of a text with a NUL names the row, and writes nothing. A NUL in an
// attribute is no problem, because attributes are JSON.
func TestTextThatPostgreSQLCannotKeep(t *testing.T) {
	ctx := t.Context()
	lite, err := sqlite.Open(ctx, filepath.Join(t.TempDir(), "m.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lite.Close() }()
	pg, err := postgres.Open(ctx, postgres.Config{URI: pgtest.Database(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pg.Close() }()
	insert := func(name string, description string, attributes map[string]string) {
		t.Helper()
		k := metastore.Key{Metadata: claviger.Metadata{Name: name, Cipher: claviger.DefaultCipher, BitLength: 128,
			Created: time.UnixMilli(1), Description: &description, Attributes: attributes},
			List: []metastore.Version{{ID: "0", Object: fmt.Sprintf("%016x", len(name)), Created: time.UnixMilli(1),
				Check: make([]byte, 8)}}}
		if err := lite.Insert(ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	insert("good", "d", map[string]string{"x": "a\x00b"})
	insert("mined", "a\x00b", nil)
	c, err := lite.Content(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := pg.Fill(ctx, c); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "ez_key") ||
		!strings.Contains(err.Error(), "mined") || !strings.Contains(err.Error(), "description") {
		t.Errorf("%v", err)
	}
	if names, err := pg.Names(ctx); err != nil || len(names) > 0 {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := lite.Remove(ctx, "mined"); err != nil {
		t.Fatal(err)
	}
	if c, err = lite.Content(ctx); err != nil {
		t.Fatal(err)
	}
	if err := pg.Fill(ctx, c); err != nil {
		t.Error(err)
	}
}
