package hsm_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

// failCreate makes the creation of a key fail. If made is true, the token makes the object nevertheless.
func failCreate(t *testing.T, m *faultmodule.Module, p *hsm.Provider, key string, made bool) {
	t.Helper()
	action := faultmodule.Fail
	if made {
		action = faultmodule.FailAfter
	}
	m.Order(faultmodule.GenerateKey, faultmodule.Order{Action: action, Value: p11.CKR_DEVICE_MEMORY,
		Times: faultmodule.Always})
	if err := tryCreate(t, p, key); err == nil {
		t.Fatal("created")
	}
	m.Heal()
}

// otherServers is a store whose servers change when moved is set, as they do when a standby takes over.
type otherServers struct {
	metastore.Store
	metastore.Replicated
	moved *atomic.Bool
}

func (s otherServers) Servers() string {
	return fmt.Sprint(s.Replicated.Servers(), s.moved.Load())
}

// TestSweepSharedStore: with a store that several nodes share, a sweep destroys what a failed step has made only if the
// store cannot have lost the success of that step at another node.
func TestSweepSharedStore(t *testing.T) {
	for name, lossy := range map[string]string{"one server": "", "a standby may take over": "standby",
		"a standby has taken over": "promoted"} {
		t.Run(name, func(t *testing.T) {
			b, m, _ := faultySite(t)
			b.pg = pgtest.Shared(t).Database(t)
			if lossy == "standby" {
				b.pg = strings.Replace(b.pg, "/test", ",127.0.0.1:1/test", 1)
			}
			var moved atomic.Bool
			if lossy == "promoted" {
				b.around = func(s metastore.Store) metastore.Store {
					r, _ := s.(metastore.Replicated)
					return otherServers{s, r, &moved}
				}
			}
			p := b.mustOpen(t)
			create(t, p, "used")
			failCreate(t, m, p, "made", true)
			failCreate(t, m, p, "nothing", false)
			moved.Store(true)
			if err := p.Sweep(t.Context(), time.Minute); err != nil {
				t.Error(err)
			}
			left := 0
			if lossy != "" {
				left = 1
			}
			if list := pendingSteps(t, b); len(list) != left || left > 0 && list[0].Key != "made" {
				t.Errorf("steps: %+v", list)
			}
			if list := objects(t, p); len(list) != 1+left {
				t.Errorf("objects: %+v", list)
			}
			if left > 0 { // the key may be in use
				if err := p.Sweep(t.Context(), time.Hour); err != nil {
					t.Error(err)
				}
				keystream(t, p, "made@0")
			} else if err := tryCreate(t, p, "made"); err != nil {
				t.Error(err)
			}
			mustClose(t, p)
			b.closeStores(t)
		})
	}
}

// unlocked is the store of a node that has lost its locks and does not notice it. It calls a function before the first
// call of a method.
type unlocked struct {
	metastore.Store
	beforeTake, beforeFinish func()
}

func (unlocked) Lock(context.Context, string) (func(), error)          { return func() {}, nil }
func (unlocked) TryLock(context.Context, string) (func(), bool, error) { return func() {}, true, nil }

func (u *unlocked) Take(ctx context.Context, i metastore.Intent, op string) (metastore.Intent, error) {
	if f := u.beforeTake; f != nil {
		u.beforeTake = nil
		f()
	}
	return u.Store.Take(ctx, i, op)
}

func (u *unlocked) FinishCreate(ctx context.Context, i metastore.Intent, k metastore.Key) error {
	if f := u.beforeFinish; f != nil {
		u.beforeFinish = nil
		f()
	}
	return u.Store.FinishCreate(ctx, i, k)
}

// sharedNodes are two nodes on one store and one token. The second one has lost its locks.
func sharedNodes(t *testing.T) (b *testSite, m *faultmodule.Module, one, two *hsm.Provider, lost *unlocked) {
	t.Helper()
	b, m, _ = faultySite(t)
	b.pg = pgtest.Shared(t).Database(t)
	b.create(t, "used")
	one = b.mustOpen(t)
	lost = new(unlocked)
	b.around = func(s metastore.Store) metastore.Store { lost.Store = s; return lost }
	two = b.mustOpen(t)
	t.Cleanup(func() { b.closeStores(t) })
	t.Cleanup(func() { mustClose(t, one); mustClose(t, two) })
	return b, m, one, two, lost
}

