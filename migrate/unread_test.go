package migrate_test

import (
	"context"
	"errors"
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

// unreadable is a source that lists keys whose metadata it does not return.
type unreadable struct {
	migrate.Source
	noMetadata map[string]bool  // returned without metadata: {} in Hadoop's JSON
	fails      map[string]error // by key: the error of each request with this key
	extra      []string         // names that are listed but do not exist
	hide       map[string]bool  // names that exist but are not listed
	requests   int              // for metadata
}

func (u *unreadable) Keys(ctx context.Context) ([]string, error) {
	names, err := u.Source.Keys(ctx)
	names = slices.DeleteFunc(names, func(n string) bool { return u.hide[n] })
	return append(names, u.extra...), err
}

func (u *unreadable) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	u.requests++
	for _, n := range names {
		if err := u.fails[n]; err != nil {
			return nil, err
		}
	}
	ms, err := u.Source.Metadata(ctx, names...)
	for i, n := range names {
		if u.noMetadata[n] {
			ms[i] = nil
		}
	}
	return ms, err
}

func castError() error {
	return claviger.Errorf("kmsclient.Metadata", claviger.Internal, "keytool",
		"KMS http://old.example.com:16000/kms: SecretKeySpec cannot be cast to KeyMetadata (ClassCastException, 500 "+
			"Internal Server Error)")
}

// TestUnreadableKeys: a listed key whose metadata cannot be read has a row with the reason in plan, run and verify. It
// blocks finish, but not the migration of other keys.
func TestUnreadableKeys(t *testing.T) {
	b := newTestMigration(t)
	for _, name := range []string{"a", "silent", "z"} {
		b.add(t, name, 1)
	}
	src := &unreadable{Source: b.source, noMetadata: map[string]bool{"silent": true},
		fails: map[string]error{"keytool": castError()}, extra: []string{"keytool"}}
	b.cfg.Source = src

	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	want := map[string]migrate.State{"a": migrate.Planned, "z": migrate.Planned, "silent": migrate.Unreadable,
		"keytool": migrate.Unreadable}
	if got := states(plan.Keys); !maps.Equal(got, want) || plan.Ready() || plan.Counts.Blocked != 2 ||
		plan.Counts.Total != 4 {
		t.Errorf("plan: %v, ready %v, %+v; want %v, not ready", got, plan.Ready(), plan.Counts, want)
	}
	golden.Compare(t, "testdata/unreadable.golden", textOf(report.Plan, plan))

	r := b.run(t)
	want["a"], want["z"] = migrate.Done, migrate.Done
	if got := states(r.Keys); !maps.Equal(got, want) || r.Complete() || r.Run.State != migrate.Incomplete {
		t.Errorf("run: %v, %s; want %v, incomplete", got, r.Run.State, want)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "silent (unreadable)") ||
		!strings.Contains(err.Error(), "ClassCastException") {
		t.Errorf("run's error: %v", err)
	}
	for _, text := range []string{textOf(report.Plan, plan), textOf(report.Result, r)} {
		if strings.Contains(text, "does not answer") || strings.Contains(text, "no keys") {
			t.Errorf("the source answers and has keys, but the report is:\n%s", text)
		}
	}

	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	if v.Same != 2 || v.Different != 2 || len(v.Keys) != 4 {
		t.Errorf("verify: %d the same, %d different of %d", v.Same, v.Different, len(v.Keys))
	}
	f, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true, Get: nothingSet})
	must(t, err)
	if text := strings.Join(f.Refusals, "\n"); f.Finished || !strings.Contains(text, "key silent is unreadable") ||
		!strings.Contains(text, "key keytool is unreadable") {
		t.Errorf("finish: %v, %q", f.Finished, f.Refusals)
	}

	// An administrator removes the entry keytool at the source, and repairs the key silent. Now the run is complete.
	src.extra, src.noMetadata = nil, nil
	r = b.run(t)
	want["silent"], want["keytool"] = migrate.Done, migrate.Gone
	if got := states(r.Keys); !maps.Equal(got, want) || !r.Complete() {
		t.Errorf("second run: %v, %s; want %v, complete", got, r.Run.State, want)
	}
	if f, err = b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true,
		Get: nothingSet}); err != nil || !f.Finished {
		t.Errorf("finish: %+v, %v", f, err)
	}
}

func nothingSet(string) (string, string, bool) { return "", "", false }

// TestDeletedMeanwhile: a key that is deleted at the source between the request for the list and the request for its
// metadata is left out of the plan.
func TestDeletedMeanwhile(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	src := &unreadable{Source: b.source, extra: []string{"deleted"}}
	b.cfg.Source = &extraOnce{unreadable: src}
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	if got := states(plan.Keys); !maps.Equal(got, map[string]migrate.State{"k": migrate.Planned}) || !plan.Ready() {
		t.Errorf("%v, ready %v", got, plan.Ready())
	}
}

// extraOnce lists its extra names the first time only.
type extraOnce struct{ *unreadable }

