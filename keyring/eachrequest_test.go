package keyring

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
)

// requests returns the operations that a user can request.
func requests() []eachOperation {
	return slices.Concat(manageOperations(), readOperations(), edekOperations())
}

// isMigrate: only rules of the key guard a migration, and the key's ACL name is read from the source first.
func isMigrate(o eachOperation) bool { return o.name == "migrate" }

// closedToAll returns rules by which nobody may do anything.
func closedToAll(t *testing.T) []string {
	t.Helper()
	var pairs []string
	for _, op := range []string{"CREATE", "DELETE", "ROLLOVER", "GET", "GET_KEYS", "GET_METADATA", "SET_KEY_MATERIAL",
		"GENERATE_EEK", "DECRYPT_EEK"} {
		pairs = append(pairs, "hadoop.kms.acl."+op, "somebody-else")
	}
	return pairs
}

// TestEachRequestNeedsItsRight: a user without the right of the operation gets
// Denied and one line in the audit log. Nothing is read or changed for that user.
func TestEachRequestNeedsItsRight(t *testing.T) {
	for _, o := range slices.DeleteFunc(requests(), isMigrate) {
		t.Run(o.name, func(t *testing.T) {
			w := newFailingRing(t)
			if o.prepare != nil {
				o.prepare(t, w)
			}
			w.setRules(t, append(closedToAll(t), everything...)...)
			w.audit.take()
			err := o.run(context.WithValue(t.Context(), counted{}, true), w)
			if kind := claviger.KindOf(err); err == nil || kind != claviger.Denied {
				t.Errorf("kind %v, %v", kind, err)
			}
			if len(w.c.list) > 0 {
				t.Errorf("calls were made: %q", w.c.list)
			}
			if lines := w.audit.take(); len(lines) != 1 || !strings.HasPrefix(lines[0], "UNAUTHORIZED[") {
				t.Errorf("audit: %q", lines)
			}
		})
	}
}

// TestEachRequestNeedsTheKey: a user with the right of the operation, but without a right on the key, gets KeyDenied,
// and changes nothing. Lists leave the key out.
func TestEachRequestNeedsTheKey(t *testing.T) {
	for _, o := range requests() {
		t.Run(o.name, func(t *testing.T) {
			w := newFailingRing(t)
			if o.prepare != nil {
				o.prepare(t, w)
			}
			before := w.state(t)
			w.setRules(t, "keytrustee.kms.acl.UNDELETE", "*", "keytrustee.kms.acl.PURGE", "*",
				"default.key.acl.MANAGEMENT", "somebody-else", "default.key.acl.GENERATE_EEK", "somebody-else",
				"default.key.acl.DECRYPT_EEK", "somebody-else", "default.key.acl.READ", "somebody-else")
			err := o.run(t.Context(), w)
			switch kind := claviger.KindOf(err); {
			case o.name == "names" || o.name == "deleted":
				if err != nil {
					t.Errorf("kind %v, %v", kind, err)
				}
			case err == nil || kind != claviger.KeyDenied && kind != claviger.Denied:
				t.Errorf("kind %v, %v", kind, err)
			}
			if after := w.state(t); !reflect.DeepEqual(before, after) {
				t.Errorf("the keys have changed:\n%v\n%v", before, after)
			}
		})
	}
}

// fullAudit is an audit log that cannot record attempts.
type fullAudit struct{ *auditLog }

func (fullAudit) Begin(context.Context, audit.Event) error {
	return claviger.E("test", claviger.Unavailable, "", errInjected)
}

// TestEachRequestIsRecordedFirst: if the audit log cannot record an attempt, the request fails, and nothing is read or
// changed.
func TestEachRequestIsRecordedFirst(t *testing.T) {
	for _, o := range requests() {
		t.Run(o.name, func(t *testing.T) {
			w := newFailingRing(t)
			if o.prepare != nil {
				o.prepare(t, w)
			}
			w.guard = fullAudit{w.audit}
			err := o.run(context.WithValue(t.Context(), counted{}, true), w)
			if !errors.Is(err, errInjected) || len(w.c.list) > 0 && !isMigrate(o) {
				t.Errorf("%v; calls were made: %q", err, w.c.list)
			}
		})
	}
}