// TestSweepBesideAnotherNode: a node sweeps its failed step while another node, which has lost its lock without
// noticing, goes on with the step. If the other node was first, the sweep leaves the step alone; otherwise the other
// node fails.
func TestSweepBesideAnotherNode(t *testing.T) {
	b, m, one, two, lost := sharedNodes(t)
	sweep := func() {
		if err := one.Sweep(t.Context(), time.Minute); err != nil {
			t.Error(err)
		}
	}
	failCreate(t, m, one, "a", true)
	lost.beforeFinish = sweep
	if err := tryCreate(t, two, "a"); err != nil {
		t.Error(err)
	}
	keystream(t, one, "a@0")

	failCreate(t, m, one, "b", true)
	lost.beforeTake = sweep
	if err := tryCreate(t, two, "b"); !errors.Is(err, metastore.ErrTaken) || !claviger.Is(err, claviger.Unavailable) {
		t.Error(err)
	}
	if err := tryCreate(t, two, "b"); err != nil {
		t.Error(err)
	}
	keystream(t, one, "b@1")
	if list := objects(t, one); len(list) != 3 || len(pendingSteps(t, b)) != 0 {
		t.Errorf("%+v, %+v", list, pendingSteps(t, b))
	}
}

// TestSweepRace: the same, at any moment. No key is created whose object a sweep has destroyed.
func TestSweepRace(t *testing.T) {
	_, m, one, two, _ := sharedNodes(t)
	created := 0
	for n := range 16 {
		key := fmt.Sprint("k", n)
		failCreate(t, m, one, key, true)
		var both sync.WaitGroup
		both.Go(func() {
			time.Sleep(time.Duration(n) * 2 * time.Millisecond) // another moment in each round
			if err := one.Sweep(t.Context(), time.Minute); err != nil {
				t.Error(err)
			}
		})
		err := tryCreate(t, two, key)
		both.Wait()
		switch {
		case err == nil:
			created++
			for _, v := range versionsOf(t, two, key) {
				keystream(t, one, v)
				keystream(t, two, v)
			}
		case !claviger.Is(err, claviger.Unavailable):
			t.Error(err)
		}
	}
	t.Logf("%d of 16 keys were created", created)
	for _, o := range objects(t, one) {
		if o.Mark != hsm.InUse {
			t.Errorf("%+v", o)
		}
	}
}

func versionsOf(t *testing.T, p *hsm.Provider, key string) (names []string) {
	t.Helper()
	list, err := p.Versions(t.Context(), key)
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	for _, v := range list {
		names = append(names, v.Name)
	}
	return names
}

// hiddenObject is a library that does not find the key with that CKA_ID while one is set.
type hiddenObject struct {
	pkcs11.Boundary
	id *atomic.Pointer[string] // in hex
}

func (h hiddenObject) FindObjectsInit(s p11.SessionHandle, template []*p11.Attribute) error {
	id := h.id.Load()
	for _, a := range template {
		if id != nil && a.Type == p11.CKA_ID && hex.EncodeToString(a.Value) == *id {
			template = append(slices.Clone(template), p11.NewAttribute(p11.CKA_LABEL, "hidden"))
		}
	}
	return h.Boundary.FindObjectsInit(s, template)
}

// TestSweepLateObject: an object of a failed step that the HSM shows only after the sweep is an orphan, also if the
// same step has failed again since. The other keys of the token are no orphans.
func TestSweepLateObject(t *testing.T) {
	b, m, _ := faultySite(t)
	var id atomic.Pointer[string]
	b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary { return hiddenObject{c, &id} }
	p := b.mustOpen(t)
	create(t, p, "used")
	failCreate(t, m, p, "late", true)
	step := pendingSteps(t, b)
	if len(step) != 1 {
		t.Fatalf("%+v", step)
	}
	id.Store(&step[0].Refs[0].Object)
	failCreate(t, m, p, "late", false)
	if err := p.Sweep(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	if left := pendingSteps(t, b); len(left) != 0 {
		t.Errorf("%+v", left)
	}
	id.Store(nil)
	wantMarks(t, p, map[string]hsm.Mark{"used@0": hsm.InUse, "late@0": hsm.Orphan})
	mustClose(t, p)
}

// TestSweepThatFails: a sweep that could not end a step leaves no record that the step's object was destroyed, if the
// same step, made again, uses the object.
func TestSweepThatFails(t *testing.T) {
	b, m, _ := faultySite(t)
	store := &failing{}
	b.around = func(s metastore.Store) metastore.Store { store.Store = s; return store }
	p := b.mustOpen(t)
	create(t, p, "used")
	failCreate(t, m, p, "k", true)
	object := pendingSteps(t, b)[0].Refs[0].Object
	for at := 1; ; at++ {
		store.n, store.at = 0, at
		if err := p.Sweep(t.Context(), time.Minute); err == nil {
			break
		} else if !errors.Is(err, errKilled) || at > 10 {
			t.Fatal(err)
		}
		if steps := pendingSteps(t, b); len(steps) != 1 || steps[0].Op == "delete" {
			continue // the step has ended, and its objects will be destroyed
		}
		b.withStore(t, func(s metastore.Store) {
			if v, _, err := s.Setting(t.Context(), "hsm.destroyed."+object); err != nil || v != "" {
				t.Errorf("write %d of the sweep failed: the object counts as destroyed: %q, %v", at, v, err)
			}
		})
	}
	if list := objects(t, p); len(list) != 1 {
		t.Errorf("%+v", list)
	}
	mustClose(t, p)
}
