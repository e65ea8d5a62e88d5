package migrate_test

import (
	"encoding/json"
	"strings"
	"testing"

	"claviger/metastore"
	"claviger/migrate"
)

// TestJournalRecords: each record of the journal and each counter is shown as it is stored.
func TestJournalRecords(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "finance", 2)
	e := b.engine(t)
	if _, err := e.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.store.AddUse(t.Context(), []metastore.Use{{Source: b.source.URI(), Version: "finance@1", Op: "decrypt",
		Count: 7, Last: noon}}); err != nil {
		t.Fatal(err)
	}
	list, err := e.Journal(t.Context())
	if err != nil || len(list) != 2 || !strings.HasPrefix(list[0].Run, "migration-") || list[0].Item+list[1].Item !=
		"finance" || !json.Valid(list[1].Record) || !strings.Contains(string(list[0].Record)+string(list[1].Record),
		`"targetVersions":["finance@2"]`) {
		t.Errorf("%s, %v", list, err)
	}
	uses, err := e.UseCounters(t.Context())
	if err != nil || len(uses) != 1 || uses[0] != (migrate.UseCounter{Source: b.source.URI(), Version: "finance@1",
		Op: "decrypt", EDEKs: 7, Last: noon}) {
		t.Errorf("%+v, %v", uses, err)
	}
	if err := b.store.Put(t.Context(), "migration-x", "finance", []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Journal(t.Context()); err == nil || !strings.Contains(err.Error(), "run migration-x is damaged") {
		t.Errorf("a damaged record: %v", err)
	}
}

// TestCheckRecorded: a verdict counts as recorded if the journal has it, also after its JSON was printed with lists in
// place of null. A changed verdict, and one of another metastore, do not.
func TestCheckRecorded(t *testing.T) {
	b := newTestMigration(t)
	e := b.engine(t)
	v := &migrate.Verdict{Format: migrate.VerdictFormat, At: noon, Outcome: migrate.Needed, Source: "kms://x",
		Versions: []migrate.VersionVerdict{{Version: "k@1", EDEKs: 3, Paths: []string{"/z/f"}}},
		Accepted: []string{"zone /z has 1 files without an EDEK, for example /z/g"}}
	if err := e.RecordVerdict(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	kept, err := e.Journal(t.Context())
	if err != nil || len(kept) != 1 || strings.Contains(string(kept[0].Record), "/z/f") ||
		!strings.Contains(string(kept[0].Record), "/z/g") {
		t.Errorf("the record must have the accepted faults, and no paths of a version: %s, %v", kept, err)
	}
	printed := *v
	printed.Problems, printed.ToDo, printed.UnusedKeys = []string{}, []migrate.Step{}, []string{}
	if err := e.CheckRecorded(t.Context(), &printed); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*migrate.Verdict){
		"has another verdict of this name": func(v *migrate.Verdict) { v.Outcome = migrate.NoVerdict },
		"the file was changed": func(v *migrate.Verdict) {
			v.Versions = []migrate.VersionVerdict{{Version: "k@1", EDEKs: 2}}
		},
		"the journal has no verdict of this name": func(v *migrate.Verdict) { v.Name = "verdict-of-another" },
	} {
		other := printed
		change(&other)
		if err := e.CheckRecorded(t.Context(), &other); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	edited := printed
	edited.Outcome = migrate.Granted
	err = e.CheckRecorded(t.Context(), &edited)
	if err == nil || !strings.Contains(err.Error(), "contradicts itself") {
		t.Errorf("a verdict that contradicts itself: %v", err)
	}
	if len(printed.Versions[0].Paths) != 1 {
		t.Error("the comparison has changed the verdict")
	}
}
