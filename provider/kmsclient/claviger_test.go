package kmsclient_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authn"
	"claviger/authz"
	"claviger/keyring"
	"claviger/kmsapi"
	"claviger/kmswire"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/provider/memory"
	"claviger/provider/providertest"
)

// serveOurs starts our own KMS with a memory provider. Everybody has all rights. These tests are here and not in kmsapi
// because they test the client.
func serveOurs(t *testing.T, sealed bool) (*httptest.Server, *memory.Provider) {
	t.Helper()
	return serveOursBy(t, sealed, nil, nil)
}

// serveOursBy is serveOurs with another way to log in; a nil handler means simple authentication. The KMS signs cookies
// with secrets; nil means random ones.
func serveOursBy(t *testing.T, sealed bool, handler authn.Handler, secrets authn.SecretProvider) (*httptest.Server,
	*memory.Provider) {
	t.Helper()
	if secrets == nil {
		secrets = authn.NewRandomSecrets(time.Hour, time.Now)
	}
	return serveKeys(t, memory.New(memory.Config{Sealed: sealed}), handler, secrets)
}

// serveSoft starts our own KMS that keeps deleted keys. Everybody may undelete and purge them.
func serveSoft(t *testing.T) (*httptest.Server, *memory.Provider) {
	t.Helper()
	return serveKeys(t, memory.New(memory.Config{SoftDelete: true}), nil, authn.NewRandomSecrets(time.Hour, time.Now),
		authz.Property{Name: "keytrustee.kms.acl.UNDELETE", Value: "*"},
		authz.Property{Name: "keytrustee.kms.acl.PURGE", Value: "*"})
}

// serveKeys starts our own KMS with these keys and additional properties.
func serveKeys(t *testing.T, keys *memory.Provider, handler authn.Handler, secrets authn.SecretProvider,
	props ...authz.Property) (*httptest.Server, *memory.Provider) {
	t.Helper()
	t.Cleanup(func() { _ = keys.Close() })
	for _, op := range []string{"CREATE", "DELETE", "ROLLOVER", "GET", "GET_KEYS", "GET_METADATA", "SET_KEY_MATERIAL",
		"GENERATE_EEK", "DECRYPT_EEK"} {
		props = append(props, authz.Property{Name: "hadoop.kms.acl." + op, Value: "*"})
	}
	for _, op := range []string{"MANAGEMENT", "GENERATE_EEK", "DECRYPT_EEK", "READ"} {
		props = append(props, authz.Property{Name: "default.key.acl." + op, Value: "*"})
	}
	policy, _ := authz.Parse(props)
	log := audit.NewHadoop(io.Discard, time.Second)
	t.Cleanup(func() { _ = log.Close() })
	ring, err := keyring.New(keyring.Config{
		Primary: keys, Policy: func() *authz.Policy { return policy }, KeyAuthorization: true, Audit: log,
		CacheEnable: true, CacheTimeout: time.Minute, CurrentCacheTimeout: time.Minute,
		QueueSize: 100, QueueLowWatermark: 0.3, QueueExpiry: time.Hour, QueueFillers: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ring.Close() })
	auth, err := authn.New(authn.Config{Handler: handler, Validity: time.Hour, Secrets: secrets})
	if err != nil {
		t.Fatal(err)
	}
	api, err := kmsapi.New(kmsapi.Config{
		Ring: ring, Auth: auth, Audit: log, KeyAuthorization: true, StoreName: "0123",
		Limits: kmsapi.Limits{MaxKeys: 10000, MaxBatch: 10000, MaxBody: 16 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(api)
	t.Cleanup(s.Close)
	return s, keys
}

// TestConformanceOverOurs: a client of claviger's own KMS passes the tests of each provider.
func TestConformanceOverOurs(t *testing.T) {
	for name, sealed := range map[string]bool{"Keystore": false, "HSM": true} {
		t.Run(name, func(t *testing.T) {
			s, keys := serveOurs(t, sealed)
			opener := func(t *testing.T) provider.Provider { return open(t, uriOf(s), kmsclient.Options{}) }
			providertest.Run(t, providertest.Suite{
				New: opener,
				Reopen: func(t *testing.T, p provider.Provider) provider.Provider {
					_ = p.Close()
					return opener(t)
				},
				Objects:       func(*testing.T, provider.Provider) int { return keys.Objects() },
				TakesMaterial: !sealed,
				ShowsMaterial: !sealed,
			})
			if list, err := keys.Keys(context.Background()); err != nil || len(list) > 10 {
				t.Errorf("%d keys are left, %v", len(list), err)
			}
		})
	}
}

// TestSourceIsThisServer checks that each request fails with ErrSourceIsSelf at a KMS that has the client's metastore,
// even the login. A KMS with another metastore answers normally.
func TestSourceIsThisServer(t *testing.T) {
	s, _ := serveOurs(t, true)
	name := "0123"
	p := open(t, uriOf(s), kmsclient.Options{Store: func() string { return name }})
	for name, call := range map[string]func() error{
		"check":    func() error { return p.Check(t.Context()) },
		"keys":     func() error { _, err := p.Keys(t.Context()); return err },
		"metadata": func() error { _, err := p.Metadata(t.Context(), "k"); return err },
	} {
		if err := call(); !errors.Is(err, provider.ErrSourceIsSelf) || !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), s.URL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name = range []string{"", "4567"} {
		if _, err := p.Keys(t.Context()); err != nil {
			t.Errorf("of store %q: %v", name, err)
		}
	}
	name = "0123" // now the client has a cookie
	if _, err := p.Keys(t.Context()); !errors.Is(err, provider.ErrSourceIsSelf) {
		t.Error(err)
	}
}

// TestSourceIsNoLongerThisServer checks that the client reaches the source with the next request after the target of a
// balancer was corrected. Before that, the balancer led to the server itself.
func TestSourceIsNoLongerThisServer(t *testing.T) {
	ours, _ := serveOurs(t, true)
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del(kmswire.StoreHeader) // the source has another metastore
		ours.Config.Handler.ServeHTTP(w, r)
	}))
	t.Cleanup(source.Close)
	var target atomic.Value
	target.Store(ours.Listener.Addr().String())
	balancer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = balancer.Close() })
	go func() {
		for {
			client, err := balancer.Accept()
			if err != nil {
				return
			}
			to, _ := target.Load().(string)
			server, err := net.Dial("tcp", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
			go func() { _, _ = io.Copy(client, server); _ = client.Close() }()
		}
	}()
	p := open(t, "kms://http@"+balancer.Addr().String()+"/kms",
		kmsclient.Options{Store: func() string { return "0123" }})
	if _, err := p.Keys(t.Context()); !errors.Is(err, provider.ErrSourceIsSelf) {
		t.Fatal(err)
	}
	target.Store(source.Listener.Addr().String())
	if _, err := p.Keys(t.Context()); err != nil {
		t.Error(err)
	}
}
