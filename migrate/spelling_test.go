package migrate_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/internal/golden"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
)

// folding is a source like a Ranger KMS: it lists names in lower case, answers to every spelling of a name, and its
// answers have the spelling of the request.
type folding struct {
	migrate.Source
	ranger  bool
	keysErr error
}

func (f *folding) Keys(ctx context.Context) ([]string, error) {
	if f.keysErr != nil {
		return nil, f.keysErr
	}
	return f.Source.Keys(ctx)
}

func (f *folding) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	lower := make([]string, len(names))
	for i, n := range names {
		lower[i] = strings.ToLower(n)
	}
	ms, err := f.Source.Metadata(ctx, lower...)
	for i, m := range ms {
		if m != nil {
			m.Name = names[i]
		}
	}
	return ms, err
}

func (f *folding) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	vs, err := f.Source.Versions(ctx, strings.ToLower(key))
	for i := range vs {
		vs[i].Key, vs[i].Name = key, key+strings.TrimPrefix(vs[i].Name, strings.ToLower(key))
	}
	return vs, err
}

func (f *folding) Ranger(context.Context) bool { return f.ranger }

func aclName(name string) func(*claviger.Metadata) {
	return func(m *claviger.Metadata) { m.Attributes[claviger.ACLNameAttribute] = name }
}

// TestSourceFoldsCase: keys of a source that answers to every spelling are migrated under the spelling of their
// creation. They are found by any spelling, and uses are counted for every spelling in an EDEK.
func TestSourceFoldsCase(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "finance", 2, aclName("Finance"))
	b.add(t, "plain", 1)
	b.add(t, "shared", 1, aclName("Common")) // the ACL name of other rules, not a spelling of "shared"
	b.cfg.Source = &folding{Source: b.source}
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	golden.Compare(t, "testdata/folding.golden", textOf(report.Plan, plan))

	r := b.run(t)
	if want := map[string]migrate.State{"Finance": migrate.Done, "plain": migrate.Done,
		"shared": migrate.Done}; !maps.Equal(states(r.Keys), want) || !r.Complete() {
		t.Fatalf("%v, want %v", states(r.Keys), want)
	}
	if k := r.Keys[0]; k.Listed != "finance" || !k.Folded || !slices.Equal(k.SourceVersions,
		[]string{"Finance@0", "Finance@1"}) {
		t.Errorf("%+v", k)
	}
	ms, err := b.target.Metadata(t.Context(), "Finance", "finance", "plain", "shared")
	must(t, err)
	if ms[0] == nil || ms[1] != nil || ms[2] == nil || ms[3] == nil ||
		ms[0].Attributes[claviger.ACLNameAttribute] != "Finance" {
		t.Errorf("here: %v", ms)
	}
	for spelling, want := range map[string]string{"finance": "Finance", "FINANCE": "Finance", "Plain": "plain",
		"SHARED": "shared"} {
		if here, ok, err := metastore.Alias(t.Context(), b.store, spelling); err != nil || !ok || here != want {
			t.Errorf("alias of %s: %q, %v, %v; want %s", spelling, here, ok, err, want)
		}
	}
	if again := b.run(t); again.Changed {
		t.Errorf("a second run changed something: %+v", again)
	}
	v, err := b.engine(t).Verify(t.Context())
	if must(t, err); v.Same != 3 || v.Different != 0 {
		t.Errorf("verify: %s", textOf(report.Verification, v))
	}
	if names, err := b.engine(t).RunKey(t.Context(), "FINANCE"); err != nil ||
		len(names) != len(r.Keys[0].TargetVersions) {
		t.Errorf("one key by another spelling: %v, %v", names, err)
	}

	must(t, b.store.AddUse(t.Context(), []metastore.Use{{Source: b.source.URI(), Version: "FINANCE@1", Op: "decrypt",
		Count: 7, Last: noon}}))
	s, err := b.engine(t).Status(t.Context())
	must(t, err)
	if last := s.Keys[0].Versions[len(s.Keys[0].Versions)-1]; s.Keys[0].Key != "Finance" ||
		last.Source != "FINANCE@1" || last.Decrypted != 7 {
		t.Errorf("%+v", s.Keys[0])
	}
}

// TestAliasBeforeKey: a run that is killed right after it made a key has written its alias before. A key that an older
// claviger migrated under the listed spelling keeps that spelling.
func TestAliasBeforeKey(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "finance", 1, aclName("Finance"))
	b.run(t) // an older claviger, without spellings, makes "finance"
	b.add(t, "sales", 1, aclName("Sales"))
	b.cfg.Source = &folding{Source: b.source}
	b.cfg.OnStep = func(key, step string) error {
		if key == "Sales" && step == "committed" {
			return context.Canceled
		}
		return nil
	}
	if _, err := b.engine(t).Run(t.Context()); err == nil {
		t.Fatal("not stopped")
	}
	if here, ok, err := metastore.Alias(t.Context(), b.store, "sales"); err != nil || !ok || here != "Sales" {
		t.Errorf("%q, %v, %v", here, ok, err)
	}
	b.cfg.OnStep = nil
	r := b.run(t)
	if want := map[string]migrate.State{"finance": migrate.Done, "Sales": migrate.Done}; !maps.Equal(states(r.Keys),
		want) {
		t.Errorf("%v, want %v", states(r.Keys), want)
	}
	if here, _, _ := metastore.Alias(t.Context(), b.store, "FINANCE"); here != "finance" {
		t.Errorf("alias of the older run's key: %q", here)
	}
}

// TestSpellingsClash: if a source answers to every spelling, a key is in conflict with a key here whose name differs in
// case only. A source that distinguishes case may have both keys.
func TestSpellingsClash(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "finance", 1, aclName("Finance"))
	b.add(t, "other", 1)
	addTo(t, b.target, "FINANCE", 1, 1)
	b.cfg.Source = &folding{Source: b.source}
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	if s := states(plan.Keys); s["Finance"] != migrate.Conflict || s["other"] != migrate.Planned || plan.Ready() ||
		!strings.Contains(plan.Keys[0].Why, "FINANCE differs in case only") {
		t.Errorf("%v %+v", s, plan.Keys[0])
	}

	b = newTestMigration(t)
	b.add(t, "finance", 1)
	b.add(t, "Finance", 1)
	b.add(t, "z", 1)
	if r := b.run(t); !r.Complete() || r.Counts.Done != 3 {
		t.Errorf("%+v", r)
	}
	if here, ok, _ := metastore.Alias(t.Context(), b.store, "FINANCE"); ok {
		t.Errorf("an alias of a key whose source distinguishes case: %q", here)
	}
}

// TestRangersPolicies: if a Ranger KMS refuses a request, the cure names its policies and not kms-acls.xml.
func TestRangersPolicies(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Probes.User = "mig"
	b.cfg.Source = &folding{Source: b.source, ranger: true, keysErr: claviger.Errorf("kmsclient.Keys", claviger.Denied,
		"", "User:mig not allowed to do 'GET_KEYS'")}
	_, err := b.engine(t).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "getkeys, getmetadata) on key *") ||
		strings.Contains(err.Error(), "kms-acls.xml") {
		t.Errorf("%v", err)
	}
}
