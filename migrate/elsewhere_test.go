package migrate_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/migrate"
	"claviger/provider/memory"
)

const keystoreURI = "jceks://file@/var/lib/claviger/kms.keystore"

// elsewhereMigration is a testMigration whose source has the keys finance and later, which a run took over into a
// keystore. Then the configuration got an HSM as the target.
type elsewhereMigration struct {
	*testMigration
	hsm, keystore *memory.Provider
}

func newElsewhereMigration(t *testing.T) *elsewhereMigration {
	t.Helper()
	b := newTestMigration(t)
	b.add(t, "finance", 3)
	b.add(t, "later", 1)
	e := &elsewhereMigration{testMigration: b, hsm: b.target,
		keystore: memory.New(memory.Config{URI: keystoreURI, Sealed: true})}
	t.Cleanup(func() { must(t, e.keystore.Close()) })
	b.cfg.Target = e.keystore
	if r := b.run(t); !r.Complete() {
		t.Fatalf("%+v", r)
	}
	if got := versions(t, e.keystore, "finance"); !slices.Equal(got, []string{"finance@3"}) {
		t.Fatalf("made in the keystore: %q", got)
	}
	_, err := e.keystore.Roll(t.Context(), "finance", nil)
	must(t, err)
	b.cfg.Target = e.hsm
	return e
}

// origins returns the origins of finance at the source and at the keystore.
func (e *elsewhereMigration) origins(t *testing.T) (atSource, atKeystore migrate.Origin) {
	t.Helper()
	list, err := migrate.Origins(t.Context(), e.store, e.hsm.URI())
	must(t, err)
	for _, o := range list {
		switch {
		case o.Key == "finance" && o.Source == e.source.URI():
			atSource = o
		case o.Key == "finance" && o.Source == keystoreURI:
			atKeystore = o
		}
	}
	return atSource, atKeystore
}

// notHere checks that the origins have finance only at the source and at the keystore.
func (e *elsewhereMigration) notHere(t *testing.T) {
	t.Helper()
	if s, k := e.origins(t); s.Key == "" || s.TakenOver || len(s.Made) > 0 || k.Key == "" || k.TakenOver ||
		k.Metadata.Versions != 4 {
		t.Errorf("origins %+v, %+v", s, k)
	}
}

func (e *elsewhereMigration) finish(t *testing.T) *migrate.Ending {
	t.Helper()
	f, err := e.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true})
	must(t, err)
	return f
}

// TestElsewhere: a key that a run took over into another target is neither done nor deleted here. EDEKs of its
// versions open only there, so each command says that this target must be configured first.
func TestElsewhere(t *testing.T) {
	b := newElsewhereMigration(t)
	b.notHere(t)
	wants := func(what, text string) {
		t.Helper()
		for _, want := range []string{"was taken over into " + keystoreURI, "finance@3", "keep the key at its source",
			"run the migration again"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %s; want %q", what, text, want)
			}
		}
		if strings.Contains(text, "deleted here") || strings.Contains(text, "delete it at the source") {
			t.Errorf("%s: %s", what, text)
		}
	}
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	if plan.Ready() || plan.Complete || plan.Counts.Blocked != 2 || plan.Keys[0].State != migrate.Elsewhere {
		t.Errorf("plan %+v", plan)
	}
	wants("plan", plan.Keys[0].Why)
	if r := b.run(t); r.Complete() || r.Keys[0].State != migrate.Elsewhere || len(versions(t, b.hsm, "later")) != 0 {
		t.Errorf("run %+v", r)
	} else {
		wants("run", r.Err().Error())
	}
	status, err := b.engine(t).Status(t.Context())
	must(t, err)
	if len(status.Keys) != 2 || status.Keys[0].State != migrate.Elsewhere || status.Counts.Blocked != 2 ||
		status.Counts.Done != 0 {
		t.Fatalf("status %+v", status)
	}
	wants("status", status.Keys[0].Why)
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	if v.Different != 2 || len(v.Keys[0].Remarks) != 1 {
		t.Fatalf("verify %+v", v)
	}
	wants("verify", v.Keys[0].Remarks[0])
	ending := b.finish(t)
	if ending.Finished || len(ending.Refusals) == 0 {
		t.Fatalf("finish %+v", ending)
	}
	wants("finish", ending.Refusals[0])
	b.notHere(t)
}