// TestEachRequestIsRecorded: a request that succeeds leaves one line in the audit
// log.
func TestEachRequestIsRecorded(t *testing.T) {
	for _, o := range requests() {
		t.Run(o.name, func(t *testing.T) {
			w := newFailingRing(t)
			if o.prepare != nil {
				o.prepare(t, w)
			}
			w.audit.take()
			if err := o.run(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			if lines := w.audit.take(); len(lines) != 1 || !strings.HasPrefix(lines[0], "OK[") {
				t.Errorf("audit: %q", lines)
			}
		})
	}
}

// TestEachRequestAfterClose: after Close no request is served.
func TestEachRequestAfterClose(t *testing.T) {
	w := newFailingRing(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, o := range requests() {
		if err := o.run(t.Context(), w); !claviger.Is(err, claviger.Closed) {
			t.Errorf("%s: %v", o.name, err)
		}
	}
}

// TestEachChangeWaitsForTheKey: while another operation changes the key, a change
// waits. If its context ends before, it is refused, and nothing is changed.
func TestEachChangeWaitsForTheKey(t *testing.T) {
	for _, o := range manageOperations() {
		if o.name == "invalidate" {
			continue // it changes no key
		}
		t.Run(o.name, func(t *testing.T) {
			w := newFailingRing(t)
			if o.prepare != nil {
				o.prepare(t, w)
			}
			for _, key := range []string{"new", "own", "gone", "payroll", "theirs"} {
				unlock, err := w.manage.lock(t.Context(), key)
				if err != nil {
					t.Fatal(err)
				}
				defer unlock()
			}
			before := w.state(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				for ctx.Err() == nil && !w.manage.someWait() {
					time.Sleep(time.Millisecond)
				}
				cancel()
			}()
			if err := o.run(ctx, w); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), "another operation on the key is under way") {
				t.Errorf("%v", err)
			}
			if after := w.state(t); !reflect.DeepEqual(before, after) {
				t.Errorf("the keys have changed:\n%v\n%v", before, after)
			}
		})
	}
}

// someWait reports whether an operation waits for a lock.
func (l *keyLocks) someWait() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.held {
		if k.users > 1 {
			return true
		}
	}
	return false
}

// TestEachChangeIsSeen: a request after a change sees the change, even if the key was in the cache before.
func TestEachChangeIsSeen(t *testing.T) {
	for _, o := range manageOperations() {
		t.Run(o.name, func(t *testing.T) {
			w := newFailingRing(t, cached)
			if o.prepare != nil {
				o.prepare(t, w)
			}
			keys := []string{"new", "own", "gone", "payroll"}
			w.currentInRing(t, keys)
			if err := o.run(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			for i, got := range w.currentInRing(t, keys) {
				if want := w.currentInPrimary(t, keys[i]); got != want {
					t.Errorf("%s: current version %q is shown, the primary has %q", keys[i], got, want)
				}
			}
		})
	}
}

// currentInRing returns the current versions of keys as the Ring shows them; "" for none.
func (w *failingRing) currentInRing(t *testing.T, keys []string) (versions []string) {
	t.Helper()
	for _, key := range keys {
		if _, err := w.Metadata(t.Context(), caller("u"), key); err != nil {
			t.Fatal(err)
		}
		v, err := w.Current(t.Context(), caller("u"), key)
		switch {
		case err == nil && v != nil:
			versions = append(versions, v.Name)
		case err == nil || claviger.Is(err, claviger.KeyNotFound):
			versions = append(versions, "")
		default:
			t.Fatal(err)
		}
	}
	return versions
}

// currentInPrimary returns the current version of a key in the primary.
func (w *failingRing) currentInPrimary(t *testing.T, key string) string {
	t.Helper()
	v, err := w.primary.Provider.Current(t.Context(), key)
	if err != nil && !claviger.Is(err, claviger.KeyNotFound) {
		t.Fatal(err)
	}
	return v.Name
}

// state returns the content of the primary: versions of keys, and deleted keys.
func (w *failingRing) state(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	names, err := w.primary.Provider.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		vs, err := w.primary.Provider.Versions(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vs {
			all[name] = append(all[name], v.Name)
		}
	}
	deleted, err := w.primary.Provider.Deleted(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range deleted {
		all["deleted "+k.Name] = k.List
	}
	return all
}
