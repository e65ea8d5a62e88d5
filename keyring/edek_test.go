package keyring

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// TestGenerate: Generate returns n different EDEKs, refuses too many, and makes a number that the queue cannot hold
// with one call.
func TestGenerate(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	for _, n := range []int{-1, 0} {
		es, err := l.Generate(t.Context(), caller("u"), "nokey", n)
		if err != nil || es == nil || len(es) != 0 {
			t.Fatalf("n = %d: %v, %v", n, es, err)
		}
	}
	if _, err := l.Generate(t.Context(), caller("u"), "nokey", 1); true {
		wantKind(t, err, claviger.KeyNotFound)
	}
	if _, err := l.Generate(t.Context(), caller("u"), "k", MaxGenerate+1); true {
		wantKind(t, err, claviger.Invalid)
	}
	// More EDEKs than the queue can hold are made with one call.
	calls := l.primary.encrypts.Load()
	es, deks := l.edeks(t, "k", 500)
	if got := l.primary.encrypts.Load() - calls; got > 3 { // 1 for the request, 1 for a refill, 1 by edeks
		t.Errorf("%d EncryptBlocks calls for 500 EDEKs", got)
	}
	distinct := map[string]bool{}
	for i, e := range es {
		if e.Version != "k@0" || len(e.IV) != 16 || len(e.Material) != 16 {
			t.Fatalf("EDEK %+v", e)
		}
		distinct[string(deks[i])+string(e.IV)] = true
	}
	if len(distinct) != 500 {
		t.Errorf("%d different DEKs of 500", len(distinct))
	}
}

// TestGenerateAfterRoll: the next EDEK after a roll belongs to the new version, although the queue was full of EDEKs of
// the old version.
func TestGenerateAfterRoll(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	for i := range 20 {
		if es, _ := l.edeks(t, "k", 3); es[2].Version != fmt.Sprintf("k@%d", i) {
			t.Fatalf("EDEK of %s after %d rolls", es[2].Version, i)
		}
		v, err := l.Roll(t.Context(), caller("u"), "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		if cur, err := l.Current(t.Context(), caller("u"), "k"); err != nil || cur.Name != v.Name {
			t.Fatalf("current version %v, %v; want %s", cur, err, v.Name)
		}
		if m, err := l.Metadata(t.Context(), caller("u"), "k"); err != nil || m.Versions != i+2 {
			t.Fatalf("metadata %+v, %v; want %d versions", m, err, i+2)
		}
	}
}