// TestElsewhereAsSource: once the other target is configured as a source, a run takes the key over, with numbers
// above those that the key has there.
func TestElsewhereAsSource(t *testing.T) {
	b := newElsewhereMigration(t)
	if r := b.run(t); r.Complete() {
		t.Fatalf("%+v", r)
	}
	// Status and Finish read the journal only, so they work although the keystore does not answer.
	b.cfg.OtherSources = []migrate.Source{unreachable{b.keystore}}
	const again = "which is a source now: run the migration again"
	if status, err := b.engine(t).Status(t.Context()); err != nil || !strings.Contains(status.Keys[0].Why, again) {
		t.Errorf("status %+v, %v", status, err)
	}
	if ending := b.finish(t); ending.Finished || !strings.Contains(ending.Refusals[0], again) {
		t.Errorf("finish %+v", ending)
	}
	if _, err := b.engine(t).Run(t.Context()); err == nil || !strings.Contains(err.Error(),
		"but the number of its versions there cannot be read") {
		t.Errorf("run: %v", err)
	}

	b.cfg.OtherSources = []migrate.Source{b.keystore}
	if r := b.run(t); !r.Complete() {
		t.Fatalf("%+v", r)
	}
	if got := versions(t, b.hsm, "finance"); !slices.Equal(got, []string{"finance@5"}) {
		t.Errorf("made with the keystore as a source: %q", got)
	}
	if s, k := b.origins(t); !s.TakenOver || !slices.Equal(s.Made, []string{"finance@5"}) || !k.TakenOver ||
		!k.Numbered {
		t.Errorf("origins %+v, %+v", s, k)
	}
	b.cfg.OtherSources = nil // the keystore's EDEKs are re-encrypted
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	if v.Different != 0 || v.Same != 2 {
		t.Errorf("verify %+v", v)
	}
	if ending := b.finish(t); len(ending.Refusals) > 0 {
		t.Errorf("finish %+v", ending)
	}
}

// unreachable is a source that does not answer.
type unreachable struct{ migrate.Source }

func (unreachable) Metadata(context.Context, ...string) ([]*claviger.Metadata, error) {
	return nil, claviger.Errorf("test", claviger.SourceUnreachable, "", "no answer")
}

// TestElsewhereTwice: a version that a key has here, and that was made for the key in another target too, is in
// conflict. Plan, run, verify and finish say so, and the server opens no EDEK of it.
func TestElsewhereTwice(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "payroll", 1)
	r := b.run(t)
	records, err := b.store.Records(t.Context(), r.Run.Name)
	must(t, err)
	for _, rec := range records { // as older versions of claviger wrote it
		data := rec.Data
		if rec.Item == "" {
			run := r.Run
			run.Name, run.Target = "migration-2", keystoreURI
			data, err = json.Marshal(run)
			must(t, err)
		}
		must(t, b.store.Put(t.Context(), "migration-2", rec.Item, data))
	}
	const want = "payroll@1 is one key here and another key in " + keystoreURI
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	if plan.Ready() || plan.Complete || plan.Keys[0].State != migrate.Conflict ||
		!strings.Contains(plan.Keys[0].Why, want) {
		t.Errorf("plan %+v", plan)
	}
	if r := b.run(t); r.Complete() || !strings.Contains(r.Keys[0].Why, want) {
		t.Errorf("run %+v", r)
	}
	if got, err := metastore.Conflicts(t.Context(), b.store); err != nil || !slices.Equal(got[keystoreURI],
		[]string{"payroll@1"}) {
		t.Errorf("conflicts %q, %v", got, err)
	}
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	if v.Different != 1 || !strings.Contains(strings.Join(v.Keys[0].Remarks, " "), want) {
		t.Errorf("verify %+v", v)
	}
	ending, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true})
	must(t, err)
	if !strings.Contains(strings.Join(ending.Refusals, "\n"), want) {
		t.Errorf("finish %+v", ending)
	}
	b.cfg.Ours = map[string]bool{"payroll@1": true}
	if r := b.run(t); !r.Complete() {
		t.Errorf("run after the operator's decision: %+v", r)
	}
}

// TestElsewhereRolled: the source rolls to the number of a version that was made for a key in another target. No
// command calls the number free, and no command calls the migration complete or finished, until an operator decides.
func TestElsewhereRolled(t *testing.T) {
	for _, when := range []string{"before the keystore is named", "after the key is here"} {
		t.Run(when, func(t *testing.T) { elsewhereRolled(t, when == "after the key is here") })
	}
}

