package keyring

import (
	"context"
	"slices"
	"sync"
	"testing"

	"claviger"
	"claviger/audit"
)

// eventLog is an audit log that keeps whole events. If refuse is set, Begin fails with it.
type eventLog struct {
	mu     sync.Mutex
	events []audit.Event
	refuse error
}

func (g *eventLog) Log(_ context.Context, e audit.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, e)
}

func (g *eventLog) Begin(ctx context.Context, e audit.Event) error {
	e.Status = audit.Attempt
	g.Log(ctx, e)
	return g.refuse
}

func (g *eventLog) Err() error   { return nil }
func (g *eventLog) Close() error { return nil }

// take returns the attempt and the outcome of the operation since the last take.
func (g *eventLog) take(t *testing.T) (attempt, outcome audit.Event) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.events) != 2 || g.events[0].Status != audit.Attempt || g.events[1].Status != audit.OK {
		t.Fatalf("events %+v, want an attempt and an OK", g.events)
	}
	attempt, outcome = g.events[0], g.events[1]
	g.events = nil
	return attempt, outcome
}

// TestEventFields checks the fields of the audit events of each operation.
func TestEventFields(t *testing.T) {
	log := &eventLog{}
	l, far := withSource(t, func(c *Config) { c.Audit = log }, "k")
	u := caller("u")
	home := l.primary.URI()
	expect := func(op audit.Op, key, version string, from []string, edeks int, provider string) {
		t.Helper()
		a, o := log.take(t)
		if a.Op != op || o.Op != op || a.Caller.RequestID != u.RequestID || o.Caller != a.Caller {
			t.Errorf("attempt %+v, outcome %+v, want op %s of request %s", a, o, op, u.RequestID)
		}
		if o.Key != key || o.Version != version || !slices.Equal(o.From, from) || o.EDEKs != edeks ||
			o.Provider != provider {
			t.Errorf("%s: key %q, version %q, from %q, %d EDEKs, provider %q; want %q, %q, %q, %d, %q",
				op, o.Key, o.Version, o.From, o.EDEKs, o.Provider, key, version, from, edeks, provider)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	v, err := l.Current(t.Context(), u, "k")
	must(err)
	expect(audit.GetCurrentKey, "k", v.Name, nil, 0, home)
	own, err := l.Generate(t.Context(), u, "k", 3)
	must(err)
	expect(audit.GenerateEEK, "k", v.Name, nil, 3, home)
	_, err = l.Decrypt(t.Context(), u, "k", true, own[0])
	must(err)
	expect(audit.DecryptEEK, "k", v.Name, nil, 1, home)
	foreign, _ := newEDEKs(t, far.blocks, "k@0", 2)
	_, err = l.Decrypt(t.Context(), u, "k", true, foreign[0])
	must(err)
	expect(audit.DecryptEEK, "k", "k@0", nil, 1, farURI)
	fresh, err := l.Roll(t.Context(), u, "k", nil)
	must(err)
	expect(audit.RollNewVersion, "k", fresh.Name, nil, 0, home)
	_, err = l.Reencrypt(t.Context(), u, "k", true, own[0])
	must(err)
	expect(audit.ReencryptEEK, "k", fresh.Name, []string{v.Name}, 1, home)
	_, err = l.ReencryptBatch(t.Context(), u, "k", []claviger.EDEK{foreign[0], own[1], foreign[1], own[2]})
	must(err)
	expect(audit.ReencryptEEKBatch, "k", fresh.Name, []string{"k@0", v.Name}, 4, farURI)
	_, err = l.Version(t.Context(), u, "k@0")
	must(err)
	expect(audit.GetKeyVersion, "k", "k@0", nil, 0, farURI)
	must(l.Delete(t.Context(), u, "k"))
	expect(audit.DeleteKey, "k", "", nil, 0, home)
}

// TestEventFieldsOfDeletedKeys: the events of an undeletion and of a purge have the newest version of the key.
func TestEventFieldsOfDeletedKeys(t *testing.T) {
	log := &eventLog{}
	l := newSoftDeleteRing(t, func(c *Config) { c.Audit = log })
	deleted := deletedNameTest{deleted: "reports,reports"}.makeKeys(t, l)
	if err := l.Purge(t.Context(), caller("reaper"), "reports", deleted[0]); err != nil {
		t.Fatal(err)
	}
	if _, o := log.take(t); o.Op != audit.PurgeKey || o.Key != "reports" || o.Version != deleted[0] {
		t.Errorf("purge: %+v", o)
	}
	if err := l.Undelete(t.Context(), caller("reaper"), "reports", ""); err != nil {
		t.Fatal(err)
	}
	if _, o := log.take(t); o.Op != audit.UndeleteKey || o.Key != "reports" || o.Version != deleted[1] {
		t.Errorf("undelete: %+v", o)
	}
}

// TestNoChangeWithoutRecord: if the audit log cannot record an operation, the operation is not done. An operation that
// the rules refuse is recorded as unauthorized, not as an attempt.
func TestNoChangeWithoutRecord(t *testing.T) {
	log := &eventLog{refuse: claviger.Errorf("audit", claviger.Unavailable, "", "no space left on device")}
	l, _ := withSource(t, func(c *Config) { c.Audit = log })
	before, err := l.primary.Provider.Current(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Roll(t.Context(), caller("u"), "k", nil); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("Roll: %v", err)
	}
	if err := l.Delete(t.Context(), caller("u"), "k"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("Delete: %v", err)
	}
	if after, err := l.primary.Provider.Current(t.Context(), "k"); err != nil || after.Name != before.Name {
		t.Errorf("the key is at %q after refused operations, %v; was at %q", after.Name, err, before.Name)
	}

	denied := &eventLog{}
	l, _ = withSource(t, func(c *Config) { c.Audit, c.Policy = denied, rules(t, "hadoop.kms.acl.DELETE", "nobody") })
	if err := l.Delete(t.Context(), caller("u"), "k"); !claviger.Is(err, claviger.Denied) {
		t.Fatal(err)
	}
	if len(denied.events) != 1 || denied.events[0].Status != audit.Unauthorized {
		t.Errorf("events %+v, want UNAUTHORIZED alone", denied.events)
	}
}
