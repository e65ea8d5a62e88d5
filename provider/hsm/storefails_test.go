package hsm_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/hsm"
)

// callFails is a store whose at-th call fails before its work, counted in contexts with oneStep.
type callFails struct {
	metastore.Store
	at    int
	calls []string // the names of the calls
}

func (c *callFails) fail(ctx context.Context, call string) error {
	if ctx.Value(oneStep{}) == nil {
		return nil
	}
	c.calls = append(c.calls, call)
	if len(c.calls) == c.at {
		return errKilled
	}
	return nil
}

// result makes a call that has one result.
func result[T any](ctx context.Context, c *callFails, call string, f func() (T, error)) (r T, err error) {
	if err := c.fail(ctx, call); err != nil {
		return r, err
	}
	return f()
}

// do makes a call that has no result.
func (c *callFails) do(ctx context.Context, call string, f func() error) error {
	if err := c.fail(ctx, call); err != nil {
		return err
	}
	return f()
}

func (c *callFails) Names(ctx context.Context) ([]string, error) {
	return result(ctx, c, "Names", func() ([]string, error) { return c.Store.Names(ctx) })
}

func (c *callFails) Get(ctx context.Context, names ...string) ([]*metastore.Key, error) {
	return result(ctx, c, "Get", func() ([]*metastore.Key, error) { return c.Store.Get(ctx, names...) })
}

func (c *callFails) Remove(ctx context.Context, key string) (metastore.Intent, error) {
	return result(ctx, c, "Remove", func() (metastore.Intent, error) { return c.Store.Remove(ctx, key) })
}

func (c *callFails) RemoveVersion(ctx context.Context, key, id string) (metastore.Intent, error) {
	return result(ctx, c, "RemoveVersion", func() (metastore.Intent, error) {
		return c.Store.RemoveVersion(ctx, key, id)
	})
}

func (c *callFails) NextNumber(ctx context.Context, key string) (int, error) {
	return result(ctx, c, "NextNumber", func() (int, error) { return c.Store.NextNumber(ctx, key) })
}

func (c *callFails) Numbered(ctx context.Context, key string, n int) (bool, error) {
	return result(ctx, c, "Numbered", func() (bool, error) { return c.Store.Numbered(ctx, key, n) })
}

func (c *callFails) Begin(ctx context.Context, i metastore.Intent) (metastore.Intent, error) {
	return result(ctx, c, "Begin", func() (metastore.Intent, error) { return c.Store.Begin(ctx, i) })
}

func (c *callFails) Pending(ctx context.Context, keys ...string) ([]metastore.Intent, error) {
	return result(ctx, c, "Pending", func() ([]metastore.Intent, error) { return c.Store.Pending(ctx, keys...) })
}

func (c *callFails) Take(ctx context.Context, i metastore.Intent, op string) (metastore.Intent, error) {
	return result(ctx, c, "Take", func() (metastore.Intent, error) { return c.Store.Take(ctx, i, op) })
}

func (c *callFails) Records(ctx context.Context, run string) ([]metastore.Record, error) {
	return result(ctx, c, "Records", func() ([]metastore.Record, error) { return c.Store.Records(ctx, run) })
}

func (c *callFails) Runs(ctx context.Context) ([]string, error) {
	return result(ctx, c, "Runs", func() ([]string, error) { return c.Store.Runs(ctx) })
}

func (c *callFails) DeletedKeys(ctx context.Context, names ...string) ([]metastore.DeletedKey, error) {
	return result(ctx, c, "DeletedKeys", func() ([]metastore.DeletedKey, error) {
		return c.Store.DeletedKeys(ctx, names...)
	})
}

func (c *callFails) Discard(ctx context.Context, key string, ids ...string) (metastore.Intent, error) {
	return result(ctx, c, "Discard", func() (metastore.Intent, error) { return c.Store.Discard(ctx, key, ids...) })
}

func (c *callFails) NeverUsed(ctx context.Context, version string) (bool, error) {
	return result(ctx, c, "NeverUsed", func() (bool, error) { return c.Store.NeverUsed(ctx, version) })
}

func (c *callFails) Insert(ctx context.Context, k metastore.Key) error {
	return c.do(ctx, "Insert", func() error { return c.Store.Insert(ctx, k) })
}

func (c *callFails) Append(ctx context.Context, key string, v metastore.Version) error {
	return c.do(ctx, "Append", func() error { return c.Store.Append(ctx, key, v) })
}

func (c *callFails) Prepend(ctx context.Context, key string, v metastore.Version) error {
	return c.do(ctx, "Prepend", func() error { return c.Store.Prepend(ctx, key, v) })
}

