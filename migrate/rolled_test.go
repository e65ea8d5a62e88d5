package migrate_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/provider"
	"claviger/provider/memory"
)

// rolledSince is the text of every report about one new version, and lostSince the text about one lost version.
const (
	rolledSince = "rolled at the source since the migration: 1 more"
	lostSince   = "the source has lost 1 versions since the migration"
)

// TestRolledSince: if the source has made or lost versions of a key since the run, verify says so and finish refuses.
// It does not matter how the source names its versions, and whether it shows the names. A further run does not
// change this. Finish succeeds after the operator's statement (SourceRolled).
func TestRolledSince(t *testing.T) {
	for _, tt := range []rolledTest{
		{"opaque names", true, false, 0, false, rolledSince + " (k@"},
		{"opaque names that are not shown", true, true, 0, false, rolledSince + ";"},
		{"numbers, with room", false, false, 10, false, ""},
		{"opaque names, lost", true, false, 0, true, lostSince},
		{"opaque names that are not shown, lost", true, true, 0, true, lostSince},
		{"numbers, lost", false, false, 10, true, lostSince},
	} {
		t.Run(tt.name, tt.run)
	}
}

// rolledTest is a case of TestRolledSince.
type rolledTest struct {
	name   string
	opaque bool   // the source's version names are not numbers
	hidden bool   // the source does not show its version names
	gap    int    // how many numbers the run leaves free for rolls at the source
	lose   bool   // the source loses a version; otherwise it makes one
	want   string // "": no difference
}

func (tt rolledTest) run(t *testing.T) {
	b := newTestMigration(t)
	b.source = memory.New(memory.Config{OpaqueIDs: tt.opaque, SequentialIDs: !tt.opaque, URI: b.source.URI()})
	src := &remoteKMS{stub: stub{Source: b.source, noNames: tt.hidden}}
	b.cfg.Source, b.cfg.Gap = src, tt.gap
	b.add(t, "k", 2)
	b.add(t, "quiet", 2)
	if r := b.run(t); !r.Complete() {
		t.Fatalf("%+v", r.Keys)
	}
	verify := func() *migrate.Verification {
		t.Helper()
		v, err := b.engine(t).Verify(t.Context())
		must(t, err)
		return v
	}
	if v := verify(); v.Different != 0 {
		t.Fatalf("before: %+v", v.Keys)
	}
	if tt.lose {
		src.change = func(m *claviger.Metadata) {
			if m.Name == "k" {
				m.Versions--
			}
		}
	} else if _, err := b.source.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"at once", "after a further run"} {
		v := verify()
		remarks := strings.Join(v.Keys[0].Remarks, "\n")
		if tt.want == "" {
			if v.Different != 0 || !strings.Contains(remarks, rolledSince) {
				t.Errorf("%s: %+v", when, v.Keys)
			}
		} else if v.Different != 1 || v.Keys[0].Same || !strings.Contains(remarks, tt.want) || !v.Keys[1].Same {
			t.Errorf("%s: %+v", when, v.Keys)
		}
		b.run(t)
	}
	tt.finish(t, b)
}

// finish checks that the migration can be finished only if the operator has confirmed the change, or if the new
// versions have free numbers.
func (tt rolledTest) finish(t *testing.T, b *testMigration) {
	t.Helper()
	finish := func(confirmed bool) *migrate.Ending {
		t.Helper()
		f, err := b.engine(t).Finish(t.Context(),
			migrate.FinishOptions{Since: noon, EDEKsDone: true, SourceRolled: confirmed, Get: nothingSet})
		must(t, err)
		return f
	}
	if tt.want == "" {
		if f := finish(false); !f.Finished {
			t.Errorf("refused: %q", f.Refusals)
		}
		return
	}
	if f := finish(false); f.Finished || f.Compared != nil ||
		!strings.Contains(strings.Join(f.Refusals, "\n"), "key k: "+tt.want[:20]) {
		t.Errorf("not refused: %+v", f)
	}
	// Finish is also refused without the source in the configuration.
	source := b.cfg.Source
	b.cfg.Source = nil
	if f := finish(false); f.Finished {
		t.Error("finished, because the source was removed from the configuration")
	}
	b.cfg.Source = source
	if f := finish(true); !f.Finished || f.Compared == nil {
		t.Errorf("after the operator's statement: %q", f.Refusals)
	}
}

