package migrate_test

import (
	"strings"
	"testing"

	"claviger/metastore"
	"claviger/migrate"
	"claviger/migrate/report"
)

// TestSecondConflict: the operator settles a conflict with claviger.migration.ours, and then the source rolls to the
// name of another version here. Plan and run report the new conflict, and name both versions for the property.
func TestSecondConflict(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "payroll", 1)
	b.run(t) // payroll@1
	ctx := t.Context()
	roll := func(here bool) {
		t.Helper()
		p := b.source
		if here {
			p = b.target
		}
		_, err := p.Roll(ctx, "payroll", nil)
		must(t, err)
	}
	roll(false) // makes payroll@1 at the source
	roll(true)  // makes payroll@2 here
	b.cfg.Ours = map[string]bool{"payroll@1": true}
	r := b.run(t)
	const remark = "claviger.migration.ours says that EDEKs of (payroll@1) are this server's"
	if !r.Complete() || !strings.Contains(r.Keys[0].Why, remark) || strings.Contains(r.Keys[0].Why, "free here") {
		t.Fatalf("settled: %+v", r)
	}
	f, err := b.engine(t).Finish(ctx, migrate.FinishOptions{Since: noon, EDEKsDone: true})
	must(t, err)
	if len(f.Refusals) > 0 || !strings.Contains(strings.Join(f.Remarks, ""), remark) {
		t.Errorf("finish: %+v", f)
	}
	roll(false) // makes payroll@2 at the source
	const cure = "set claviger.migration.ours to payroll@1,payroll@2, run the migration again"
	plan, err := b.engine(t).Plan(ctx)
	must(t, err)
	if plan.Ready() || plan.Complete || plan.Keys[0].State != migrate.Conflict ||
		!strings.Contains(plan.Keys[0].Why, cure) {
		t.Errorf("plan: %+v", plan.Keys)
	}
	if r := b.run(t); r.Complete() || r.Keys[0].State != migrate.Conflict || !strings.Contains(r.Keys[0].Why, cure) {
		t.Errorf("run: %+v", r)
	}
	b.cfg.Ours["payroll@2"] = true
	if r := b.run(t); !r.Complete() {
		t.Errorf("both settled: %+v", r)
	}
}

// TestRecordedConflict: plan and run report a conflict that a server has recorded, even if the source's count of
// versions does not show it.
func TestRecordedConflict(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "k", 1)
	b.add(t, "other", 1)
	b.run(t)
	must(t, metastore.SetConflicts(t.Context(), b.store, map[string][]string{"kms://http@far:1/kms": {"k@1"}}))
	for range 2 {
		plan, err := b.engine(t).Plan(t.Context())
		must(t, err)
		if plan.Ready() || plan.Complete || plan.Counts.Blocked != 1 || states(plan.Keys)["k"] != migrate.Conflict ||
			states(plan.Keys)["other"] != migrate.Done {
			t.Errorf("plan: %+v", plan)
		}
		r := b.run(t)
		if r.Complete() || r.Counts.Done != 1 || r.Counts.Blocked != 1 || states(r.Keys)["k"] != migrate.Conflict {
			t.Errorf("run: %+v", r)
		}
		if text := textOf(report.Result, r); !strings.Contains(text,
			"2 keys: 1 done, 1 that could not be imported or are in conflict") {
			t.Error(text)
		}
	}
	b.cfg.Ours = map[string]bool{"k@1": true}
	if r := b.run(t); !r.Complete() || r.Counts.Done != 2 {
		t.Errorf("settled by the operator: %+v", r)
	}
}