func (c *callFails) Amend(ctx context.Context, m claviger.Metadata) error {
	return c.do(ctx, "Amend", func() error { return c.Store.Amend(ctx, m) })
}

func (c *callFails) SkipNumbers(ctx context.Context, key string, next int) error {
	return c.do(ctx, "SkipNumbers", func() error { return c.Store.SkipNumbers(ctx, key, next) })
}

func (c *callFails) FinishCreate(ctx context.Context, i metastore.Intent, k metastore.Key) error {
	return c.do(ctx, "FinishCreate", func() error { return c.Store.FinishCreate(ctx, i, k) })
}

func (c *callFails) FinishRoll(ctx context.Context, i metastore.Intent, v metastore.Version) error {
	return c.do(ctx, "FinishRoll", func() error { return c.Store.FinishRoll(ctx, i, v) })
}

func (c *callFails) Drop(ctx context.Context, key string) error {
	return c.do(ctx, "Drop", func() error { return c.Store.Drop(ctx, key) })
}

func (c *callFails) Put(ctx context.Context, run, item string, record []byte) error {
	return c.do(ctx, "Put", func() error { return c.Store.Put(ctx, run, item, record) })
}

func (c *callFails) SetSetting(ctx context.Context, name, value string) error {
	return c.do(ctx, "SetSetting", func() error { return c.Store.SetSetting(ctx, name, value) })
}

func (c *callFails) SoftDelete(ctx context.Context, key string) error {
	return c.do(ctx, "SoftDelete", func() error { return c.Store.SoftDelete(ctx, key) })
}

func (c *callFails) Undelete(ctx context.Context, key, id string) error {
	return c.do(ctx, "Undelete", func() error { return c.Store.Undelete(ctx, key, id) })
}

func (c *callFails) ForgetUnused(ctx context.Context) error {
	return c.do(ctx, "ForgetUnused", func() error { return c.Store.ForgetUnused(ctx) })
}

func (c *callFails) Page(ctx context.Context, from string, n int) (names []string, next string, err error) {
	err = c.do(ctx, "Page", func() error { names, next, err = c.Store.Page(ctx, from, n); return err })
	return names, next, err
}

func (c *callFails) ByVersion(ctx context.Context, name string) (m *claviger.Metadata, v metastore.Version, err error) {
	err = c.do(ctx, "ByVersion", func() error { m, v, err = c.Store.ByVersion(ctx, name); return err })
	return m, v, err
}

func (c *callFails) Setting(ctx context.Context, name string) (value string, ok bool, err error) {
	err = c.do(ctx, "Setting "+name, func() error { value, ok, err = c.Store.Setting(ctx, name); return err })
	return value, ok, err
}

func (c *callFails) LastUses(ctx context.Context, versions ...string) (last []time.Time, since time.Time, err error) {
	err = c.do(ctx, "LastUses", func() error { last, since, err = c.Store.LastUses(ctx, versions...); return err })
	return last, since, err
}

func (c *callFails) Lock(ctx context.Context, name string) (unlock func(), err error) {
	err = c.do(ctx, "Lock", func() error { unlock, err = c.Store.Lock(ctx, name); return err })
	return unlock, err
}

func (c *callFails) TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error) {
	err = c.do(ctx, "TryLock", func() error { unlock, ok, err = c.Store.TryLock(ctx, name); return err })
	return unlock, ok, err
}