// TestConflictBlocksFinish: if a server has recorded a version in conflict, status shows it, and finish is refused
// whether the source is configured or not. If claviger.migration.ours has the version, finish ends the migration. Then
// the conflict stays settled without the property.
func TestConflictBlocksFinish(t *testing.T) {
	b := newTestMigration(t)
	b.source = memory.New(memory.Config{SequentialIDs: true, URI: b.source.URI()})
	b.cfg.Source = &remoteKMS{stub: stub{Source: b.source}}
	b.add(t, "k", 1)
	if r := b.run(t); !r.Complete() {
		t.Fatalf("%+v", r.Keys)
	}
	uri := b.source.URI()
	// The source was restored from an older backup, so its count of versions is the same as at the run.
	must(t, metastore.SetConflicts(t.Context(), b.cfg.Store, map[string][]string{uri: {"k@1"}}))
	if v, err := b.engine(t).Verify(t.Context()); err != nil || v.Different != 1 ||
		!strings.Contains(textOf(report.Verification, v), "k@1") {
		t.Errorf("verify: %+v, %v", v, err)
	}
	b.cfg.Source = nil
	finish := func() *migrate.Ending {
		t.Helper()
		f, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true, SourceGone: true,
			Get: nothingSet})
		must(t, err)
		return f
	}
	// k@7 is a version of a key that was deleted here since.
	must(t, metastore.SetConflicts(t.Context(), b.cfg.Store, map[string][]string{uri: {"k@1", "k@7"}}))
	if f := finish(); f.Finished || len(f.Refusals) != 1 ||
		!strings.Contains(f.Refusals[0], "version k@1: rolled at the source since") {
		t.Errorf("refused: %q", f.Refusals)
	}
	s, err := b.engine(t).Status(t.Context())
	must(t, err)
	text := textOf(report.Status, s)
	if len(s.Conflicts) != 1 || !strings.Contains(text, "k@1 is one key here and another key at "+uri) {
		t.Errorf("status: %v\n%s", s.Conflicts, text)
	}
	for _, when := range []string{"at first", "after a call that was killed before it settled the conflict"} {
		must(t, metastore.SetConflicts(t.Context(), b.cfg.Store, map[string][]string{uri: {"k@1"}}))
		b.cfg.Ours = map[string]bool{"k@1": true}
		if f := finish(); !f.Finished {
			t.Errorf("%s: settled by the operator: %q", when, f.Refusals)
		}
		b.cfg.Ours = nil
		if f := finish(); !f.Finished {
			t.Errorf("%s: once more, without the property: %q", when, f.Refusals)
		}
	}
}

// TestRemadeAtTheSource: a migrated key was deleted at its source, and another key of its name was made and rolled
// there. Verify and finish say that, and do not call it a roll of the migrated key. A further run keeps the key as
// done. Finish succeeds with --source-rolled, or after the other key was deleted.
func TestRemadeAtTheSource(t *testing.T) {
	for _, gone := range []bool{false, true} { // the other key was deleted
		b := newTestMigration(t)
		b.source = memory.New(memory.Config{SequentialIDs: true, URI: b.source.URI()})
		b.cfg.Source = &remoteKMS{stub: stub{Source: b.source}}
		b.add(t, "k", 1)
		if r := b.run(t); !r.Complete() {
			t.Fatalf("%+v", r.Keys)
		}
		must(t, b.source.Delete(t.Context(), "k"))
		_, err := b.source.Create(t.Context(), provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256})
		must(t, err)
		_, err = b.source.Roll(t.Context(), "k", nil)
		must(t, err)
		const says = "k: the source has another key of that name, made "
		finish := func(confirmed bool) *migrate.Ending {
			t.Helper()
			f, err := b.engine(t).Finish(t.Context(),
				migrate.FinishOptions{Since: noon, EDEKsDone: true, SourceRolled: confirmed, Get: nothingSet})
			must(t, err)
			return f
		}
		for range 2 {
			v, err := b.engine(t).Verify(t.Context())
			must(t, err)
			text := textOf(report.Verification, v)
			if v.Different != 1 || !strings.Contains(text, says[3:]) || strings.Contains(text,
				"rolled at the source") ||
				strings.Contains(text, "versions of the source") {
				t.Errorf("verify: %s", text)
			}
			f := finish(false)
			text = strings.Join(f.Refusals, "\n")
			if f.Finished || !strings.Contains(text, says) || strings.Contains(text, "rolled at the source") {
				t.Errorf("finish: %s", text)
			}
			if r := b.run(t); !r.Complete() || r.Keys[0].State != migrate.Done {
				t.Errorf("a further run: %+v", r.Keys)
			}
		}
		if origins, err := migrate.Origins(t.Context(), b.cfg.Store, b.target.URI()); err != nil ||
			!origins[0].TakenOver {
			t.Errorf("%+v, %v", origins, err)
		}
		if gone {
			must(t, b.source.Delete(t.Context(), "k"))
			b.add(t, "other", 1)
			b.run(t)
		}
		if f := finish(!gone); !f.Finished {
			t.Errorf("gone=%t: %q", gone, f.Refusals)
		}
	}
}