// needDecision fails the test unless text says which decision about pin@1 the operator must make.
func needDecision(t *testing.T, what, text string) {
	t.Helper()
	const want = "pin@1 is one key at the source, which was rolled since, and another key in " + keystoreURI
	const cure = "set claviger.migration.theirs to pin@1"
	if !strings.Contains(text, want) || !strings.Contains(text, cure) || strings.Contains(text, "free here") {
		t.Errorf("%s: %s", what, text)
	}
}

// elsewhereRolled is TestElsewhereRolled with one order: late means that the source rolls after the key is here.
func elsewhereRolled(t *testing.T, late bool) {
	b := newTestMigration(t)
	b.add(t, "pin", 1)
	hsm := b.target
	keystore := memory.New(memory.Config{URI: keystoreURI, Sealed: true})
	t.Cleanup(func() { must(t, keystore.Close()) })
	b.cfg.Target = keystore
	if r := b.run(t); !r.Complete() { // makes pin@1
		t.Fatalf("%+v", r)
	}
	b.cfg.Target = hsm
	roll := func() {
		t.Helper()
		_, err := b.source.Roll(t.Context(), "pin", nil)
		must(t, err)
	}
	if !late {
		roll()
		plan, err := b.engine(t).Plan(t.Context())
		must(t, err)
		needDecision(t, "plan, elsewhere", plan.Keys[0].Why)
	}
	b.cfg.OtherSources = []migrate.Source{keystore}
	if late {
		if r := b.run(t); !r.Complete() {
			t.Fatalf("%+v", r)
		}
		roll()
	}
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	needDecision(t, "plan", plan.Keys[0].Why)
	if plan.Complete || late && plan.Ready() {
		t.Errorf("plan %+v", plan)
	}
	if late { // no run and no server has recorded the conflict
		v, err := b.engine(t).Verify(t.Context())
		must(t, err)
		needDecision(t, "verify before the run", strings.Join(v.Keys[0].Remarks, " "))
	}
	if r := b.run(t); r.Complete() || len(versions(t, hsm, "pin")) != 1 {
		t.Errorf("run %+v", r)
	} else {
		needDecision(t, "run", r.Keys[0].Why)
	}
	rolledUndecided(t, b)
	rolledOrigins(t, b)
	b.cfg.Theirs = map[string]bool{"pin@1": true}
	if r := b.run(t); !r.Complete() {
		t.Errorf("run after the operator's decision: %+v", r)
	}
	ending, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true,
		SourceRolled: true})
	if err != nil || strings.Contains(strings.Join(ending.Refusals, "\n"), "pin@1") {
		t.Errorf("finish after the operator's decision: %+v, %v", ending, err)
	}
}

// rolledUndecided checks the recorded conflict, and what status, verify and finish say, after the run.
func rolledUndecided(t *testing.T, b *testMigration) {
	t.Helper()
	got, err := metastore.Conflicts(t.Context(), b.store)
	if err != nil || !slices.Equal(got[b.source.URI()], []string{"pin@1"}) {
		t.Errorf("conflicts %q, %v", got, err)
	}
	status, err := b.engine(t).Status(t.Context())
	must(t, err)
	if len(status.Conflicts) != 1 {
		t.Fatalf("status %+v", status)
	}
	needDecision(t, "status", status.Conflicts[0].Why)
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	if v.Different != 1 {
		t.Errorf("verify %+v", v)
	}
	needDecision(t, "verify", strings.Join(v.Keys[0].Remarks, " "))
	b.cfg.OtherSources = nil
	must(t, metastore.SetConflicts(t.Context(), b.store, nil)) // finish compares by itself
	ending, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true})
	must(t, err)
	if ending.Finished {
		t.Errorf("finish %+v", ending)
	}
	needDecision(t, "finish", strings.Join(ending.Refusals, "\n"))
}

// rolledOrigins checks that the keystore is an origin of pin@1, under the URI by which the server names it.
func rolledOrigins(t *testing.T, b *testMigration) {
	t.Helper()
	const other = "localjceks://file/var/lib/claviger/kms.keystore"
	for _, sources := range [][]string{{b.source.URI()}, {b.source.URI(), other}} {
		list, err := migrate.Origins(t.Context(), b.store, b.target.URI(), sources...)
		must(t, err)
		at := keystoreURI
		if len(sources) > 1 {
			at = other
		}
		if !slices.ContainsFunc(list, func(o migrate.Origin) bool {
			return o.Source == at && slices.Equal(o.MadeThere, []string{"pin@1"})
		}) {
			t.Errorf("origins with sources %q: %+v", sources, list)
		}
	}
}
