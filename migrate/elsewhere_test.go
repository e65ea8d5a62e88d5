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

// TestElsewhere: a key that a run took over into another target is not one that was deleted
// here, nor one that is done: EDEKs of its versions open there alone, so that target must be
// named first. Then the key gets numbers above those that it has there.
func TestElsewhere(t *testing.T) {
	b := newBench(t)
	b.add(t, "finance", 3)
	b.add(t, "later", 1)
	hsm := b.target
	slip := memory.New(memory.Config{URI: keystoreURI, Sealed: true})
	t.Cleanup(func() { must(t, slip.Close()) })
	b.cfg.Target = slip
	if r := b.run(t); !r.Complete() {
		t.Fatalf("%+v", r)
	}
	if got := versions(t, slip, "finance"); !slices.Equal(got, []string{"finance@3"}) {
		t.Fatalf("made in the keystore: %q", got)
	}
	_, err := slip.Roll(t.Context(), "finance", nil)
	must(t, err)

	b.cfg.Target = hsm
	origins := func() (atSource, atKeystore migrate.Origin) {
		list, err := migrate.Origins(t.Context(), b.store, hsm.URI())
		must(t, err)
		for _, o := range list {
			switch {
			case o.Key == "finance" && o.Source == b.source.URI():
				atSource = o
			case o.Key == "finance" && o.Source == keystoreURI:
				atKeystore = o
			}
		}
		return atSource, atKeystore
	}
	if s, k := origins(); s.Key == "" || s.TakenOver || len(s.Made) > 0 || k.Key == "" || k.TakenOver ||
		k.Metadata.Versions != 4 {
		t.Errorf("origins %+v, %+v", s, k)
	}
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
	if r := b.run(t); r.Complete() || r.Keys[0].State != migrate.Elsewhere || len(versions(t, hsm, "later")) != 0 {
		t.Errorf("run %+v", r)
	} else {
		wants("run", r.Err().Error())
	}
	standing, err := b.engine(t).Status(t.Context())
	must(t, err)
	if len(standing.Keys) != 2 || standing.Keys[0].State != migrate.Elsewhere || standing.Counts.Blocked != 2 ||
		standing.Counts.Done != 0 {
		t.Fatalf("status %+v", standing)
	}
	wants("status", standing.Keys[0].Why)
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	if v.Different != 2 || len(v.Keys[0].Remarks) != 1 {
		t.Fatalf("verify %+v", v)
	}
	wants("verify", v.Keys[0].Remarks[0])
	ending, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true})
	must(t, err)
	if ending.Finished || len(ending.Refusals) == 0 {
		t.Fatalf("finish %+v", ending)
	}
	wants("finish", ending.Refusals[0])

	if s, k := origins(); s.Key == "" || s.TakenOver || len(s.Made) > 0 || k.Key == "" || k.TakenOver ||
		k.Metadata.Versions != 4 {
		t.Errorf("origins %+v, %+v", s, k)
	}

	// Status and finish tell by the journal alone, though the keystore cannot be asked.
	b.cfg.Beside = []migrate.Source{mute{slip}}
	if standing, err = b.engine(t).Status(t.Context()); err != nil ||
		!strings.Contains(standing.Keys[0].Why, "which is a source now: run the migration again") {
		t.Errorf("status %+v, %v", standing, err)
	}
	ending, err = b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true})
	if err != nil || ending.Finished || !strings.Contains(ending.Refusals[0],
		"which is a source now: run the migration again") {
		t.Errorf("finish %+v, %v", ending, err)
	}
	if _, err = b.engine(t).Run(t.Context()); err == nil || !strings.Contains(err.Error(),
		"but the number of its versions there cannot be read") {
		t.Errorf("run: %v", err)
	}

	b.cfg.Beside = []migrate.Source{slip}
	if r := b.run(t); !r.Complete() {
		t.Fatalf("%+v", r)
	}
	if got := versions(t, hsm, "finance"); !slices.Equal(got, []string{"finance@5"}) {
		t.Errorf("made with the keystore named: %q", got)
	}
	if s, k := origins(); !s.TakenOver || !slices.Equal(s.Made, []string{"finance@5"}) || !k.TakenOver || !k.Numbered {
		t.Errorf("origins %+v, %+v", s, k)
	}
	b.cfg.Beside = nil // its EDEKs are re-encrypted
	v, err = b.engine(t).Verify(t.Context())
	must(t, err)
	if v.Different != 0 || v.Same != 2 {
		t.Errorf("verify %+v", v)
	}
	if ending, err = b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true}); err != nil ||
		len(ending.Refusals) > 0 {
		t.Errorf("finish %+v, %v", ending, err)
	}
}

// mute is a source that gives no answer.
type mute struct{ migrate.Source }

func (mute) Metadata(context.Context, ...string) ([]*claviger.Metadata, error) {
	return nil, claviger.Errorf("test", claviger.SourceUnreachable, "", "no answer")
}