// TestConflictOfAnOlderProgram: a migrated key was deleted at the source and another key of its name was made there. A
// run of an older claviger recorded the other key as a conflict or as gone. The older record of the migrated key still
// counts: Origins returns it, and a further run records the key as done. If the key here is not the migrated one, it
// stays in conflict.
func TestConflictOfAnOlderProgram(t *testing.T) {
	for _, recorded := range []migrate.State{migrate.Conflict, migrate.Gone} {
		for _, another := range []bool{false, true} { // the key here is not the migrated one
			b := newTestMigration(t)
			b.source = memory.New(memory.Config{SequentialIDs: true, URI: b.source.URI()})
			b.cfg.Source = &remoteKMS{stub: stub{Source: b.source}}
			b.add(t, "k", 1)
			b.run(t)
			first, err := migrate.Origins(t.Context(), b.cfg.Store, b.target.URI())
			must(t, err)
			must(t, b.source.Delete(t.Context(), "k"))
			if another {
				must(t, b.target.Delete(t.Context(), "k"))
				addTo(t, b.target, "k", 1, 5, func(m *claviger.Metadata) { m.Created = noon })
			}
			later := func(m *claviger.Metadata) { m.Created = born.Add(time.Hour) }
			b.add(t, "k", 2, later)
			ms, err := b.source.Metadata(t.Context(), "k")
			must(t, err)
			const run = "migration-20261123T130000.000Z"
			put := func(item, record string) {
				t.Helper()
				must(t, b.store.Put(t.Context(), run, item, []byte(record)))
			}
			put("", `{"run":"`+run+`","state":"incomplete","source":"`+b.source.URI()+`","target":"`+b.target.URI()+
				`","versionsMode":"auto","host":"h","started":"2026-11-23T13:00:00Z"}`)
			put("k",
				`{"key":"k","state":"`+string(recorded)+
					`","source":{"cipher":"AES/CTR/NoPadding","length":256,"created":"`+
					ms[0].Created.UTC().Format(time.RFC3339Nano)+`","versions":2},"count":0,"why":"created differs"}`)
			wantMigrated := func(when string) {
				t.Helper()
				origins, err := migrate.Origins(t.Context(), b.cfg.Store, b.target.URI())
				must(t, err)
				if o := origins[0]; !o.TakenOver || !o.Numbered || !o.Metadata.Created.Equal(born) ||
					!slices.Equal(o.Made, first[0].Made) {
					t.Errorf("%s, %s, another=%t: %+v", when, recorded, another, o)
				}
			}
			wantMigrated("recorded by the older release")
			want := migrate.Done
			if another {
				want = migrate.Conflict
			}
			if recorded == migrate.Gone { // the migrated key was deleted here before that, and undeleted later
				runs, err := b.store.Runs(t.Context())
				must(t, err)
				records, err := b.store.Records(t.Context(), runs[0])
				must(t, err)
				for _, r := range records {
					record := strings.Replace(string(r.Data), `"state":"done"`, `"state":"deleted"`, 1)
					must(t, b.store.Put(t.Context(), runs[0], r.Item, []byte(record)))
				}
				wantMigrated("deleted and undeleted")
			}
			for range 2 {
				if r := b.run(t); r.Keys[0].State != want {
					t.Errorf("%s, another=%t: a further run: %+v", recorded, another, r.Keys)
				}
				wantMigrated("a further run")
			}
			if another {
				continue
			}
			put("k",
				`{"key":"k","state":"conflict","source":{"created":"`+born.Format(time.RFC3339Nano)+`"},"count":0}`)
			if origins, err := migrate.Origins(t.Context(), b.cfg.Store, b.target.URI()); err != nil ||
				origins[0].TakenOver {
				t.Errorf("a conflict record of the migrated key itself: %+v, %v", origins, err)
			}
		}
	}
}