func (o *extraOnce) Keys(ctx context.Context) ([]string, error) {
	names, err := o.unreadable.Keys(ctx)
	o.extra = nil
	return names, err
}

// TestVerifyComparesLists: verify reports a key as different if, since the run, the source has added it, no longer
// lists it, or can no longer read it.
func TestVerifyComparesLists(t *testing.T) {
	b := newTestMigration(t)
	for _, name := range []string{"kept", "lost", "broken"} {
		b.add(t, name, 1)
	}
	src := &unreadable{Source: b.source}
	b.cfg.Source = src
	b.run(t)
	addTo(t, b.target, "ours", 1, 1)
	b.add(t, "late", 1)
	src.hide, src.fails = map[string]bool{"lost": true}, map[string]error{"broken": castError()}
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	same := map[string]bool{}
	for _, k := range v.Keys {
		same[k.Key] = k.Same
	}
	if want := map[string]bool{"kept": true, "lost": false, "broken": false, "late": false}; !maps.Equal(same, want) ||
		v.Different != 3 {
		t.Errorf("%v, %d different; want %v", same, v.Different, want)
	}
	golden.Compare(t, "testdata/verifylists.golden", textOf(report.Verification, v))
	// A later run keeps the record of a migrated key as done.
	if r := b.run(t); states(r.Keys)["broken"] != migrate.Done {
		t.Errorf("%v", states(r.Keys))
	}
}

// TestKeysWithoutAnswer: if one key gets no answer, only that key is unreadable. After three keys in a row without an
// answer the plan ends, and the source counts as unreachable.
func TestKeysWithoutAnswer(t *testing.T) {
	unreachable := claviger.Errorf("kmsclient.Metadata", claviger.Unavailable, "", "no host of the KMS answered")
	b := newTestMigration(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		b.add(t, name, 1)
	}
	src := &unreadable{Source: b.source, fails: map[string]error{"b": unreachable}}
	b.cfg.Source = src
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	if s := states(plan.Keys); s["b"] != migrate.Unreadable || s["a"] != migrate.Planned || s["d"] != migrate.Planned {
		t.Errorf("%v", s)
	}
	src.requests = 0
	src.fails = map[string]error{"a": unreachable, "b": unreachable, "c": unreachable, "d": unreachable}
	plan, err = b.engine(t).Plan(t.Context())
	if !claviger.Is(err, claviger.SourceUnreachable) || src.requests != 4 { // the batch, and three keys
		t.Errorf("%d requests, %v", src.requests, err)
	}
	if text := textOf(report.Plan, plan); strings.Contains(text, "no keys") ||
		!strings.Contains(text, "keys were not read") || plan.Read {
		t.Errorf("the source was not read, but the report is:\n%s", text)
	}
}

// TestInterrupted: a run that ends with its context returns an error that says "interrupted" and does not blame the
// source. Status shows it as interrupted, and as running before that.
func TestInterrupted(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k0", 1)
	b.add(t, "k1", 1)
	ctx, cancel := context.WithCancel(t.Context())
	b.cfg.OnStep = func(key, step string) error {
		if key == "k0" && step == "intent" {
			s, err := b.engine(t).Status(t.Context())
			if err != nil || s.Runs[0].State != migrate.Running {
				t.Errorf("while it runs: %+v, %v", s, err)
			}
			cancel()
		}
		return nil
	}
	_, err := b.engine(t).Run(ctx)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "interrupted") ||
		strings.Contains(err.Error(), "source") {
		t.Errorf("run: %v", err)
	}
	if plan, err := b.engine(t).Plan(ctx); plan != nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("plan: %v, %v", plan, err)
	}
	b.cfg.OnStep = nil
	s, err := b.engine(t).Status(t.Context())
	if err != nil || s.Runs[0].State != migrate.Interrupted {
		t.Errorf("status: %+v, %v", s, err)
	}
	f, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon.Add(-time.Hour), EDEKsDone: true})
	if err != nil || !strings.Contains(strings.Join(f.Refusals, "\n"), "is interrupted: run the migration again") {
		t.Errorf("finish: %+v, %v", f, err)
	}
	if r := b.run(t); !r.Complete() || r.Run.Resumed != 1 {
		t.Errorf("next run: %+v", r.Run)
	}
}

// TestFinishReadsTheSource: finish is refused if the source is still configured and does not list its keys.
func TestFinishReadsTheSource(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	b.run(t)
	b.cfg.Source = &stub{Source: b.source, keysErr: claviger.Errorf("kmsclient.Keys", claviger.Internal, "",
		"the KMS's answer cannot be read: the answer is null")}
	finish := func() *migrate.Ending {
		f, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true, SourceGone: true,
			Get: nothingSet})
		must(t, err)
		return f
	}
	if f := finish(); f.Finished || !strings.Contains(strings.Join(f.Refusals, "\n"),
		"it is not known whether the source has new keys") {
		t.Errorf("%+v", f)
	}
	b.cfg.Source = nil
	if f := finish(); !f.Finished {
		t.Errorf("%+v", f)
	}
}