// storeOps are operations on the site of siteOfOps, with their accesses.
var storeOps = map[string]struct {
	access hsm.Access
	do     func(context.Context, *hsm.Provider) error
}{
	"create": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error {
		_, err := p.Create(ctx, provider.Spec{Name: "young", Cipher: claviger.DefaultCipher, BitLength: 128})
		return err
	}},
	"import": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error {
		m := claviger.Metadata{Name: "taken", Cipher: claviger.DefaultCipher, BitLength: 128}
		_, err := p.Import(ctx, m, 2, 5, nil)
		return err
	}},
	"roll": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error {
		_, err := p.Roll(ctx, "k", nil)
		return err
	}},
	"roll of a missing version": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error {
		_, err := p.Roll(ctx, "broken", nil)
		if err != nil && strings.Contains(err.Error(), "does not hold the current version broken@0") {
			return nil
		}
		return err
	}},
	"delete": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error { return p.Delete(ctx, "other") }},
	"undelete": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error {
		return p.Undelete(ctx, "gone", "gone@0")
	}},
	"purge": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error {
		err := p.Purge(ctx, "gone", "gone@0")
		if claviger.Is(err, claviger.KeyNotFound) { // the purge before has failed at its end
			return nil
		}
		return err
	}},
	"purge of a version": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error {
		err := p.PurgeVersion(ctx, "k@0")
		if claviger.Is(err, claviger.VersionNotFound) { // the purge before has failed at its end
			return nil
		}
		return err
	}},
	"finish a step": {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error {
		return p.Sweep(ctx, time.Hour)
	}},
	"survey":              {hsm.Serve, func(ctx context.Context, p *hsm.Provider) error { return p.SurveyNow(ctx) }},
	"prune":               {hsm.Destroy, prune},
	"adopt":               {hsm.Repair, adopt},
	"set aside":           {hsm.Repair, setAside},
	"rebind":              {hsm.Rebind, func(ctx context.Context, p *hsm.Provider) error { return p.Rebind(ctx) }},
	"accept a copy":       {hsm.Repair, accept},
	"a lost name":         {hsm.Serve, current("lost")},
	"a name of no key":    {hsm.Serve, current("never")},
	"a version of no key": {hsm.Serve, version},
	"describe": {hsm.Serve, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.Describe(ctx, "k")
	})},
	"versions": {hsm.Serve, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.Versions(ctx, "k")
	})},
	"metadata": {hsm.Serve, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.Metadata(ctx, "k", "never")
	})},
	"protection": {hsm.Serve, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.Protection(ctx, []string{"k@0"})
	})},
	"deleted": {hsm.Serve, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.Deleted(ctx)
	})},
	"objects": {hsm.Inspect, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.Objects(ctx)
	})},
	"candidates": {hsm.Inspect, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.Candidates(ctx)
	})},
	"bindings": {hsm.Inspect, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		_, _, err := p.Bindings(ctx)
		return nil, err
	})},
	"adopted": {hsm.Read, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.Adopted(ctx, "k")
	})},
	"given up": {hsm.Read, reads(func(ctx context.Context, p *hsm.Provider) (any, error) {
		return p.GivenUp(ctx, []string{"k@0"})
	})},
}

// reads is an operation without its result.
func reads(read func(context.Context, *hsm.Provider) (any, error)) func(context.Context, *hsm.Provider) error {
	return func(ctx context.Context, p *hsm.Provider) error {
		_, err := read(ctx, p)
		return err
	}
}

// current reads the current version of a key that the store does not have.
func current(key string) func(context.Context, *hsm.Provider) error {
	return func(ctx context.Context, p *hsm.Provider) error {
		_, err := p.Current(ctx, key)
		lost := errors.Is(err, provider.ErrLost) && key == "lost"
		if lost || claviger.Is(err, claviger.KeyNotFound) && key == "never" {
			return nil
		}
		return err
	}
}

// version reads a version that the store does not have, and never had.
func version(ctx context.Context, p *hsm.Provider) error {
	_, err := p.Version(ctx, "never@0")
	if claviger.Is(err, claviger.VersionNotFound) {
		return nil
	}
	return err
}

func accept(ctx context.Context, p *hsm.Provider) error {
	_, _, err := p.AcceptCopy(ctx)
	return err
}

func prune(ctx context.Context, p *hsm.Provider) error {
	list, err := p.Prunable(ctx, 0)
	if err != nil {
		return err
	}
	_, err = p.Prune(ctx, list.Orphans)
	return err
}

func adopt(ctx context.Context, p *hsm.Provider) error {
	list, err := p.Candidates(context.Background())
	for _, c := range list {
		err = errors.Join(err, p.Adopt(ctx, c, hsm.Adoption{}))
	}
	return err
}

func setAside(ctx context.Context, p *hsm.Provider) error {
	list, err := p.Candidates(context.Background())
	for _, c := range list {
		err = errors.Join(err, p.SetAside(ctx, c, hsm.Adoption{}))
	}
	return err
}

// TestStoreCallsFail: whichever call of the metastore fails, an operation does not take the failure for an empty
// result. Otherwise it would, for instance, make a key under the name of a lost one, or destroy an object in use.
func TestStoreCallsFail(t *testing.T) {
	ctx := context.WithValue(t.Context(), oneStep{}, true)
	for _, name := range slices.Sorted(maps.Keys(storeOps)) {
		t.Run(name, func(t *testing.T) {
			b := siteOfOps(t)
			store := new(callFails)
			b.around = func(s metastore.Store) metastore.Store { store.Store = s; return store }
			b.access = storeOps[name].access
			for reached := true; reached; {
				p := b.mustOpen(t)
				store.at, store.calls = store.at+1, nil
				err := storeOps[name].do(ctx, p)
				reached = len(store.calls) >= store.at
				switch {
				case reached && !errors.Is(err, errKilled):
					t.Errorf("call %d, %s, failed: %v", store.at, store.calls[store.at-1], err)
				case !reached && err != nil:
					t.Errorf("without a failure: %v", err)
				case !reached && store.at == 1:
					t.Error("no call was made")
				}
				mustClose(t, p)
			}
		})
	}
}

