package migrate_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/golden"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
)

// TestVerify: each kind of difference between the source and the keys here is reported.
func TestVerify(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "same", 2)
	b.add(t, "rolled", 1)
	b.add(t, "rolledThere", 1)
	b.add(t, "lost", 1)
	b.add(t, "changed", 1)
	b.run(t)
	src := &stub{Source: b.source, change: func(m *claviger.Metadata) {
		if m.Name == "changed" {
			m.Attributes["owner"], m.Description = "dev", nil
		}
	}}
	b.cfg.Source = src
	ctx := t.Context()
	if _, err := b.target.Roll(ctx, "rolled", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.source.Roll(ctx, "rolledThere", nil); err != nil {
		t.Fatal(err)
	}
	if err := b.target.Delete(ctx, "lost"); err != nil {
		t.Fatal(err)
	}
	b.add(t, "new", 1)
	addTo(t, b.target, "ours", 1, 1)
	v, err := b.engine(t).Verify(ctx)
	if err != nil {
		t.Fatal(err)
	}
	same := make(map[string]bool)
	for _, k := range v.Keys {
		same[k.Key] = k.Same
	}
	if want := map[string]bool{"same": true, "rolled": true, "rolledThere": false, "lost": false, "changed": false,
		"new": false}; !maps.Equal(same, want) || v.Same != 2 || v.Different != 4 {
		t.Errorf("%v, want %v", same, want)
	}
	golden.Compare(t, "testdata/verify.golden", textOf(report.Verification, v))
}

// TestNamesNotShown: a source that does not grant us the right GET shows no version names. Status then has only the
// names of versions that were used.
func TestNamesNotShown(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Source = &stub{Source: b.source, noNames: true}
	b.add(t, "k", 2)
	r := b.run(t)
	if !r.Complete() || r.Keys[0].SourceVersions != nil || !slices.Equal(r.Keys[0].TargetVersions, []string{"k@2"}) {
		t.Errorf("%+v", r)
	}
	must(t, b.store.AddUse(t.Context(), []metastore.Use{{Source: b.source.URI(), Version: "k@1", Op: "reencrypt",
		Count: 1000, Last: noon.Add(-time.Hour)}}))
	s, err := b.engine(t).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vs := s.Keys[0].Versions
	if len(vs) != 3 || vs[2].Source != "k@1" || vs[2].Reencrypted != 1000 || vs[0].Target != "" ||
		vs[1].Target != "k@2" {
		t.Errorf("%+v", vs)
	}
}

// TestStatusAndFinish: finish ends the migration when no use of the source is recent, and says what to change in the
// configuration.
func TestStatusAndFinish(t *testing.T) {
	b := newTestMigration(t)
	ctx := t.Context()
	finish := func(o migrate.FinishOptions) *migrate.Ending {
		t.Helper()
		f, err := b.engine(t).Finish(ctx, o)
		must(t, err)
		return f
	}
	conf := map[string]string{
		"cloudera.hsmkp.initiatemigration":                "true",
		"hadoop.kms.key.provider.reencryption.source.uri": "kms://http@old.example.com:16000/kms",
		"hadoop.kms.reencryption.crypto.enable":           "true",
		"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@/etc/luna.keystore," +
			"keytrustee://file@/var/lib/kms-keytrustee/keytrustee/.keytrustee",
	}
	opts := migrate.FinishOptions{Since: noon.Add(-24 * time.Hour), EDEKsDone: true,
		Get: func(n string) (string, string, bool) { v, ok := conf[n]; return v, "/etc/kms/kms-site.xml:12", ok }}

	if f := finish(opts); len(f.Refusals) != 1 || !strings.Contains(f.Refusals[0], "nothing was migrated") {
		t.Errorf("before any run: %q", f.Refusals)
	}
	b.add(t, "k", 2)
	r := b.run(t)
	must(t, b.store.AddUse(ctx, []metastore.Use{
		{Source: b.source.URI(), Version: "k@0", Op: "decrypt", Count: 7, Last: noon.Add(-30 * time.Hour)},
		{Source: b.source.URI(), Version: "k@1", Op: "reencrypt", Count: 500, Last: noon.Add(-2 * time.Hour)},
	}))
	s, err := b.engine(t).Status(ctx)
	must(t, err)
	status := textOf(report.Status, s)
	for i, v := range r.Keys[0].TargetVersions { // the ids are random
		status = strings.ReplaceAll(status, v, fmt.Sprintf("k@%032d", i))
	}
	golden.Compare(t, "testdata/status.golden", status)

	b.add(t, "late", 1)
	o := opts
	o.EDEKsDone = false
	f := finish(o)
	golden.Compare(t, "testdata/finish-refused.golden", textOf(report.Ending, f))
	if len(f.Refusals) != 3 || f.Finished || len(f.Properties) != 0 {
		t.Errorf("%+v", f)
	}
	b.run(t)
	opts.Since = noon.Add(-time.Hour)
	f = finish(opts)
	golden.Compare(t, "testdata/finish-properties.golden", textOf(report.Ending, f))
	if len(f.Refusals) != 0 || f.Finished || len(f.Properties) != 5 {
		t.Errorf("%+v", f)
	}

	conf = map[string]string{"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@/etc/luna.keystore",
		"cloudera.hsmkp.initiatemigration": "false"}
	b.cfg.Source = nil // the source is no longer configured
	for range 2 {
		if f = finish(opts); !f.Finished {
			t.Errorf("%+v", f)
		}
	}
	golden.Compare(t, "testdata/finish.golden", textOf(report.Ending, f))
	s, err = b.engine(t).Status(ctx)
	if err != nil || s.Runs[len(s.Runs)-1].State != migrate.Finished {
		t.Errorf("%+v, %v", s, err)
	}
	last := s.Runs[len(s.Runs)-1]
	if last.NotUsedSince == nil || !last.NotUsedSince.Equal(opts.Since) || last.Unused() == "" ||
		!strings.Contains(textOf(report.Status, s), last.Unused()) {
		t.Errorf("the journal and the status do not say since when the source was not used: %+v", last)
	}
	last.NotUsedSince = nil // as in a record of an older release
	if last.Unused() != "" {
		t.Error(last.Unused())
	}
}