// TestGenerateAfterInvalidate: after Hadoop's client has called Invalidate, EDEKs belong to the version that another
// node made.
func TestGenerateAfterInvalidate(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	l.edeks(t, "k", 1)
	if _, err := l.primary.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	if es, _ := l.edeks(t, "k", 1); es[0].Version != "k@0" {
		t.Fatalf("EDEK of %s: the queue was not used", es[0].Version)
	}
	if err := l.Invalidate(t.Context(), caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	if es, _ := l.edeks(t, "k", 1); es[0].Version != "k@1" {
		t.Fatalf("EDEK of %s after the invalidation", es[0].Version)
	}
}

// TestGenerateAfterDelete: after the deletion of a key, no EDEK from the queue is returned.
func TestGenerateAfterDelete(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	l.edeks(t, "k", 1)
	if err := l.Delete(t.Context(), caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	_, err := l.Generate(t.Context(), caller("u"), "k", 1)
	wantKind(t, err, claviger.KeyNotFound)
}

// TestDecrypt: Decrypt returns the DEK of an EDEK of the named key, and refuses another key, an unknown version and a
// wrong length.
func TestDecrypt(t *testing.T) {
	for _, authorization := range []bool{true, false} {
		t.Run(fmt.Sprintf("key authorization %t", authorization), func(t *testing.T) {
			l := newTestRing(t, func(c *Config) { c.KeyAuthorization = authorization })
			create(t, l.primary, "k")
			create(t, l.primary, "other")
			es, deks := l.edeks(t, "k", 1)
			e, u := es[0], caller("u")
			open := func(key string, hasKey bool, e claviger.EDEK) (secret.Bytes, error) {
				return l.Decrypt(t.Context(), u, key, hasKey, e)
			}
			if dek, err := open("k", true, e); err != nil || !dek.Equal(deks[0]) {
				t.Errorf("DEK differs: %v", err)
			}
			// Like Hadoop, the Ring compares the key's name only with key authorization.
			for _, c := range []struct {
				key    string
				hasKey bool
				text   string
			}{
				{"other", true, "KeyVersion 'k@0' does not belong to the key 'other'"},
				{"nokey", true, "KeyVersion 'k@0' does not belong to the key 'nokey'"},
				{"", false, "KeyVersion 'k@0' does not belong to the key 'null'"},
			} {
				dek, err := open(c.key, c.hasKey, e)
				switch {
				case authorization:
					wantKind(t, err, claviger.WrongKey)
					if text(t, err) != c.text {
						t.Errorf("%q", text(t, err))
					}
				case err != nil || !dek.Equal(deks[0]):
					t.Errorf("name %q: %v", c.key, err)
				}
			}
			for _, version := range []string{"k@1", "nokey@0", "k", "", "@", "k@"} {
				missing := e
				missing.Version = version
				_, err := open("k", true, missing)
				wantKind(t, err, claviger.VersionNotFound)
			}
			for _, n := range []int{0, 15, 17} {
				bad := e
				bad.IV = make([]byte, n)
				_, err := open("k", true, bad)
				wantKind(t, err, claviger.BadIV)
			}
			empty := e
			empty.Material = nil
			if dek, err := open("k", true, empty); err != nil || len(dek) != 0 {
				t.Errorf("EDEK without material: %v, %v", len(dek), err)
			}
		})
	}
}

// TestConcurrentDecrypts: many concurrent requests read a version once.
func TestConcurrentDecrypts(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	es, deks := newEDEKs(t, l.primary.Provider, "k@0", 64)
	var wg sync.WaitGroup
	for round := range 4 {
		for i, e := range es {
			wg.Go(func() {
				dek, err := l.Decrypt(t.Context(), caller("u"), "k", true, e)
				if err != nil || !dek.Equal(deks[i]) {
					t.Errorf("round %d, EDEK %d: %v", round, i, err)
				}
			})
		}
	}
	wg.Wait()
	if v, m := l.primary.versions.Load(), l.primary.metadata.Load(); v != 1 || m != 0 {
		t.Errorf("the primary got %d calls for the version and %d for the metadata; want one reading of "+
			"both", v, m)
	}
}

// TestDecryptsAreNotQueued: 64 requests call the provider at the same time, so that it can combine them into few calls
// of the HSM.
func TestDecryptsAreNotQueued(t *testing.T) {
	const requests = 64
	l := newTestRing(t, nil)
	var calls atomic.Int64
	all := make(chan struct{})
	l.primary.before = func(ctx context.Context, call string) error {
		if call != "EncryptBlocks" {
			return nil
		}
		if calls.Add(1) == requests {
			close(all)
		}
		select {
		case <-all:
			return nil
		case <-ctx.Done():
			return claviger.Errorf("test", claviger.Unavailable, "", "only %d calls at the same time", calls.Load())
		}
	}
	create(t, l.primary, "k")
	es, deks := newEDEKs(t, l.primary.Provider, "k@0", requests)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i, e := range es {
		wg.Go(func() {
			dek, err := l.Decrypt(ctx, caller("u"), "k", true, e)
			if err != nil || !dek.Equal(deks[i]) {
				t.Errorf("EDEK %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// TestRollUnderLoad: during other requests, a new version is used as soon as Roll has returned, and every EDEK can be
// opened.
func TestRollUnderLoad(t *testing.T) {
	l := newTestRing(t, func(c *Config) { c.QueueSize = 20 })
	create(t, l.primary, "k")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				es, err := l.Generate(t.Context(), caller("u"), "k", 7)
				if err != nil {
					t.Error(err)
					return
				}
				for _, e := range es[:1] {
					if _, err := l.Decrypt(t.Context(), caller("u"), "k", true, e); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 50 {
		v, err := l.Roll(t.Context(), caller("u"), "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		if es, _ := l.edeks(t, "k", 2); es[0].Version != v.Name || es[1].Version != v.Name {
			t.Fatalf("EDEK of %s after the roll to %s", es[0].Version, v.Name)
		}
	}
	stop()
	wg.Wait()
}

// TestServicePrimary: if the primary is another KMS, it makes, opens and re-encrypts EDEKs itself.
func TestServicePrimary(t *testing.T) {
	far := newFarKMS(t, "kms://http@far:9600/kms", "k")
	r, err := New(config(t, far))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	es, err := r.Generate(t.Context(), caller("nn"), "k", 40)
	if err != nil || len(es) != 40 {
		t.Fatal(len(es), err)
	}
	deks := unwrapped(t, far.blocks, es)
	far.calls()
	dek, err := r.Decrypt(t.Context(), caller("bob"), "k", true, es[0])
	if err != nil || !dek.Equal(deks[0]) {
		t.Fatal(err)
	}
	if calls := far.calls(); calls[len(calls)-1] != "bob/k@0/1" {
		t.Errorf("calls %q, want an unwrap as bob", calls)
	}
	if _, err := r.Roll(t.Context(), caller("u"), "k", nil); err != nil {
		t.Fatal(err)
	}
	fresh, err := r.Generate(t.Context(), caller("nn"), "k", 1)
	if err != nil {
		t.Fatal(err)
	}
	mixed := append(es[:3:3], fresh...)
	far.calls()
	out, err := r.ReencryptBatch(t.Context(), caller("nn"), "k", mixed)
	if err != nil {
		t.Fatal(err)
	}
	checkReencrypted(t, far.blocks, "k@1", mixed, out, append(deks[:3:3], unwrapped(t, far.blocks, fresh)...))
	if calls := far.calls(); calls[len(calls)-1] != "reencrypt/k/3" {
		t.Errorf("calls %q, want 3 EDEKs re-encrypted", calls)
	}
}

// TestClosed: after Close nothing is served, and the queue's workers have ended.
func TestClosed(t *testing.T) {
	l := newTestRing(t, nil)
	create(t, l.primary, "k")
	es, _ := l.edeks(t, "k", 1)
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0])
	wantKind(t, err, claviger.Closed)
	_, err = l.Generate(t.Context(), caller("u"), "k", 1)
	wantKind(t, err, claviger.Closed)
	wantKind(t, l.Health(t.Context()), claviger.Closed)
	_, err = l.SourceUse(t.Context())
	wantKind(t, err, claviger.Closed)
}

// TestNewRefuses: New refuses an incomplete configuration.
func TestNewRefuses(t *testing.T) {
	p := memory.New(memory.Config{})
	t.Cleanup(func() { _ = p.Close() })
	for name, change := range map[string]func(*Config){
		"no primary": func(c *Config) { c.Primary = nil },
		"no policy":  func(c *Config) { c.Policy = nil },
		"no audit":   func(c *Config) { c.Audit = nil },
		"no EDEKs":   func(c *Config) { c.Primary = struct{ provider.Provider }{p} },
		"queue":      func(c *Config) { c.QueueLowWatermark = 0.001 },
		"bad source": func(c *Config) { c.Sources = []Source{{Provider: struct{ provider.Provider }{p}}} },
	} {
		cfg := config(t, p)
		change(&cfg)
		if r, err := New(cfg); err == nil {
			_ = r.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
