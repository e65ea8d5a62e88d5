package hsm_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/metastore/sqlite"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/provider/providertest"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	createInChild()
	goleak.VerifyTestMain(withDatabase{m})
}

// withDatabase runs the tests, and then ends the PostgreSQL server that some of them started.
type withDatabase struct{ *testing.M }

func (w withDatabase) Run() int { return pgtest.Main(w.M.Run) }

// testSite is a token and the path of a metastore beside it.
type testSite struct {
	token softhsm.Token
	file  string // keystore file
	db    string
	pg    string // URI of a store in PostgreSQL, used instead of the file db
	meter pkcs11.Meter
	// These replace or wrap the default, if they are set: around wraps the store, wrap the library.
	around      func(metastore.Store) metastore.Store
	wrap        func(pkcs11.Boundary) pkcs11.Boundary
	uri         string
	log         *slog.Logger
	soft        string // claviger.delete.soft
	access      hsm.Access
	maxSearches string // claviger.hsm.max.searches
	maxWait     time.Duration

	mu     sync.Mutex
	stores []metastore.Store
}

func newSite(t testing.TB) *testSite {
	t.Helper()
	return newSiteAt(t, softhsmtest.New(t))
}

// testedMode returns where the library runs in tests that do not set it: in a worker with CLAVIGER_TEST_WORKER=1.
func testedMode() pkcs11.WorkerMode {
	if os.Getenv("CLAVIGER_TEST_WORKER") != "" {
		return pkcs11.WorkerYes
	}
	return pkcs11.WorkerNo
}

