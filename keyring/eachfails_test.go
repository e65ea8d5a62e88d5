package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/metastore/storetest"
	"claviger/provider"
	"claviger/provider/memory"
)

// errInjected is the error of the call that fails.
var errInjected = errors.New("injected fault")

// calls counts the calls that an operation makes to the primary, the source, the store and the journal. It can make a
// call, and all later calls of the same name, fail; with once, only that call.
type calls struct {
	mu   sync.Mutex
	list []string
	fail int // the first call that fails, from 1; 0: none
	once bool
}

// counted marks the context of the operation. Calls that the Ring makes in the background are not counted, but they
// fail as well: otherwise such a call could find out for the operation what the operation could not.
type counted struct{}

func (c *calls) at(ctx context.Context, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fails := c.fail > 0 && len(c.list) >= c.fail && !c.once && name == c.list[c.fail-1]
	if ctx.Value(counted{}) != nil {
		c.list = append(c.list, name)
		fails = fails || len(c.list) == c.fail
	}
	if fails {
		return claviger.E("test", claviger.Unavailable, "", errInjected)
	}
	return nil
}

type callsPrimary struct {
	*counting
	c *calls
}

func (p *callsPrimary) Keys(ctx context.Context) ([]string, error) {
	if err := p.c.at(ctx, "Keys"); err != nil {
		return nil, err
	}
	return p.counting.Keys(ctx)
}

func (p *callsPrimary) Deleted(ctx context.Context, names ...string) ([]provider.Deleted, error) {
	if err := p.c.at(ctx, "Deleted"); err != nil {
		return nil, err
	}
	return p.counting.Deleted(ctx, names...)
}

func (p *callsPrimary) Undelete(ctx context.Context, key, version string) error {
	if err := p.c.at(ctx, "Undelete"); err != nil {
		return err
	}
	return p.counting.Undelete(ctx, key, version)
}

func (p *callsPrimary) Purge(ctx context.Context, key string, versions ...string) error {
	if err := p.c.at(ctx, "Purge"); err != nil {
		return err
	}
	return p.counting.Purge(ctx, key, versions...)
}

type callsHistory struct {
	*journal
	c *calls
}

func (h *callsHistory) Origins(ctx context.Context) ([]Origin, error) {
	if err := h.c.at(ctx, "Origins"); err != nil {
		return nil, err
	}
	return h.journal.Origins(ctx)
}

func (h *callsHistory) Alias(ctx context.Context, name string) (string, bool, error) {
	if err := h.c.at(ctx, "Alias"); err != nil {
		return "", false, err
	}
	return h.journal.Alias(ctx, name)
}

// failingRing is a Ring with a source. The source's key "payroll" was migrated, its key "theirs" was not. The key "own"
// was made here, and the key "gone" was made and deleted here.
type failingRing struct {
	*testRing
	c      *calls
	far    *farKMS
	policy atomic.Pointer[authz.Policy] // in force
	// EDEKs of the key "own", of the key "theirs", and of the migrated key: under its version here, and under the
	// source's version.
	own, foreign, migrated, older claviger.EDEK
}

