package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"claviger"
	"claviger/migrate"
)

// TestRun: a run makes all keys with the source's metadata, and a second run changes nothing.
func TestRun(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "zone1", 3)
	b.add(t, "zone2", 1, func(m *claviger.Metadata) { m.Description, m.Attributes, m.BitLength = nil, nil, 128 })
	b.add(t, "odd @/%", 2, func(m *claviger.Metadata) { m.Description = text("") })
	var steps []string
	var last migrate.Progress
	b.cfg.OnStep = func(key, step string) error { steps = append(steps, key+":"+step); return nil }
	b.cfg.Progress = func(p migrate.Progress) { last = p }

	r := b.run(t)
	if !r.Complete() || !r.Changed || r.Counts.Done != 3 || r.Counts.NewVersions != 3 || r.Err() != nil {
		t.Errorf("result %+v, %v", r.Counts, r.Err())
	}
	b.sameMetadata(t, "zone1", "zone2", "odd @/%")
	if last.Keys != 3 || last.KeysTotal != 3 || last.Versions != 3 || last.VersionsTotal != 3 {
		t.Errorf("last progress %+v", last)
	}
	const want = "zone2:importing zone2:intent zone2:generated 1 of 1 zone2:committed zone2:done"
	if !strings.Contains(strings.Join(steps, " "), want) {
		t.Errorf("steps %q", steps)
	}
	for _, k := range r.Keys {
		if !slices.Equal(k.SourceVersions, versions(t, b.source, k.Key)) || !slices.Equal(k.TargetVersions,
			versions(t, b.target, k.Key)) {
			t.Errorf("%s: %q -> %q", k.Key, k.SourceVersions, k.TargetVersions)
		}
	}
	objects := b.target.Objects()

	// A second run changes nothing, not even the journal.
	before, err := b.store.Records(t.Context(), r.Run.Name)
	if err != nil {
		t.Fatal(err)
	}
	steps = nil
	r2 := b.run(t)
	if r2.Changed || !r2.Complete() || len(steps) != 0 || r2.Run.Name != r.Run.Name || b.target.Objects() != objects {
		t.Errorf("second run: %+v, steps %q", r2, steps)
	}
	if runs, err := b.store.Runs(t.Context()); err != nil || len(runs) != 1 {
		t.Errorf("runs %q, %v", runs, err)
	}
	if after, err := b.store.Records(t.Context(), r.Run.Name); err != nil || len(after) != len(before) {
		t.Errorf("records %v, %v", after, err)
	}

	// A key that is new at the source gets a run of its own, which does not change the other keys.
	b.add(t, "zone0", 1)
	r3 := b.run(t)
	if !r3.Changed || !r3.Complete() || r3.Run.Name == r.Run.Name || r3.Counts.NewVersions != 1 ||
		b.target.Objects() != objects+1 {
		t.Errorf("third run: %+v", r3)
	}
	if recs, err := b.store.Records(t.Context(), r3.Run.Name); err != nil || len(recs) != 2 {
		t.Errorf("records of the third run: %v, %v", recs, err)
	}
	b.sameMetadata(t, "zone0", "zone1", "zone2", "odd @/%")
}

// TestCurrentVersionOnly: with Current, one version is made, and verify says so.
func TestCurrentVersionOnly(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Versions = migrate.Current
	b.add(t, "k", 5)
	r := b.run(t)
	if !r.Complete() || b.target.Objects() != 1 {
		t.Errorf("%+v, %d objects", r, b.target.Objects())
	}
	v, err := b.engine(t).Verify(t.Context())
	if err != nil || v.Different != 0 || len(v.Keys) != 1 || !strings.Contains(strings.Join(v.Keys[0].Remarks, " "),
		"one version was made for 5") {
		t.Errorf("verify %+v, %v", v, err)
	}
	s, err := b.engine(t).Status(t.Context())
	if err != nil || len(s.Keys) != 1 {
		t.Fatal(s, err)
	}
	for i, m := range s.Keys[0].Versions {
		if m.Source != fmt.Sprintf("k@%d", i) || (m.Target != "") != (i == 4) {
			t.Errorf("version %d: %+v", i, m)
		}
	}
	// A later run in the other mode does not import the key again.
	b.cfg.Versions = migrate.All
	if r := b.run(t); r.Changed || b.target.Objects() != 1 {
		t.Errorf("%+v", r)
	}
}

// TestFailedKeys: a key that cannot be imported does not stop the import of the others.
func TestFailedKeys(t *testing.T) {
	b := newTestMigration(t)
	for _, k := range []string{"a", "b", "c", "d"} {
		b.add(t, k, 1)
	}
	f := &failing{Target: b.target, errs: map[string]error{
		"b": claviger.Errorf("hsm.Import", claviger.Internal, "b", "CKR_FUNCTION_FAILED"),
		"c": claviger.E("hsm.Import", claviger.KeyExists, "c", nil),
	}}
	b.cfg.Target = f
	r := b.run(t)
	want := map[string]migrate.State{"a": migrate.Done, "b": migrate.Failed, "c": migrate.Conflict, "d": migrate.Done}
	if got := states(r.Keys); !maps.Equal(got, want) || r.Complete() {
		t.Errorf("%v, %+v", got, r.Run)
	}
	if !strings.Contains(r.Keys[1].Why, "CKR_FUNCTION_FAILED") {
		t.Errorf("why: %q", r.Keys[1].Why)
	}
	f.errs = nil
	if r := b.run(t); !r.Complete() {
		t.Errorf("second run: %+v", r)
	}
}