// TestElsewhereTwice: a version that a key has here, and that was made for it in another
// target too, is in conflict: by plan, run, verify and finish, and for the server.
func TestElsewhereTwice(t *testing.T) {
	b := newBench(t)
	b.add(t, "payroll", 1)
	r := b.run(t)
	records, err := b.store.Records(t.Context(), r.Run.Name)
	must(t, err)
	for _, rec := range records { // as a claviger before this one wrote it
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
		t.Errorf("run by the operator's word: %+v", r)
	}
}

// TestElsewhereRolled: the source rolls to the number of a version that was made for a key in
// another target. No order of the commands has "room" for it, nor calls the migration complete
// or finished, until an operator decides.
func TestElsewhereRolled(t *testing.T) {
	for _, when := range []string{"before the keystore is named", "after the key is here"} {
		t.Run(when, func(t *testing.T) { elsewhereRolled(t, when == "after the key is here") })
	}
}

func elsewhereRolled(t *testing.T, late bool) {
	b := newBench(t)
	b.add(t, "pin", 1)
	hsm := b.target
	slip := memory.New(memory.Config{URI: keystoreURI, Sealed: true})
	t.Cleanup(func() { must(t, slip.Close()) })
	b.cfg.Target = slip
	if r := b.run(t); !r.Complete() { // makes pin@1
		t.Fatalf("%+v", r)
	}
	b.cfg.Target = hsm
	const want = "pin@1 is one key at the source, which was rolled since, and another key in " + keystoreURI
	const cure = "set claviger.migration.theirs to pin@1"
	says := func(what, text string) {
		t.Helper()
		if !strings.Contains(text, want) || !strings.Contains(text, cure) || strings.Contains(text, "free here") {
			t.Errorf("%s: %s", what, text)
		}
	}
	roll := func() {
		t.Helper()
		_, err := b.source.Roll(t.Context(), "pin", nil)
		must(t, err)
	}
	if !late {
		roll()
		plan, err := b.engine(t).Plan(t.Context())
		must(t, err)
		says("plan, elsewhere", plan.Keys[0].Why)
	}
	b.cfg.Beside = []migrate.Source{slip}
	if late {
		if r := b.run(t); !r.Complete() {
			t.Fatalf("%+v", r)
		}
		roll()
	}
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	says("plan", plan.Keys[0].Why)
	if plan.Complete || late && plan.Ready() {
		t.Errorf("plan %+v", plan)
	}
	if late { // no run and no server has noted it
		v, err := b.engine(t).Verify(t.Context())
		must(t, err)
		says("verify before the run", strings.Join(v.Keys[0].Remarks, " "))
	}
	if r := b.run(t); r.Complete() || len(versions(t, hsm, "pin")) != 1 {
		t.Errorf("run %+v", r)
	} else {
		says("run", r.Keys[0].Why)
	}
	got, err := metastore.Conflicts(t.Context(), b.store)
	if err != nil || !slices.Equal(got[b.source.URI()], []string{"pin@1"}) {
		t.Errorf("conflicts %q, %v", got, err)
	}
	standing, err := b.engine(t).Status(t.Context())
	must(t, err)
	if len(standing.Conflicts) != 1 {
		t.Fatalf("status %+v", standing)
	}
	says("status", standing.Conflicts[0].Why)
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	if v.Different != 1 {
		t.Errorf("verify %+v", v)
	}
	says("verify", strings.Join(v.Keys[0].Remarks, " "))
	b.cfg.Beside = nil
	must(t, metastore.SetConflicts(t.Context(), b.store, nil)) // finish compares for itself
	ending, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true})
	must(t, err)
	if ending.Finished {
		t.Errorf("finish %+v", ending)
	}
	says("finish", strings.Join(ending.Refusals, "\n"))
	const other = "localjceks://file/var/lib/claviger/kms.keystore"
	for _, sources := range [][]string{{b.source.URI()}, {b.source.URI(), other}} {
		list, err := migrate.Origins(t.Context(), b.store, hsm.URI(), sources...)
		must(t, err)
		at := keystoreURI
		if len(sources) > 1 {
			at = other // as the server calls it
		}
		if !slices.ContainsFunc(list, func(o migrate.Origin) bool {
			return o.Source == at && slices.Equal(o.MadeThere, []string{"pin@1"})
		}) {
			t.Errorf("origins beside %q: %+v", sources, list)
		}
	}
	b.cfg.Theirs = map[string]bool{"pin@1": true}
	if r := b.run(t); !r.Complete() {
		t.Errorf("run by the operator's word: %+v", r)
	}
	ending, err = b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true,
		SourceRolled: true})
	if err != nil || strings.Contains(strings.Join(ending.Refusals, "\n"), "pin@1") {
		t.Errorf("finish by the operator's word: %+v, %v", ending, err)
	}
}
