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

// kmsOfHosts is a KT KMS's provider at these hosts, the active first.
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
	t.Cleanup(func() { _ = p.Close() }) // what it would tell was told before
	return p
}

// TestKeysWhileTrusteesAreKilled: keys are made and rolled while the passive trustee,
// the active one, and both are killed. Each key that was acknowledged is there with
// its versions; one that was not is either whole or not there at all.
func TestKeysWhileTrusteesAreKilled(t *testing.T) {
	a, b := twoHosts(t)
	a.start()
	b.start()
	a.awaitEqual("the first copy")
	p := kmsOfHosts(t, a, b)
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	acked := map[string][]string{} // versions of each key
	var count, refused atomic.Int64
	note := func(v claviger.KeyVersion) {
		mu.Lock()
		defer mu.Unlock()
		acked[v.Key] = append(acked[v.Key], v.Name)
		count.Add(1)
	}
	var group sync.WaitGroup
	defer func() { cancel(); group.Wait() }()
	for w := range 3 {
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("key-%d-%d", w, n)
				v, err := p.Create(ctx, provider.Spec{Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 256})
				if err == nil {
					note(v)
					v, err = p.Roll(ctx, name, nil)
				}
				switch {
				case err == nil:
					note(v)
				case ctx.Err() != nil:
				case claviger.Is(err, claviger.Unavailable):
					refused.Add(1)
				default:
					t.Errorf("%s: %v", name, err)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	more := func(what string, counter *atomic.Int64, n int64) {
		t.Helper()
		for begun, from := time.Now(), counter.Load(); counter.Load() < from+n; time.Sleep(5 * time.Millisecond) {
			if time.Since(begun) > 40*time.Second {
				t.Fatalf("%s: %d of %d", what, counter.Load()-from, n)
			}
		}
	}
	more("keys at first", &count, 10)
	for _, killed := range [][]*host{{b}, {a}, {a, b}} {
		for _, h := range killed {
			h.kill()
		}
		more("refusals while one is away", &refused, 3)
		for _, h := range killed {
			h.start()
		}
		more("keys when it is back", &count, 10)
	}
	cancel()
	group.Wait()
	a.awaitEqual("equality in the end")

	ctx = t.Context()
	for _, h := range []*host{b, a} { // each alone must have it all
		h.peer.kill()
		names, err := p.Keys(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for name, versions := range acked {
			if !slices.Contains(names, name) {
				t.Errorf("%s was acknowledged, with %s, and is not there", name, versions)
			}
		}
		for _, name := range names {
			list, err := p.Versions(ctx, name)
			if err != nil || len(list) == 0 {
				t.Errorf("%s: %d versions, %v", name, len(list), err)
			}
			var have []string
			for _, v := range list {
				have = append(have, v.Name)
			}
			for _, v := range acked[name] {
				if !slices.Contains(have, v) {
					t.Errorf("%s was acknowledged and is not there: %s", v, have)
				}
			}
			for _, v := range list {
				if err := p.(provider.BlockEncrypter).EncryptBlocks(ctx, v.Name, make([]byte, 16)); err != nil {
					t.Errorf("%s: %v", v.Name, err)
				}
			}
		}
		h.peer.start()
		a.awaitEqual("equality before the other is killed") // else it lists nothing
	}
	t.Logf("%d keys and versions acknowledged, %d calls refused", count.Load(), refused.Load())
}
