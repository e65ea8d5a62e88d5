package migrate_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/golden"
	"claviger/migrate"
	"claviger/migrate/report"
)

// TestPlanAndBlocked: keys that cannot be imported do not stop the import of others. The plan has the same states
// before the run, and changes nothing.
func TestPlanAndBlocked(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "done", 1)
	addTo(t, b.target, "done", 1, 1)
	b.add(t, "good", 2)
	b.add(t, "clash", 2)
	addTo(t, b.target, "clash", 1, 1, func(m *claviger.Metadata) {
		m.Description, m.BitLength, m.Created = nil, 128, born.Add(time.Millisecond)
		m.Attributes = map[string]string{claviger.ACLNameAttribute: "other", "new": "x"}
	})
	addTo(t, b.target, "ours", 1, 1)
	b.cfg.MaxVersions = 5
	b.add(t, "many", 6)
	src := &stub{Source: b.source, change: func(m *claviger.Metadata) {
		switch m.Name {
		case "sm4":
			m.Cipher = "SM4/CTR/NoPadding"
		case "short":
			m.BitLength = 64
		case "empty":
			m.Versions = 0
		}
	}, refuse: map[string]claviger.Kind{"secret": claviger.KeyDenied}}
	b.cfg.Source = src
	for _, k := range []string{"sm4", "short", "empty", "secret"} {
		b.add(t, k, 1)
	}
	b.cfg.Probes.User = "mig"
	objects := b.target.Objects()

	p, err := b.engine(t).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]migrate.State{"done": migrate.Done, "good": migrate.Planned, "clash": migrate.Conflict,
		"many": migrate.Planned,
		"sm4":  migrate.Unsupported, "short": migrate.Unsupported,
		"empty": migrate.Unsupported, "secret": migrate.Refused}
	if got := states(p.Keys); !maps.Equal(got, want) {
		t.Errorf("planned %v, want %v", got, want)
	}
	if p.Ready() || p.Counts.Blocked != 5 || p.Counts.Planned != 2 || p.Counts.NewVersions != 2 ||
		!slices.Equal(p.OnlyTarget, []string{"ours"}) {
		t.Errorf("plan %+v", p)
	}
	if runs, err := b.store.Runs(t.Context()); err != nil || len(runs) != 0 || b.target.Objects() != objects {
		t.Errorf("the plan changed something: %q, %v, %d objects", runs, err, b.target.Objects())
	}
	golden.Compare(t, "testdata/plan.golden", textOf(report.Plan, p))

	r := b.run(t)
	want["good"], want["many"] = migrate.Done, migrate.Done
	if got := states(r.Keys); !maps.Equal(got, want) || r.Complete() || b.target.Objects() != objects+2 {
		t.Errorf("after the run %v, want %v", got, want)
	}
	golden.Compare(t, "testdata/conflicts.golden", r.Err().Error()+"\n")
	_, err = b.engine(t).AtStart(t.Context())
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "cloudera.hsmkp.initiatemigration") ||
		!strings.Contains(err.Error(), "key clash (conflict)") {
		t.Errorf("start: %v", err)
	}

	// After the causes are removed, the same run is continued and completes.
	for _, k := range []string{"sm4", "short", "empty", "secret"} {
		if err := b.source.Delete(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.target.Delete(t.Context(), "clash"); err != nil {
		t.Fatal(err)
	}
	r2 := b.run(t)
	if !r2.Complete() || r2.Run.Name != r.Run.Name || r2.Run.Resumed == 0 {
		t.Errorf("after the causes were removed: %+v", r2)
	}
	b.sameMetadata(t, "done", "good", "clash")
}

// TestPlanOfNoKeys: a plan is not ready if the source has no keys: the path of a keystore file may be wrong.
func TestPlanOfNoKeys(t *testing.T) {
	b := newTestMigration(t)
	p, err := b.engine(t).Plan(t.Context())
	must(t, err)
	text := textOf(report.Plan, p)
	if p.Ready() || !strings.Contains(text, "not tried  rights at the source: the source lists no key") ||
		!strings.Contains(text, "check that hadoop.kms.key.provider.reencryption.source.uri names") {
		t.Errorf("ready %v:\n%s", p.Ready(), text)
	}
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	if text := textOf(report.Verification, v); !v.Empty() || !strings.Contains(text, "Nothing was compared") {
		t.Errorf("verify: empty %v:\n%s", v.Empty(), text)
	}
	b.add(t, "k", 1)
	if v, err = b.engine(t).Verify(t.Context()); err != nil || v.Empty() {
		t.Errorf("verify with a key: %v, %v", v.Empty(), err)
	}
	if p, err = b.engine(t).Plan(t.Context()); err != nil || !p.Ready() {
		t.Errorf("with a key: ready %v, %v", p.Ready(), err)
	}
}