// TestUnreachableTarget: a run ends after a few keys if the HSM cannot be reached, so that not every key waits for a
// timeout.
func TestUnreachableTarget(t *testing.T) {
	b := newTestMigration(t)
	f := &failing{Target: b.target, errs: map[string]error{}}
	for i := range 20 {
		k := fmt.Sprintf("k%02d", i)
		b.add(t, k, 1)
		f.errs[k] = claviger.Errorf("hsm.Import", claviger.Unavailable, k, "CKR_DEVICE_REMOVED")
	}
	b.cfg.Target = f
	r := b.run(t)
	if f.calls > 5 || r.Complete() || r.Counts.Planned < 15 || !strings.Contains(r.Err().Error(), "not begun") &&
		!strings.Contains(r.Err().Error(), "more") {
		t.Errorf("%d imports tried, %+v", f.calls, r.Counts)
	}
	f.errs = nil
	if r := b.run(t); !r.Complete() || r.Counts.Done != 20 {
		t.Errorf("afterwards: %+v", r.Counts)
	}
}

// TestDeletedHere: a run does not import again a key that was deleted here after its migration.
func TestDeletedHere(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	b.add(t, "other", 1)
	b.run(t)
	if err := b.target.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r, err := b.engine(t).AtStart(t.Context())
		if err != nil || states(r.Keys)["k"] != migrate.Deleted || !r.Complete() {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if b.target.Objects() != 1 {
		t.Error("the deleted key was imported again")
	}
	// Another key that is made here under the name is in conflict with the source's key.
	addTo(t, b.target, "k", 1, 1, func(m *claviger.Metadata) { m.Created = noon })
	if r := b.run(t); states(r.Keys)["k"] != migrate.Conflict {
		t.Errorf("%v", states(r.Keys))
	}
}

// TestInterruptedSteps interrupts a run after each durable step in turn, and runs the migration again. The result must
// have the same keys and the same number of objects as a run without interruption. TestKill does the same to a real
// process on a real token.
func TestInterruptedSteps(t *testing.T) {
	build := func(t *testing.T) *testMigration {
		b := newTestMigration(t)
		b.add(t, "a", 2)
		b.add(t, "b", 1)
		addTo(t, b.target, "c", 1, 1)
		b.add(t, "c", 1)
		return b
	}
	total := 0
	count := build(t)
	count.cfg.OnStep = func(_, _ string) error { total++; return nil }
	count.run(t)
	want := count.target.Objects()
	if total < 12 {
		t.Fatalf("only %d steps", total)
	}
	for stop := 1; stop <= total; stop++ {
		b := build(t)
		n, interrupted := 0, errors.New("interrupted")
		b.cfg.OnStep = func(_, _ string) error {
			if n++; n == stop {
				return interrupted
			}
			return nil
		}
		if _, err := b.engine(t).Run(t.Context()); !errors.Is(err, interrupted) {
			t.Fatalf("step %d: %v", stop, err)
		}
		b.cfg.OnStep = nil
		r := b.run(t)
		if !r.Complete() || b.target.Objects() != want {
			t.Errorf("interrupted after step %d: %v, %d objects, want %d", stop, r.Run.State, b.target.Objects(), want)
		}
		b.sameMetadata(t, "a", "b", "c")
		if runs, err := b.store.Runs(t.Context()); err != nil || len(runs) != 1 {
			t.Errorf("interrupted after step %d: runs %q, %v", stop, runs, err)
		}
		s, err := b.engine(t).Status(t.Context())
		if err != nil || len(s.Keys) != 3 || s.Counts.Done != 3 {
			t.Errorf("interrupted after step %d: %+v, %v", stop, s, err)
		}
	}
}

// TestParallel: several keys are migrated at a time.
func TestParallel(t *testing.T) {
	b := newTestMigration(t)
	b.cfg.Parallel = 8
	var names []string
	for i := range 120 { // more than one batch of metadata
		names = append(names, fmt.Sprintf("k%03d", i))
		b.add(t, names[i], 1+i%3)
	}
	if r := b.run(t); !r.Complete() || r.Counts.Done != 120 || b.target.Objects() != 120 {
		t.Errorf("%+v", r.Counts)
	}
	b.sameMetadata(t, names...)
}

// TestCancelled: a run that was cancelled is completed by the next one.
func TestCancelled(t *testing.T) {
	b := newTestMigration(t)
	for i := range 10 {
		b.add(t, fmt.Sprint("k", i), 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	b.cfg.OnStep = func(key, step string) error {
		if key == "k3" && step == "intent" {
			cancel()
		}
		return nil
	}
	_, err := b.engine(t).Run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	b.cfg.OnStep = nil
	if r := b.run(t); !r.Complete() || b.target.Objects() != 10 {
		t.Errorf("%+v", r)
	}
}

// TestDamagedJournal: a record that cannot be decoded is an error that names the journal. The journal does not count as
// empty.
func TestDamagedJournal(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	r := b.run(t)
	must(t, b.store.Put(t.Context(), r.Run.Name, "k", []byte("{")))
	if _, err := b.engine(t).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "journal") {
		t.Errorf("%v", err)
	}
}