func newFailingRing(t *testing.T, change ...func(*Config)) *failingRing {
	t.Helper()
	w := &failingRing{c: &calls{}, far: newFarKMS(t, farURI, "payroll", "theirs")}
	primary := &counting{Provider: memory.New(memory.Config{Sealed: true, SoftDelete: true}), before: w.c.at}
	past := &journal{aliases: map[string]string{}}
	past.takeOver(t, w.far, primary, "payroll")
	past.list[0].Numbered, past.list[0].Counted = true, 1
	store := &storetest.Intercepted{Store: openStore(t), Before: w.c.at}
	w.testRing = newTestRing(t, func(c *Config) {
		c.Primary, c.Reencryption = &callsPrimary{primary, w.c}, true
		c.History = &callsHistory{past, w.c}
		c.Sources = []Source{{Provider: w.far, Reencryption: true}}
		c.Migrator = mover{t, past, w.far, primary}
		c.Settings, c.Numbers, c.LastUses, c.Usage, c.Clock = store, store, store, store, store
		c.PurgeMinUnused = time.Nanosecond
		c.MayDestroy = func(ctx context.Context, _ bool) error { return w.c.at(ctx, "MayDestroy") }
		w.setRules(t, trusteeRules("keytrustee.kms.acl.UNDELETE", "*", "keytrustee.kms.acl.PURGE", "*",
			"key.acl.theirs.MIGRATE", "u", "key.acl.theirs.DECRYPT_EEK", "*")...)
		c.Policy = w.policy.Load
		c.CacheEnable, c.QueueFillers = false, 1
		for _, f := range change {
			f(c)
		}
	})
	w.primary = primary
	ctx, u := t.Context(), caller("u")
	for _, name := range []string{"own", "gone"} {
		if _, err := w.Create(ctx, u, provider.Spec{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Delete(ctx, u, "gone"); err != nil {
		t.Fatal(err)
	}
	edek := func(by provider.BlockEncrypter, key string, r provider.Reader) claviger.EDEK {
		v, err := r.Current(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		es, _ := newEDEKs(t, by, v.Name, 1)
		return es[0]
	}
	w.migrated, w.own = edek(primary.Provider, "payroll", primary), edek(primary.Provider, "own", primary)
	w.foreign, w.older = edek(w.far.blocks, "theirs", w.far), edek(w.far.blocks, "payroll", w.far)
	w.far.setFail(func(ctx context.Context) error { return w.c.at(ctx, "source") })
	return w
}

// cached is a change of the Config that enables the cache.
func cached(c *Config) { c.CacheEnable = true }

// setRules replaces the rules.
func (w *failingRing) setRules(t *testing.T, pairs ...string) {
	t.Helper()
	w.policy.Store(rules(t, pairs...)())
}

// eachOperation is a request, or a task in the background.
type eachOperation struct {
	name    string
	prepare func(t *testing.T, w *failingRing) // nil: nothing
	run     func(ctx context.Context, w *failingRing) error
}

// errOf drops the result, and returns the error.
func errOf[T any](_ T, err error) error { return err }

func manageOperations() []eachOperation {
	u := caller("u")
	softly := func(t *testing.T, w *failingRing) {
		t.Helper()
		if err := w.Delete(t.Context(), u, "payroll"); err != nil {
			t.Fatal(err)
		}
	}
	return []eachOperation{
		{"create", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Create(ctx, u, provider.Spec{Name: "new"}))
		}},
		{"create beside a deleted key", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Create(ctx, u, provider.Spec{Name: "gone"}))
		}},
		{"roll", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.Roll(ctx, u, "own", nil)) }},
		{"roll migrated", rolledThere, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Roll(ctx, u, "payroll", nil))
		}},
		{"delete", nil, func(ctx context.Context, w *failingRing) error { return w.Delete(ctx, u, "own") }},
		{"undelete", nil, func(ctx context.Context, w *failingRing) error { return w.Undelete(ctx, u, "gone", "") }},
		{"undelete migrated", softly, func(ctx context.Context, w *failingRing) error {
			return w.Undelete(ctx, u, "payroll", "")
		}},
		{"purge", nil, func(ctx context.Context, w *failingRing) error { return w.Purge(ctx, u, "gone", "") }},
		{"purge migrated", softly, func(ctx context.Context, w *failingRing) error {
			return w.Purge(ctx, u, "payroll", "")
		}},
		{"purge all", nil, func(ctx context.Context, w *failingRing) error { return w.PurgeAll(ctx, u, "gone") }},
		{"migrate", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.Migrate(ctx, u, "theirs")) }},
		{"invalidate", nil, func(ctx context.Context, w *failingRing) error { return w.Invalidate(ctx, u, "own") }},
	}
}

func readOperations() []eachOperation {
	u := caller("u")
	return []eachOperation{
		{"deleted", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.Deleted(ctx, u)) }},
		{"describe", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.Describe(ctx, u, "own")) }},
		{"describe deleted", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Describe(ctx, u, "gone"))
		}},
		{"names", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.Names(ctx, u)) }},
		{"metadata of keys", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.KeysMetadata(ctx, u, []string{"own", "payroll", "theirs"}))
		}},
		{"metadata", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.Metadata(ctx, u, "own")) }},
		{"current", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.Current(ctx, u, "own")) }},
		{"version", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Version(ctx, u, w.own.Version))
		}},
		{"versions", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.Versions(ctx, u, "own")) }},
	}
}

func edekOperations() []eachOperation {
	u := caller("u")
	return []eachOperation{
		{"generate", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Generate(ctx, u, "own", 1))
		}},
		{"decrypt", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Decrypt(ctx, u, "own", true, w.own))
		}},
		{"decrypt migrated", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Decrypt(ctx, u, "payroll", true, w.migrated))
		}},
		{"decrypt migrated, older", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Decrypt(ctx, u, "payroll", true, w.older))
		}},
		{"decrypt foreign", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Decrypt(ctx, u, "theirs", true, w.foreign))
		}},
		{"reencrypt", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Reencrypt(ctx, u, "own", true, w.own))
		}},
		{"reencrypt migrated", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.ReencryptBatch(ctx, u, "payroll", []claviger.EDEK{w.migrated, w.older}))
		}},
		{"reencrypt rolled", rolledHere, func(ctx context.Context, w *failingRing) error {
			return errOf(w.ReencryptBatch(ctx, u, "payroll", []claviger.EDEK{w.migrated, w.older}))
		}},
	}
}

