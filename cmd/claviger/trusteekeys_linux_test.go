package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/keytrustee"
	"claviger/trustee"
)

// kmsOfHosts returns the provider of a KT KMS at some hosts, the active one first.
func kmsOfHosts(t *testing.T, hosts ...*host) provider.Provider {
	t.Helper()
	conf, roots := t.TempDir(), x509.NewCertPool()
	site := ""
	property := func(name, value string) {
		site += fmt.Sprintf("<property><name>cloudera.trustee.keyprovider.%s</name><value>%s</value></property>\n",
			name, value)
	}
	for i, h := range hosts {
		property([]string{"hostname-ACTIVE", "hostname-PASSIVE"}[i], h.addr)
		pem, err := os.ReadFile(filepath.Join(h.dir, trustee.TLSCert))
		if err != nil || !roots.AppendCertsFromPEM(pem) {
			t.Fatal(err)
		}
	}
	property("org", "ORG")
	property("auth", "walrus")
	property("keylength", "2048")
	property("roundrobin", "true")
	if err := os.WriteFile(filepath.Join(conf, "kts-site.xml"), []byte("<configuration>\n"+site+"</configuration>\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	trust := func(provider.Env) (*tls.Config, error) {
		return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, nil
	}
	p, err := keytrustee.Scheme(trust).Open(t.Context(), "keytrustee://file@"+filepath.Join(conf, ".keytrustee"),
		provider.Env{
			Get: func(string) (string, bool) { return "", false }, Getenv: func(string) string { return "" },
			ConfDir: conf,
		})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() }) // an error of Close is of no interest here
	return p
}

// keyLoad makes and rolls keys, in several goroutines, until stop is called.
type keyLoad struct {
	t     *testing.T
	p     provider.Provider
	ctx   context.Context //nolint:containedctx // of the goroutines
	stop  func()          // may be called again
	mu    sync.Mutex
	acked map[string][]string // versions of each key that were acknowledged; guarded by mu

	count, refused atomic.Int64
}

func startKeyLoad(t *testing.T, p provider.Provider) *keyLoad {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &keyLoad{t: t, p: p, ctx: ctx, acked: map[string][]string{}}
	var group sync.WaitGroup
	l.stop = func() { cancel(); group.Wait() }
	for w := range 3 {
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.makeKey(fmt.Sprintf("key-%d-%d", w, n))
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	return l
}

// makeKey makes a key with two versions.
func (l *keyLoad) makeKey(name string) {
	v, err := l.p.Create(l.ctx, provider.Spec{Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 256})
	if err == nil {
		l.acknowledged(v)
		v, err = l.p.Roll(l.ctx, name, nil)
	}
	switch {
	case err == nil:
		l.acknowledged(v)
	case l.ctx.Err() != nil:
	case claviger.Is(err, claviger.Unavailable):
		l.refused.Add(1)
	default:
		l.t.Errorf("%s: %v", name, err)
	}
}

func (l *keyLoad) acknowledged(v claviger.KeyVersion) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[v.Key] = append(l.acked[v.Key], v.Name)
	l.count.Add(1)
}

// await waits until a counter has grown by n.
func (l *keyLoad) await(what string, counter *atomic.Int64, n int64) {
	l.t.Helper()
	for begun, from := time.Now(), counter.Load(); counter.Load() < from+n; time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > 40*time.Second {
			l.t.Fatalf("%s: %d of %d", what, counter.Load()-from, n)
		}
	}
}

// TestKeysWhileTrusteesAreKilled: keys are made and rolled while the passive trustee, the active one, and both are
// killed. Each key that was acknowledged exists with its versions. A key that was not acknowledged is complete or does
// not exist.
func TestKeysWhileTrusteesAreKilled(t *testing.T) {
	a, b := twoHosts(t)
	a.start()
	b.start()
	a.awaitEqual("the first copy")
	p := kmsOfHosts(t, a, b)
	l := startKeyLoad(t, p)
	defer l.stop()
	l.await("keys at first", &l.count, 10)
	for _, killed := range [][]*host{{b}, {a}, {a, b}} {
		for _, h := range killed {
			h.kill()
		}
		l.await("refusals while a trustee is down", &l.refused, 3)
		for _, h := range killed {
			h.start()
		}
		l.await("keys when it is back", &l.count, 10)
	}
	l.stop()
	a.awaitEqual("equality at the end")
	for _, h := range []*host{b, a} { // each of them alone must have all keys
		h.peer.kill()
		l.check()
		h.peer.start()
		a.awaitEqual("equality before the other is killed") // an unequal trustee would list nothing
	}
	t.Logf("%d keys and versions acknowledged, %d calls refused", l.count.Load(), l.refused.Load())
}

// check checks that the acknowledged keys and versions exist, and that each version encrypts.
func (l *keyLoad) check() {
	l.t.Helper()
	ctx := l.t.Context()
	names, err := l.p.Keys(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	for name, versions := range l.acked {
		if !slices.Contains(names, name) {
			l.t.Errorf("%s was acknowledged, with %s, and does not exist", name, versions)
		}
	}
	for _, name := range names {
		list, err := l.p.Versions(ctx, name)
		if err != nil || len(list) == 0 {
			l.t.Errorf("%s: %d versions, %v", name, len(list), err)
		}
		var have []string
		for _, v := range list {
			have = append(have, v.Name)
			if err := l.p.(provider.BlockEncrypter).EncryptBlocks(ctx, v.Name, make([]byte, 16)); err != nil {
				l.t.Errorf("%s: %v", v.Name, err)
			}
		}
		for _, v := range l.acked[name] {
			if !slices.Contains(have, v) {
				l.t.Errorf("%s was acknowledged and does not exist: %s", v, have)
			}
		}
	}
}
