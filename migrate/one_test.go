package migrate_test

import (
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/migrate"
)

// TestRunKey migrates one of two keys, twice, and then runs the whole migration.
func TestRunKey(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "a", 2)
	b.add(t, "b", 1)
	e := b.engine(t)
	if m, err := e.SourceMetadata(t.Context(), "a"); err != nil || m.ACLName() != "a" || m.Versions != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	first, err := e.RunKey(t.Context(), "a")
	if err != nil || len(first) != 1 || !slices.Equal(first, versions(t, b.target, "a")) {
		t.Fatalf("%q, %v", first, err)
	}
	b.sameMetadata(t, "a")
	if names, err := b.target.Keys(t.Context()); err != nil || len(names) != 1 {
		t.Errorf("the target has %q, %v; want a alone", names, err)
	}
	again, err := e.RunKey(t.Context(), "a")
	if err != nil || !slices.Equal(again, first) || b.target.Objects() != 1 {
		t.Errorf("again: %q, %v, %d objects; want the same", again, err, b.target.Objects())
	}
	f, err := e.Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true})
	if err != nil || !slices.ContainsFunc(f.Refusals, func(s string) bool {
		return strings.Contains(s,
			"key b is planned")
	}) {
		t.Errorf("finish does not see that b is missing: %q, %v", f.Refusals, err)
	}
	r := b.run(t)
	if !r.Complete() || r.Counts.Done != 2 {
		t.Errorf("the run after it: %+v", r.Counts)
	}
	b.sameMetadata(t, "a", "b")
}

// TestRunKeyRefuses: the error of RunKey says why the key is not migrated.
func TestRunKeyRefuses(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "a", 1)
	addTo(t, b.target, "a", 1, 1, func(m *claviger.Metadata) { m.BitLength = 128 })
	b.add(t, "des", 1)
	b.cfg.Source = &stub{Source: b.source, change: func(m *claviger.Metadata) {
		if m.Name == "des" {
			m.Cipher = "DESede/CTR/NoPadding"
		}
	}}
	e := b.engine(t)
	for _, tt := range []struct {
		key  string
		kind claviger.Kind
		says string
	}{
		{"a", claviger.Invalid, "length 256 at the source, 128 here"},
		{"des", claviger.Invalid, "only AES keys can be made"},
		{"none", claviger.KeyNotFound, "key not found"},
	} {
		_, err := e.RunKey(t.Context(), tt.key)
		if err == nil || claviger.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want kind %v, %q", tt.key, err, tt.kind, tt.says)
		}
	}
	if _, err := e.SourceMetadata(t.Context(), "none"); claviger.KindOf(err) != claviger.KeyNotFound {
		t.Errorf("metadata of a key that does not exist: %v", err)
	}
	_, unlock, ok, err := metastore.Hold(t.Context(), b.store, migrate.LockName, false)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	defer unlock()
	if _, err := e.RunKey(t.Context(), "des"); claviger.KindOf(err) != claviger.Unavailable {
		t.Errorf("while another process migrates: %v", err)
	}
}