// siteOfOps makes a site with the key k of two versions, the key other, the deleted key gone, the orphan orphan@0, an
// interrupted roll of the key half, the key broken without its object, and lost@0, which the store has lost.
func siteOfOps(t *testing.T) *testSite {
	t.Helper()
	b := newSite(t)
	b.soft = "true"
	p := b.mustOpen(t)
	for _, key := range []string{"k", "other", "gone", "orphan", "half", "broken"} {
		create(t, p, key)
	}
	_, err := p.Roll(t.Context(), "k", nil)
	if err = errors.Join(err, p.Delete(t.Context(), "gone")); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.forget(t, "orphan")
	b.around = func(s metastore.Store) metastore.Store { return rollFails{s} }
	p = b.mustOpen(t)
	if _, err := p.Roll(t.Context(), "half", nil); err == nil {
		t.Fatal("rolled")
	}
	mustClose(t, p)
	b.around = nil
	b.destroyObjects(t, "broken@0")
	b.closeStores(t)
	copied, err := os.ReadFile(b.db)
	if err != nil {
		t.Fatal(err)
	}
	b.create(t, "lost")
	b.closeStores(t)
	b.putUnnoticed(t, copied)
	return b
}

// TestPruneFails: an orphan that the token does not destroy is not reported as destroyed, and the failure is an error.
func TestPruneFails(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.create(t, "orphan")
	b.forget(t, "orphan")
	b.access = hsm.Destroy
	p := b.mustOpen(t)
	list, err := p.Prunable(t.Context(), 0)
	if err != nil || len(list.Orphans) != 1 {
		t.Fatal(list, err)
	}
	for skip := 0; ; skip++ { // the first may be that of a data object
		b.meter.Fail("DestroyObject", skip, nil)
		b.meter.Fail("DestroyObject", 1, errKilled)
		gone, err := p.Prune(t.Context(), list.Orphans)
		b.meter.Heal()
		left := len(objects(t, p)) - 1
		if (err == nil) != (left == 0) || len(gone) != 1-left {
			t.Errorf("failure %d: destroyed %+v, %v, and %d orphans are left", skip, gone, err, left)
		}
		if left == 0 {
			break
		}
	}
	mustClose(t, p)
}

// TestDamagedGivenUp: a damaged list of versions that were given up is an error that names it. It is not read as an
// empty list, by which these versions would be lost again.
func TestDamagedGivenUp(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.setting(t, "hsm.lost."+b.token.Serial, "no JSON")
	p, err := b.open(t.Context())
	if err == nil {
		err = p.CheckAll(t.Context())
		mustClose(t, p)
	}
	if err == nil || !strings.Contains(err.Error(), "setting hsm.lost."+b.token.Serial) {
		t.Errorf("%v", err)
	}
}

// TestBindings: the list has the stores to which the token is bound, and says whether this store is one of them. A
// token without data objects has no list, and counts as bound.
func TestBindings(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	want := func(access hsm.Access, stores int, bound bool) {
		t.Helper()
		b.access = access
		p := b.mustOpen(t)
		list, is, err := p.Bindings(t.Context())
		if err != nil || len(list) != stores || is != bound {
			t.Errorf("%+v, %t, %v; want %d stores, %t", list, is, err, stores, bound)
		}
		mustClose(t, p)
	}
	want(hsm.Inspect, 1, true)
	b.db += ".new"
	want(hsm.Repair, 1, false)
	other := newSite(t)
	other.meter.Fail("CreateObject", 1000, p11.Error(p11.CKR_FUNCTION_NOT_SUPPORTED))
	b = other
	want(hsm.Serve, 0, true)
}

// TestPrunableFails: whichever call of the token fails, orphans are not left out of the list without an error.
func TestPrunableFails(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.create(t, "orphan")
	b.forget(t, "orphan")
	b.access = hsm.Destroy
	p := b.mustOpen(t)
	for _, call := range []string{"FindObjectsInit", "GetAttributeValue"} {
		for skip, failed := 0, true; failed; skip++ {
			b.meter.Reset()
			b.meter.Fail(call, skip, nil)
			b.meter.Fail(call, 1000, errKilled)
			list, err := p.Prunable(t.Context(), 0)
			failed = b.meter.Count(call) > skip
			b.meter.Heal()
			if (err != nil) != failed || err == nil && len(list.Orphans) != 1 {
				t.Errorf("%s fails after %d calls: %+v, %v", call, skip, list.Orphans, err)
			}
			if !failed && skip < 2 {
				t.Errorf("only %d calls of %s", skip, call)
			}
		}
	}
	mustClose(t, p)
}
