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
	"claviger/migrate"
	"claviger/migrate/report"
)

// odd is a source that lists keys which it cannot tell of.
type odd struct {
	migrate.Source
	untold map[string]bool  // no metadata: {} in Hadoop's JSON
	fails  map[string]error // of the key by itself, and of each batch that has it
	names  []string         // listed beside those that are there
	hide   map[string]bool  // not listed
	asked  int              // requests for metadata
}

func (o *odd) Keys(ctx context.Context) ([]string, error) {
	names, err := o.Source.Keys(ctx)
	names = slices.DeleteFunc(names, func(n string) bool { return o.hide[n] })
	return append(names, o.names...), err
}

func (o *odd) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	o.asked++
	for _, n := range names {
		if err := o.fails[n]; err != nil {
			return nil, err
		}
	}
	ms, err := o.Source.Metadata(ctx, names...)
	for i, n := range names {
		if o.untold[n] {
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

// TestEveryNameIsARow: a key that the source lists, and of which it tells nothing or
// fails, is a row of plan, run and verify with its reason, keeps finish back, and
// keeps no other key back.
func TestEveryNameIsARow(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"a", "silent", "z"} {
		b.add(t, name, 1)
	}
	src := &odd{Source: b.source, untold: map[string]bool{"silent": true},
		fails: map[string]error{"keytool": castError()}, names: []string{"keytool"}}
	b.cfg.Source = src

	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	want := map[string]migrate.State{"a": migrate.Planned, "z": migrate.Planned, "silent": migrate.Unreadable,
		"keytool": migrate.Unreadable}
	if got := states(plan.Keys); !maps.Equal(got, want) || plan.Ready() || plan.Counts.Blocked != 2 ||
		plan.Counts.Total != 4 {
		t.Errorf("plan: %v, ready %v, %+v; want %v, not ready", got, plan.Ready(), plan.Counts, want)
	}
	golden(t, "unreadable", textOf(report.Plan, plan))

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
			t.Errorf("said of a source that answers and has keys:\n%s", text)
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

	// The entry is taken out at the source, and the other key mended: then all is done.
	src.names, src.untold = nil, nil
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

// TestDeletedMeanwhile: a key that is deleted at the source between the list and the
// question for its metadata is no finding.
func TestDeletedMeanwhile(t *testing.T) {
	b := newBench(t)
	b.add(t, "k", 1)
	src := &odd{Source: b.source, names: []string{"was"}}
	b.cfg.Source = &once{odd: src}
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	if got := states(plan.Keys); !maps.Equal(got, map[string]migrate.State{"k": migrate.Planned}) || !plan.Ready() {
		t.Errorf("%v, ready %v", got, plan.Ready())
	}
}

// once lists its extra names the first time only.
type once struct{ *odd }

func (o *once) Keys(ctx context.Context) ([]string, error) {
	names, err := o.odd.Keys(ctx)
	o.names = nil
	return names, err
}

// TestVerifyComparesLists: a key that the source has got, or has lost, since the run
// is a finding, and so is one that can no longer be read there.
func TestVerifyComparesLists(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"kept", "lost", "broken"} {
		b.add(t, name, 1)
	}
	src := &odd{Source: b.source}
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
	golden(t, "verifylists", textOf(report.Verification, v))
	// The run's record of a key that is here is not taken back.
	if r := b.run(t); states(r.Keys)["broken"] != migrate.Done {
		t.Errorf("%v", states(r.Keys))
	}
}

// TestSlowKeyAndDeadSource: one key without an answer is that key's row; a source
// that stops answering in the middle ends the run as one that does not answer.
func TestSlowKeyAndDeadSource(t *testing.T) {
	away := claviger.Errorf("kmsclient.Metadata", claviger.Unavailable, "", "no host of the KMS answered")
	b := newBench(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		b.add(t, name, 1)
	}
	src := &odd{Source: b.source, fails: map[string]error{"b": away}}
	b.cfg.Source = src
	plan, err := b.engine(t).Plan(t.Context())
	must(t, err)
	if s := states(plan.Keys); s["b"] != migrate.Unreadable || s["a"] != migrate.Planned || s["d"] != migrate.Planned {
		t.Errorf("%v", s)
	}
	src.fails, src.asked = map[string]error{"a": away, "b": away, "c": away, "d": away}, 0
	plan, err = b.engine(t).Plan(t.Context())
	if !claviger.Is(err, claviger.SourceUnreachable) || src.asked != 4 { // the batch, and three keys
		t.Errorf("%d requests, %v", src.asked, err)
	}
	if text := textOf(report.Plan, plan); strings.Contains(text, "no keys") ||
		!strings.Contains(text, "keys were not read") || plan.Read {
		t.Errorf("said of a source that was not read:\n%s", text)
	}
}

// TestInterrupted: a run that a signal ended says so, blames nobody, and is not
// running for ever; one that is under way is running.
func TestInterrupted(t *testing.T) {
	b := newBench(t)
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

// TestFinishAsksTheSource: a source that is still configured and cannot be asked for
// new keys keeps the end back.
func TestFinishAsksTheSource(t *testing.T) {
	b := newBench(t)
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