// newSiteAt is newSite for a token that exists already.
func newSiteAt(t testing.TB, token softhsm.Token) *testSite {
	t.Helper()
	dir := t.TempDir()
	b := &testSite{token: token, file: filepath.Join(dir, "luna.keystore"), db: filepath.Join(dir, "claviger.db")}
	if err := pkcs11.WriteKeystoreFile(b.file, pkcs11.FileConfig{Module: b.token.Module, Token: b.token.Label,
		PINFile: b.token.PINFile, Profile: pkcs11.SoftHSM, Worker: testedMode()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range b.stores {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return b
}

func (b *testSite) open(ctx context.Context) (*hsm.Provider, error) {
	uri, wrap := "cloudera.hsmkp://file@"+b.file, b.meter.Wrap
	if b.uri != "" {
		uri = b.uri
	}
	if b.wrap != nil {
		wrap = func(c pkcs11.Boundary) pkcs11.Boundary { return b.wrap(b.meter.Wrap(c)) }
	}
	get := func(name string) (string, bool) {
		v := map[string]string{hsm.PropertySoftDelete: b.soft, hsm.PropertyMaxSearches: b.maxSearches}[name]
		return v, v != ""
	}
	store := func(ctx context.Context, create func(context.Context, string) error) (metastore.Store, error) {
		s, err := b.openStore(ctx, create)
		if err != nil {
			return nil, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.stores = append(b.stores, s)
		if b.around != nil {
			return b.around(s), nil
		}
		return s, nil
	}
	return hsm.Open(ctx, uri, provider.Env{Log: b.log, Get: get},
		hsm.Options{Store: store, Access: b.access, Wrap: wrap, MaxWait: b.maxWait})
}

func (b *testSite) openStore(ctx context.Context, create func(context.Context, string) error) (metastore.Store, error) {
	if b.pg != "" {
		return postgres.Open(ctx, postgres.Config{URI: b.pg})
	}
	if _, err := os.Stat(b.db); errors.Is(err, fs.ErrNotExist) {
		if err := create(ctx, "sqlite://"+b.db); err != nil {
			return nil, err
		}
	}
	return sqlite.Open(ctx, b.db)
}

func (b *testSite) mustOpen(t testing.TB) *hsm.Provider {
	t.Helper()
	p, err := b.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() }) // most tests close it themselves
	return p
}

// withToken opens a site's token without a provider. No provider may have it open.
func (b *testSite) withToken(t *testing.T, f func(*pkcs11.Token)) {
	t.Helper()
	cfg, _, err := pkcs11.ReadKeystoreFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := pkcs11.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	f(tok)
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
}

// withStore opens a site's metastore without a provider.
func (b *testSite) withStore(t *testing.T, f func(metastore.Store)) {
	t.Helper()
	open := func() (metastore.Store, error) { return sqlite.Open(t.Context(), b.db) }
	if b.pg != "" {
		open = func() (metastore.Store, error) { return postgres.Open(t.Context(), postgres.Config{URI: b.pg}) }
	}
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	f(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustClose(t *testing.T, p *hsm.Provider) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// object returns the CKA_ID and CKA_LABEL of a version.
func (b *testSite) object(t *testing.T, version string) (id []byte, label string) {
	t.Helper()
	b.withStore(t, func(s metastore.Store) {
		_, v, err := s.ByVersion(t.Context(), version)
		if err == nil {
			id, err = hex.DecodeString(v.Object)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return id, version
}

func (b *testSite) create(t *testing.T, key string) (version string) {
	t.Helper()
	p := b.mustOpen(t)
	v, err := p.Create(t.Context(), provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 256})
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	return v.Name
}

func objects(t *testing.T, p *hsm.Provider) []hsm.Object {
	t.Helper()
	list, err := p.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestConformance: the provider passes the suite of all providers.
func TestConformance(t *testing.T) {
	b := newSite(t)
	b.soft = "true" // the default of a server; other tests destroy at once
	providertest.Run(t, providertest.Suite{
		New: func(t *testing.T) provider.Provider { return b.mustOpen(t) },
		Reopen: func(t *testing.T, p provider.Provider) provider.Provider {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			return b.mustOpen(t)
		},
		Objects: func(t *testing.T, p provider.Provider) int {
			q, ok := p.(*hsm.Provider)
			if !ok {
				t.Fatalf("%T", p)
			}
			return len(objects(t, q))
		},
		Many:        30,
		SoftDeletes: true,
	})
}

// failing is a store whose at-th write fails, before or after its work, as if the process was killed there.
type failing struct {
	metastore.Store
	at, n int
	after bool
}

var errKilled = errors.New("killed here")

func (f *failing) do(g func() error) error {
	f.n++
	if f.n == f.at && !f.after {
		return errKilled
	}
	err := g()
	if f.n == f.at && err == nil {
		return errKilled
	}
	return err
}

func (f *failing) Begin(ctx context.Context, i metastore.Intent) (out metastore.Intent, err error) {
	err = f.do(func() error { out, err = f.Store.Begin(ctx, i); return err })
	return out, err
}

func (f *failing) Take(ctx context.Context, i metastore.Intent, op string) (out metastore.Intent, err error) {
	err = f.do(func() error { out, err = f.Store.Take(ctx, i, op); return err })
	return out, err
}

func (f *failing) FinishCreate(ctx context.Context, i metastore.Intent, k metastore.Key) error {
	return f.do(func() error { return f.Store.FinishCreate(ctx, i, k) })
}

func (f *failing) FinishRoll(ctx context.Context, i metastore.Intent, v metastore.Version) error {
	return f.do(func() error { return f.Store.FinishRoll(ctx, i, v) })
}

func (f *failing) Remove(ctx context.Context, key string) (out metastore.Intent, err error) {
	err = f.do(func() error { out, err = f.Store.Remove(ctx, key); return err })
	return out, err
}

func (f *failing) Drop(ctx context.Context, key string) error {
	return f.do(func() error { return f.Store.Drop(ctx, key) })
}

// crashes returns functions, by name, that each prepare one crash: at a write to the metastore, before or after the
// write, or at one of these calls of the HSM. store is the store of the open provider.
func (b *testSite) crashes(store **failing, calls ...string) map[string]func() {
	crashes := map[string]func(){"none": func() {}}
	for at := 1; at <= 3; at++ {
		for _, after := range []bool{false, true} {
			crashes[fmt.Sprintf("store write %d, after=%t", at, after)] = func() {
				s := *store
				s.at, s.after, s.n = at, after, 0
			}
		}
	}
	for _, call := range calls {
		for skip := range 2 {
			crashes[fmt.Sprintf("%s %d", call, skip)] = func() {
				b.meter.Fail(call, skip, nil)
				b.meter.Fail(call, 2, errKilled)
			}
		}
	}
	return crashes
}

// TestCrashes interrupts each step at each write to the metastore and at each kind of HSM call, opens the provider
// again and makes the step again. Then the token has as many objects as without a crash, and each of them is in use.
func TestCrashes(t *testing.T) {
	b := newSite(t)
	spec := provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256}
	steps := []struct {
		name     string
		before   func(context.Context, *hsm.Provider) error
		do       func(context.Context, *hsm.Provider) error
		again    claviger.Kind // error of a second call if the first had finished
		versions int
	}{
		{"create", nil, func(ctx context.Context, p *hsm.Provider) error { _, err := p.Create(ctx, spec); return err },
			claviger.KeyExists, 1},
		{"import", nil, func(ctx context.Context, p *hsm.Provider) error {
			_, err := p.Import(ctx, claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}, 3, 0,
				nil)
			return err
		}, claviger.KeyExists, 3},
		{"delete", func(ctx context.Context, p *hsm.Provider) error { _, err := p.Create(ctx, spec); return err },
			func(ctx context.Context, p *hsm.Provider) error { return p.Delete(ctx, "k") }, claviger.KeyNotFound, 0},
	}
	var store *failing
	b.around = func(s metastore.Store) metastore.Store { store.Store = s; return store }
	faults := b.crashes(&store, "GenerateKey", "DestroyObject", "Encrypt", "FindObjectsInit")
	for _, s := range steps {
		for name, fault := range faults {
			t.Run(s.name+"/"+name, func(t *testing.T) {
				ctx := t.Context()
				store = &failing{}
				p := b.mustOpen(t)
				if s.before != nil {
					if err := s.before(ctx, p); err != nil {
						t.Fatal(err)
					}
				}
				fault()
				firstErr := s.do(ctx, p)
				b.meter.Heal()
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				store = &failing{}
				p = b.mustOpen(t)
				if err := s.do(ctx, p); err != nil && !claviger.Is(err, s.again) {
					t.Errorf("again: %v (first: %v)", err, firstErr)
				}
				list := objects(t, p)
				for _, o := range list {
					if o.Mark != hsm.InUse {
						t.Errorf("%s is %s", o.Label, o.Mark)
					}
				}
				vs, err := p.Versions(ctx, "k")
				if err != nil || len(list) != s.versions || len(vs) != s.versions {
					t.Errorf("%d objects, %d versions, %v; want %d of both (first: %v)", len(list), len(vs), err,
						s.versions, firstErr)
				}
				if s.versions > 0 {
					if err := p.Delete(ctx, "k"); err != nil {
						t.Error(err)
					}
				}
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
