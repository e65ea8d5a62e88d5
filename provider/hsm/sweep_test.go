package hsm_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// faultySite is a site whose library makes faults to order, with its log.
func faultySite(t *testing.T) (*testSite, *faultmodule.Module, *logtest.Buffer) {
	t.Helper()
	token := softhsmtest.New(t)
	m := faultmodule.New(t, token.Module)
	token.Module = m.Path
	b := newSiteAt(t, token)
	var text logtest.Buffer
	b.log = slog.New(slog.NewTextHandler(&text, nil))
	return b, m, &text
}

func tryCreate(t *testing.T, p *hsm.Provider, key string) error {
	t.Helper()
	_, err := p.Create(t.Context(), provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 256})
	return err
}

// pendingSteps returns the pending steps of a site.
func pendingSteps(t *testing.T, b *testSite) (list []metastore.Intent) {
	t.Helper()
	b.withStore(t, func(s metastore.Store) {
		var err error
		if list, err = s.Pending(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	return list
}

// TestSweepFailedSteps: 200 creations fail, and some of them leave an object in the HSM. A sweep ends them all, and
// nothing is left. Their log is a few lines.
func TestSweepFailedSteps(t *testing.T) {
	b, m, text := faultySite(t)
	used := b.create(t, "used")
	p := b.mustOpen(t)
	before := len(objects(t, p))
	for n := range 200 {
		order := faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_MEMORY, Times: faultmodule.Always}
		tries := 2 // the second one goes on with the step of the first
		if n%10 == 0 {
			order.Action, tries = faultmodule.FailAfter, 1
		}
		m.Order(faultmodule.GenerateKey, order)
		for range tries {
			if err := tryCreate(t, p, fmt.Sprint("failed", n)); err == nil {
				t.Fatal("created")
			}
		}
	}
	if _, err := p.Roll(t.Context(), "used", nil); err == nil {
		t.Fatal("rolled")
	}
	m.Heal()
	if n := len(pendingSteps(t, b)); n != 201 {
		t.Errorf("%d pending steps, want 201", n)
	}
	if n := len(objects(t, p)); n <= before {
		t.Error("no failed step has left an object")
	}
	if err := p.Sweep(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if n := len(pendingSteps(t, b)); n != 201 {
		t.Errorf("%d pending steps are left a moment after they failed, want 201", n)
	}
	if err := p.Sweep(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	if left := pendingSteps(t, b); len(left) != 0 {
		t.Errorf("%d pending steps are left: %+v", len(left), left[0])
	}
	if list := objects(t, p); len(list) != before {
		t.Errorf("%d objects, before %d", len(list), before)
	}
	if n := strings.Count(text.String(), "\n"); n >= 20 {
		t.Errorf("%d log lines:\n%s", n, text)
	}
	for _, key := range []string{"failed0", "failed1"} {
		if err := tryCreate(t, p, key); err != nil {
			t.Error(err)
		}
	}
	if v, err := p.Roll(t.Context(), "used", nil); err != nil || v.Name != "used@2" {
		t.Errorf("%+v, %v: a number was given twice, or lost", v, err)
	}
	if err := p.EncryptBlocks(t.Context(), used, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
}

// TestSweepLeavesOthersSteps: a sweep destroys nothing that another process made, or that another node may have gone on
// with. After ten minutes it ends steps of another process that have made nothing, and finishes the others.
func TestSweepLeavesOthersSteps(t *testing.T) {
	b, m, _ := faultySite(t)
	b.create(t, "used")
	p := b.mustOpen(t)
	fail := func(p *hsm.Provider, key string, action faultmodule.Action) {
		m.Order(faultmodule.GenerateKey, faultmodule.Order{Action: action, Value: p11.CKR_DEVICE_MEMORY,
			Times: faultmodule.Always})
		if err := tryCreate(t, p, key); err == nil {
			t.Fatal("created")
		}
		m.Heal()
	}
	fail(p, "made", faultmodule.FailAfter)
	fail(p, "nothing", faultmodule.Fail)
	mustClose(t, p)
	p = b.mustOpen(t)
	fail(p, "elsewhere", faultmodule.FailAfter)
	p.HandleNotice(metastore.Notice{Key: "elsewhere", Change: metastore.Created})
	sweep := func(later time.Duration, want ...string) {
		t.Helper()
		if err := p.Sweep(t.Context(), later); err != nil {
			t.Error(err)
		}
		var got []string
		for _, i := range pendingSteps(t, b) {
			got = append(got, i.Key)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("after %v these steps are left: %v, want %v", later, got, want)
		}
	}
	sweep(time.Minute, "made", "nothing", "elsewhere")
	if err := tryCreate(t, p, "made"); err != nil { // the same step goes on
		t.Error(err)
	}
	sweep(time.Hour)
	keystream(t, p, "made@0")
	keystream(t, p, "elsewhere@0")
	for _, o := range objects(t, p) {
		if o.Mark != hsm.InUse {
			t.Errorf("%+v", o)
		}
	}
	mustClose(t, p)
}

// TestFaultyHandlesLog: a fault at each encryption is a few lines of the log.
func TestFaultyHandlesLog(t *testing.T) {
	b, m, text := faultySite(t)
	versions := []string{b.create(t, "a"), b.create(t, "b")}
	p := b.mustOpen(t)
	for range 100 {
		for _, v := range versions {
			if err := p.EncryptBlocks(t.Context(), v, make([]byte, 16)); err != nil {
				t.Error(err)
			}
		}
		m.Renumber()
	}
	if n := strings.Count(text.String(), "handle of another object"); n == 0 || n > 5 {
		t.Errorf("%d log lines:\n%s", n, text)
	}
	mustClose(t, p)
}

// lateFinish is a store whose FinishCreate fails for the caller, and takes effect at the next Take.
type lateFinish struct {
	metastore.Store
	intent metastore.Intent
	late   *metastore.Key
}

func (s *lateFinish) FinishCreate(_ context.Context, i metastore.Intent, k metastore.Key) error {
	s.intent, s.late = i, &k
	return errKilled
}

func (s *lateFinish) Take(ctx context.Context, i metastore.Intent, op string) (metastore.Intent, error) {
	if s.late != nil {
		if err := s.Store.FinishCreate(ctx, s.intent, *s.late); err != nil {
			return metastore.Intent{}, err
		}
		s.late = nil
	}
	return s.Store.Take(ctx, i, op)
}

// TestSweepAfterLostAnswer: the transaction that makes a key visible ends only when a sweep already ends the step. The
// key stays.
func TestSweepAfterLostAnswer(t *testing.T) {
	b := newSite(t)
	b.create(t, "used")
	b.around = func(s metastore.Store) metastore.Store { return &lateFinish{Store: s} }
	p := b.mustOpen(t)
	if err := tryCreate(t, p, "late"); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	if err := p.Sweep(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := p.EncryptBlocks(t.Context(), "late@0", make([]byte, 16)); err != nil {
		t.Error(err)
	}
	list := objects(t, p)
	for _, o := range list {
		if o.Mark != hsm.InUse {
			t.Errorf("%+v", o)
		}
	}
	if len(list) != 2 {
		t.Errorf("%+v", list)
	}
	mustClose(t, p)
}

// TestSweepDeletion: a deletion that the HSM did not finish is finished by a sweep.
func TestSweepDeletion(t *testing.T) {
	b, m, _ := faultySite(t)
	b.create(t, "used")
	b.create(t, "gone")
	p := b.mustOpen(t)
	m.Order(faultmodule.DestroyObject, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_MEMORY,
		Times: faultmodule.Always})
	if err := p.Delete(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	if err := p.Sweep(t.Context(), 0); err == nil {
		t.Error("a sweep that could not finish a deletion reports nothing")
	}
	m.Heal()
	waitUntil(t, "the deletion is finished", func() error { return p.Sweep(t.Context(), 0) })
	if list := objects(t, p); len(list) != 1 || len(pendingSteps(t, b)) != 0 {
		t.Errorf("%+v, %+v", list, pendingSteps(t, b))
	}
	mustClose(t, p)
}

// deleteUnfinished deletes keys of a site, whose token destroys no object meanwhile.
func deleteUnfinished(t *testing.T, m *faultmodule.Module, p *hsm.Provider, keys ...string) {
	t.Helper()
	m.Order(faultmodule.DestroyObject, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_MEMORY,
		Times: faultmodule.Always})
	for _, key := range keys {
		if err := p.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	m.Heal()
}

// TestSweepMisfit: while token and store do not fit together, neither a sweep nor a start destroys anything.
func TestSweepMisfit(t *testing.T) {
	b, m, _ := faultySite(t)
	for _, key := range []string{"gone", "a", "b", "c"} {
		b.create(t, key)
	}
	p := b.mustOpen(t)
	deleteUnfinished(t, m, p, "gone")
	b.destroyObjects(t, "a@0", "b@0")
	if err := p.Sweep(t.Context(), time.Hour); !hsm.IsMisfit(err) {
		t.Error(err)
	}
	if list := objects(t, p); len(list) != 2 || len(pendingSteps(t, b)) != 1 {
		t.Errorf("%+v, %+v", list, pendingSteps(t, b))
	}
	mustClose(t, p)
	b.unbind(t) // so that a start sees the misfit
	p = b.mustOpen(t)
	if list := objects(t, p); len(list) != 2 || len(pendingSteps(t, b)) != 1 {
		t.Errorf("after a start: %+v, %+v", list, pendingSteps(t, b))
	}
	mustClose(t, p)
}

// stuckObjects is a library that, once it is stuck, does not find the keys with certain labels: it returns an error.
type stuckObjects struct {
	pkcs11.Boundary
	label string // a part of the labels
	stuck *atomic.Bool
}

func (s stuckObjects) FindObjectsInit(sh p11.SessionHandle, template []*p11.Attribute) error {
	for _, a := range template {
		if s.stuck.Load() && a.Type == p11.CKA_LABEL && strings.Contains(string(a.Value), s.label) {
			return p11.Error(p11.CKR_ACTION_PROHIBITED)
		}
	}
	return s.Boundary.FindObjectsInit(sh, template)
}

// TestSweepGoesOn: deletions that always fail do not keep sweeps from the others.
func TestSweepGoesOn(t *testing.T) {
	b, m, _ := faultySite(t)
	var stuck atomic.Bool
	b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary { return stuckObjects{c, "stuck", &stuck} }
	p := b.mustOpen(t)
	keys := []string{"stuck1", "stuck2", "stuck3", "stuck4", "gone1", "gone2"}
	for _, key := range append(keys, "used") {
		create(t, p, key)
	}
	deleteUnfinished(t, m, p, keys...)
	stuck.Store(true)
	for range 2 {
		if err := p.Sweep(t.Context(), 0); err == nil {
			t.Error("a sweep that could not finish deletions reports nothing")
		}
	}
	if list := pendingSteps(t, b); len(list) != 4 || strings.HasPrefix(list[3].Key, "gone") {
		t.Errorf("%+v", list)
	}
	mustClose(t, p)
}
