package calls

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/keyring"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

var alice = claviger.Caller{Principal: claviger.Principal{Name: "alice", Short: "alice"}}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// newRing returns the service with a SoftHSM token and a key "k" of 256 bits. A Meter counts the calls of the
// library.
func newRing(t *testing.T) (*keyring.Ring, *pkcs11.Meter) {
	t.Helper()
	return newRingOn(t, softhsmtest.New(t), "sampled") // the default of a server
}

// newRingOn is newRing with a token that exists already.
func newRingOn(t *testing.T, token softhsm.Token, check keyring.SelfCheck) (*keyring.Ring, *pkcs11.Meter) {
	t.Helper()
	meter := new(pkcs11.Meter)
	return newRingWith(t, token, meter.Wrap, func(cfg *keyring.Config) { cfg.SelfCheck = check }), meter
}

// newRingWith is newRingOn with a library that wrap wraps, and a configuration that change changes.
func newRingWith(t testing.TB, token softhsm.Token, wrap func(pkcs11.Boundary) pkcs11.Boundary,
	change func(*keyring.Config)) *keyring.Ring {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: token.Module, Token: token.Label,
		PINFile: token.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	store, err := sqlite.Open(t.Context(), filepath.Join(dir, "claviger.db"))
	if err != nil {
		t.Fatal(err)
	}
	open := func(context.Context, func(context.Context, string) error) (metastore.Store, error) { return store, nil }
	p, err := hsm.Open(t.Context(), "cloudera.hsmkp://file@"+file, provider.Env{Log: slog.New(slog.DiscardHandler)},
		hsm.Options{Store: open, Wrap: wrap})
	if err != nil {
		t.Fatal(err)
	}
	policy, warnings := authz.Parse([]authz.Property{
		{Name: "default.key.acl.MANAGEMENT", Value: "*"}, {Name: "default.key.acl.GENERATE_EEK", Value: "*"},
		{Name: "default.key.acl.DECRYPT_EEK", Value: "*"}, {Name: "default.key.acl.READ", Value: "*"},
	})
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	trail := audit.NewHadoop(nopCloser{io.Discard}, time.Second)
	cfg := keyring.Config{
		Primary: p, Policy: func() *authz.Policy { return policy }, KeyAuthorization: true,
		Audit: trail, CacheEnable: true, CacheTimeout: time.Minute, CurrentCacheTimeout: time.Minute,
		// Keep one EDEK in the queue: a longer queue would answer instead of the HSM.
		QueueSize: 1, QueueLowWatermark: 1, QueueExpiry: time.Hour, QueueFillers: 1,
	}
	change(&cfg)
	ring, err := keyring.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []io.Closer{ring, p, trail, store} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := ring.Create(t.Context(), alice, provider.Spec{Name: "k", BitLength: 256}); err != nil {
		t.Fatal(err)
	}
	return ring
}

// settle waits until no more calls are made, because the queue refills in the background.
func settle(m *pkcs11.Meter) {
	for last := -1; last != m.Count("Encrypt"); {
		last = m.Count("Encrypt")
		time.Sleep(100 * time.Millisecond)
	}
	m.Reset()
}

func generate(t *testing.T, r *keyring.Ring, n int) []claviger.EDEK {
	t.Helper()
	es, err := r.Generate(t.Context(), alice, "k", n)
	if err != nil || len(es) != n {
		t.Fatalf("%d EDEKs, %v", len(es), err)
	}
	return es
}

// TestGenerate: 500 EDEKs need one call. The EDEK of the queue needs another.
func TestGenerate(t *testing.T) {
	ring, meter := newRing(t)
	generate(t, ring, 1)
	settle(meter)
	generate(t, ring, 500)
	made := meter.Count("Encrypt")
	settle(meter)
	if made > 2 {
		t.Errorf("500 EDEKs took %d calls of C_Encrypt", made)
	}
}

// TestReencryptBatch: 1,000 EDEKs of one version need two calls.
func TestReencryptBatch(t *testing.T) {
	ring, meter := newRing(t)
	old := generate(t, ring, 1000)
	if _, err := ring.Roll(t.Context(), alice, "k", nil); err != nil {
		t.Fatal(err)
	}
	settle(meter)
	fresh, err := ring.ReencryptBatch(t.Context(), alice, "k", old)
	if err != nil {
		t.Fatal(err)
	}
	if n := meter.Count("Encrypt"); n != 2 {
		t.Errorf("%d calls of C_Encrypt, want 2", n)
	}
	for i := range old {
		if fresh[i].Version == old[i].Version {
			t.Fatalf("EDEK %d is still under %s", i, old[i].Version)
		}
	}
	for _, i := range []int{0, 500, 999} {
		a, errA := ring.Decrypt(t.Context(), alice, "k", true, old[i])
		b, errB := ring.Decrypt(t.Context(), alice, "k", true, fresh[i])
		if errA != nil || errB != nil || !a.Equal(b) {
			t.Errorf("EDEK %d has another DEK after its re-encryption: %v, %v", i, errA, errB)
		}
	}
}

// TestDecryptsTogether: 64 users who open files of one version at the same time need at most 4 calls, and so about
// 4 times the latency of the HSM.
func TestDecryptsTogether(t *testing.T) {
	ring, meter := newRing(t)
	const users = 64
	edeks := generate(t, ring, users)
	if _, err := ring.Decrypt(t.Context(), alice, "k", true, edeks[0]); err != nil {
		t.Fatal(err)
	}
	settle(meter)
	meter.SetLatency(30 * time.Millisecond)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for _, e := range edeks {
		wg.Go(func() {
			<-start
			if _, err := ring.Decrypt(t.Context(), alice, "k", true, e); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
	if n := meter.Count("Encrypt"); n > 4 {
		t.Errorf("%d calls of C_Encrypt, want at most 4", n)
	}
}

// TestDecryptInStorm: a hundred NameNodes request 500 EDEKs each, and one client requests very many. An HSM that
// needs 20 ms for a call decrypts a single EDEK within a few calls. In the order of arrival it would take some
// hundred calls.
func TestDecryptInStorm(t *testing.T) {
	ring, meter := newRing(t)
	edek := generate(t, ring, 1)[0]
	if _, err := ring.Decrypt(t.Context(), alice, "k", true, edek); err != nil {
		t.Fatal(err)
	}
	settle(meter)
	meter.SetLatency(20 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	var storm sync.WaitGroup
	for i := range 100 {
		storm.Go(func() {
			n := 500
			if i == 0 {
				n = 50_000
			}
			for ctx.Err() == nil {
				_, _ = ring.Generate(ctx, alice, "k", n) // it ends with ctx
			}
		})
	}
	for meter.Count("Encrypt") < 3 { // the storm has begun
		time.Sleep(time.Millisecond)
	}
	const tries, maxCalls = 10, 5
	before := meter.Count("Encrypt")
	for range tries {
		if _, err := ring.Decrypt(t.Context(), alice, "k", true, edek); err != nil {
			t.Error(err)
		}
	}
	if n := meter.Count("Encrypt") - before; n > tries*maxCalls {
		t.Errorf("%d decrypts took %d calls of C_Encrypt, want at most %d each", tries, n, maxCalls)
	}
	cancel()
	meter.SetLatency(0)
	storm.Wait()
}