func sourceOperations() []eachOperation {
	return []eachOperation{
		{"check names", nil, func(ctx context.Context, w *failingRing) error { return w.CheckNames(ctx) }},
		{"check migrations", nil, func(ctx context.Context, w *failingRing) error { return w.CheckMigrations(ctx) }},
		{"compare sources", nil, func(ctx context.Context, w *failingRing) error { return w.CompareSources(ctx) }},
		{"compare rolled sources", rolledThere, func(ctx context.Context, w *failingRing) error {
			return w.CompareSources(ctx)
		}},
		{"version that no source has", nil, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Version(ctx, caller("u"), "payroll@5"))
		}},
		{"generate by another spelling", spelled, func(ctx context.Context, w *failingRing) error {
			return errOf(w.Generate(ctx, caller("u"), "PAYROLL", 1))
		}},
		{"compare in conflict", func(t *testing.T, w *failingRing) {
			t.Helper()
			past := w.origins.history.(*callsHistory)
			past.list[0].Rolled = 2
			w.origins.forget()
		}, func(ctx context.Context, w *failingRing) error { return w.CompareSources(ctx) }},
		{"source use", nil, func(ctx context.Context, w *failingRing) error { return errOf(w.SourceUse(ctx)) }},
		{"check source", nil, func(ctx context.Context, w *failingRing) error { return w.CheckSource(ctx, 0) }},
	}
}

// spelled records that the migrated key has other spellings.
func spelled(t *testing.T, w *failingRing) {
	t.Helper()
	past, _ := w.origins.history.(*callsHistory)
	past.aliases["payroll"] = "payroll"
}

// rolledHere rolls the migrated key here.
func rolledHere(t *testing.T, w *failingRing) {
	t.Helper()
	if _, err := w.Roll(t.Context(), caller("u"), "payroll", nil); err != nil {
		t.Fatal(err)
	}
}

// rolledThere rolls the migrated key at the source.
func rolledThere(t *testing.T, w *failingRing) {
	t.Helper()
	if _, err := w.far.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
}

// mayFail has the calls without which an operation can succeed, and the reason. With "once" it can succeed if the same
// call succeeds later.
var mayFail = map[string]string{
	"current 2 NeverUsed":                           "a reading uses no version",
	"version 2 NeverUsed":                           "a reading uses no version",
	"decrypt 2 NeverUsed once":                      "before the answer it is read again",
	"decrypt migrated 2 NeverUsed once":             "before the answer it is read again",
	"generate 2 NeverUsed once":                     "before the answer it is read again",
	"generate by another spelling 4 NeverUsed once": "before the answer it is read again",
	"reencrypt 2 NeverUsed once":                    "before the answer it is read again",
	"reencrypt rolled 2 NeverUsed once":             "before the answer it is read again",
	"reencrypt rolled 4 NeverUsed once":             "before the answer it is read again",
	"reencrypt migrated 2 NeverUsed once":           "before the answer it is read again",
	"undelete migrated 3 source":                    "a source that does not answer blocks no return of its own key",
	"undelete migrated 4 Setting":                   "the comparison with the source is repeated every 30 s",
	"undelete migrated 5 source":                    "the comparison with the source is repeated every 30 s",
	"compare in conflict 7 Version":                 "the cure in a log line",
	"compare in conflict 8 Versions":                "the cure in a log line",
	"compare in conflict 9 NeverUsed":               "the cure in a log line",
	"compare rolled sources 6 source":               "a version that the source may have counts as its version",
	"compare rolled sources 11 Version":             "the cure in a log line",
	"compare rolled sources 12 Versions":            "the cure in a log line",
	"compare rolled sources 13 NeverUsed":           "the cure in a log line",
}

// TestEachCallFails: if a call of an operation fails, the operation fails with that error, and does not answer with a
// guess. It fails too if the same call would succeed a moment later.
func TestEachCallFails(t *testing.T) {
	for _, o := range slices.Concat(manageOperations(), readOperations(), edekOperations(), sourceOperations()) {
		t.Run(o.name, func(t *testing.T) {
			all, err := o.try(t, 0, false)
			if err != nil {
				t.Fatalf("without a fault: %v", err)
			}
			t.Log(strings.Join(all, ", "))
			for i, call := range all {
				name := fmt.Sprintf("%s %d %s", o.name, i+1, call)
				for _, once := range []bool{false, true} {
					optional := mayFail[name] != "" || once && mayFail[name+" once"] != ""
					_, err := o.try(t, i+1, once)
					if (err == nil) != optional || err != nil && !strings.Contains(err.Error(), errInjected.Error()) {
						t.Errorf("call %d (%s) fails, only once: %t: the operation returns %v", i+1, call, once, err)
					}
				}
			}
		})
	}
}

// try runs the operation while a call fails, and returns the calls; fail and once are those of calls.
func (o eachOperation) try(t *testing.T, fail int, once bool) (list []string, err error) {
	t.Helper()
	w := newFailingRing(t)
	if o.prepare != nil {
		o.prepare(t, w)
	}
	w.origins.forget() // so that the operation reads the journal
	w.c.fail, w.c.once = fail, once
	err = o.run(context.WithValue(t.Context(), counted{}, true), w)
	return slices.Clone(w.c.list), err
}
