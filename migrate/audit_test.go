package migrate_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"claviger"
	"claviger/audit"
	"claviger/migrate"
)

// eventLog is an audit log that keeps events, and fails for the key "closed".
type eventLog struct {
	mu     sync.Mutex
	events []audit.Event
}

func (t *eventLog) Begin(_ context.Context, e audit.Event) error {
	e.Status = audit.Attempt
	t.Log(context.Background(), e)
	if e.Key == "closed" {
		return claviger.Errorf("test", claviger.Invalid, e.Key, "the audit log cannot be written")
	}
	return nil
}

func (t *eventLog) Log(_ context.Context, e audit.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
}
func (t *eventLog) Err() error   { return nil }
func (t *eventLog) Close() error { return nil }

// TestRunIsAudited: a run writes an audit record before and after the import of each key, with the user who runs it. If
// the first record cannot be written, the key is not imported.
func TestRunIsAudited(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "closed", 1)
	b.add(t, "fails", 1)
	b.add(t, "zone", 2)
	log := &eventLog{}
	b.cfg.Audit, b.cfg.Caller = log, claviger.Caller{Principal: claviger.Principal{Name: "ops", Short: "ops"}}
	b.cfg.Target = &failing{Target: b.target, errs: map[string]error{"fails": errors.New("no room")}}
	if r := b.run(t); r.Counts.Done != 1 || states(r.Keys)["closed"] != migrate.Failed {
		t.Errorf("%+v %v", r.Counts, states(r.Keys))
	}
	imported := versions(t, b.target, "zone")
	var got []string
	for _, e := range log.events {
		if e.Op != audit.MigrateKey || e.Caller.Short != "ops" || e.Provider != b.target.URI() {
			t.Errorf("%+v", e)
		}
		got = append(got, strings.TrimSpace(string(e.Status)+" "+e.Key+" "+e.Version+" "+e.Message))
	}
	want := []string{
		"ATTEMPT closed", "ATTEMPT fails", "ERROR fails  no room", "ATTEMPT zone",
		"OK zone " + imported[0] + " Source:" + b.source.URI() + " Versions:" + strings.Join(imported, ","),
	}
	if !slices.Equal(got, want) {
		t.Errorf("audited\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	log.events = nil
	b.run(t)
	for _, e := range log.events {
		if e.Key == "zone" {
			t.Errorf("an imported key is audited again: %+v", e)
		}
	}
}

// TestAuditOfOddNames: a line end in a key's name does not end the line of the log.
func TestAuditOfOddNames(t *testing.T) {
	b := newTestMigration(t)
	b.add(t, "zone\nforged", 1)
	log := &eventLog{}
	b.cfg.Audit = log
	b.run(t)
	last := log.events[len(log.events)-1]
	if m := last.Message; last.Status != audit.OK || strings.Contains(m, "\n") ||
		!strings.Contains(m, `zone\nforged@`) {
		t.Errorf("%q, %q", last.Status, last.Message)
	}
}
