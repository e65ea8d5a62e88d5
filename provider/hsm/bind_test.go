package hsm_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/metastore"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// TestOtherToken: a metastore is refused at a token that lacks its keys. It still belongs to its own token.
func TestOtherToken(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	own, other := b.token, softhsmtest.NewIn(t, filepath.Dir(b.token.PINFile), "other")
	file := b.file
	b.file = filepath.Join(t.TempDir(), "other.keystore")
	if err := pkcs11.WriteKeystoreFile(b.file, pkcs11.FileConfig{Module: other.Module, Token: other.Label,
		PINFile: other.PINFile}); err != nil {
		t.Fatal(err)
	}
	_, err := b.open(t.Context())
	if !claviger.Is(err, claviger.Invalid) {
		t.Fatalf("opened at another token: %v", err)
	}
	for _, want := range []string{own.Label, own.Serial, other.Label, other.Serial, version, b.db,
		"name the right token in the keystore file", "and restart the server"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	b.file = file
	mustClose(t, b.mustOpen(t))
}

// TestOtherTokenWithoutKeys: a metastore without keys may move to another token, unless a step began to make keys on
// the first.
func TestOtherTokenWithoutKeys(t *testing.T) {
	b := newSite(t)
	mustClose(t, b.mustOpen(t))
	serial := func(want string, set bool) {
		t.Helper()
		b.withStore(t, func(s metastore.Store) {
			if got, _, err := s.Setting(t.Context(), "hsm.token.serial"); err != nil || got != want {
				t.Errorf("bound to %q, %v; want %q", got, err, want)
			}
			if set {
				if err := s.SetSetting(t.Context(), "hsm.token.serial", "elsewhere"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	serial(b.token.Serial, true)
	mustClose(t, b.mustOpen(t))
	serial(b.token.Serial, true)
	b.withStore(t, func(s metastore.Store) {
		if _, err := s.Begin(t.Context(), metastore.Intent{Key: "half", Op: "create",
			Refs: []metastore.Ref{{ID: "0",
				Object: "0123456789abcdef"}}, Begun: time.Now(), Payload: []byte("{}")}); err != nil {
			t.Error(err)
		}
	})
	_, err := b.open(t.Context())
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(),
		`the step "create" of key "half" was interrupted`) || !strings.Contains(err.Error(), "serial elsewhere") {
		t.Errorf("a key was begun on the other token: %v", err)
	}
	serial("elsewhere", false)
}

// TestClone: a token with another serial number and the same keys counts as a clone or a restored backup.
func TestClone(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	b.withStore(t, func(s metastore.Store) {
		if err := s.SetSetting(t.Context(), "hsm.token.serial", "elsewhere"); err != nil {
			t.Error(err)
		}
	})
	p := b.mustOpen(t)
	if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
	b.withStore(t, func(s metastore.Store) {
		if got, _, err := s.Setting(t.Context(), "hsm.token.serial"); err != nil || got != b.token.Serial {
			t.Errorf("bound to %q, %v", got, err)
		}
	})
}

// TestMissingOrOtherKeys: a key that is missing, or that is another key of the same name, is refused and named. Other
// keys are served. If no key is left, the provider does not start.
func TestMissingOrOtherKeys(t *testing.T) {
	b := newSite(t)
	version, other := b.create(t, "k"), b.create(t, "another")
	id, label := b.object(t, version)
	otherID, otherLabel := b.object(t, other)
	for _, c := range []struct {
		name, want string
		change     func(*pkcs11.Token) error
	}{
		{"gone", "the token holds no key", func(tok *pkcs11.Token) error {
			return tok.Destroy(t.Context(), id,
				label)
		}},
		{"another", "check value differs", func(tok *pkcs11.Token) error {
			return tok.GenerateKey(t.Context(), id,
				label, 256)
		}},
	} {
		b.withToken(t, func(tok *pkcs11.Token) {
			if err := c.change(tok); err != nil {
				t.Fatal(err)
			}
		})
		p := b.mustOpen(t)
		for range 2 { // at start, and after a use
			if err := p.CheckKeys(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), label) || strings.Contains(err.Error(), otherLabel) {
				t.Errorf("%s: the check of keys says %v", c.name, err)
			}
			if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); !claviger.Is(err,
				claviger.Unavailable) || !strings.Contains(err.Error(), c.want) ||
				!strings.Contains(err.Error(), label) {
				t.Errorf("%s: used: %v", c.name, err)
			}
		}
		if err := p.EncryptBlocks(t.Context(), other, make([]byte, 16)); err != nil {
			t.Errorf("%s: the key that is there: %v", c.name, err)
		}
		mustClose(t, p)
	}
	b.withToken(t, func(tok *pkcs11.Token) {
		if err := tok.Destroy(t.Context(), otherID, otherLabel); err != nil {
			t.Fatal(err)
		}
	})
	p, err := b.open(t.Context())
	if err == nil {
		mustClose(t, p)
	}
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "restore the token or the metastore") {
		t.Errorf("no key fits: %v", err)
	}
}

// TestRefusedIsDeleted: once a refused key is deleted, it is no longer named as refused.
func TestRefusedIsDeleted(t *testing.T) {
	b := newSite(t)
	id, label := b.object(t, b.create(t, "k"))
	b.create(t, "another")
	b.withToken(t, func(tok *pkcs11.Token) {
		if err := tok.Destroy(t.Context(), id, label); err != nil {
			t.Fatal(err)
		}
	})
	p := b.mustOpen(t)
	if err := p.CheckKeys(t.Context()); err == nil {
		t.Error("nothing is refused")
	}
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	if err := p.CheckKeys(t.Context()); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
}

// interrupted is a store that calls a function when its intents are read.
type interrupted struct {
	metastore.Store
	meanwhile func()
}

func (i *interrupted) Pending(ctx context.Context, keys ...string) ([]metastore.Intent, error) {
	list, err := i.Store.Pending(ctx, keys...)
	i.meanwhile()
	return list, err
}

// TestObjectsChangedMeanwhile: steps that another node begins or ends while the token is listed leave no orphan.
func TestObjectsChangedMeanwhile(t *testing.T) {
	b := newSite(t)
	b.create(t, "ending")
	failed := &failing{at: 2} // at FinishCreate
	b.around = func(s metastore.Store) metastore.Store { failed.Store = s; return failed }
	creating := b.mustOpen(t)
	b.around = nil
	ender := b.mustOpen(t)
	nothing := func() {}
	slow := &interrupted{meanwhile: nothing}
	b.around = func(s metastore.Store) metastore.Store { slow.Store = s; return slow }
	p := b.mustOpen(t)
	slow.meanwhile = func() {
		if _, err := creating.Create(t.Context(), provider.Spec{Name: "beginning", Cipher: claviger.DefaultCipher,
			BitLength: 256}); !errors.Is(err, errKilled) {
			t.Error(err)
		}
		if err := ender.Delete(t.Context(), "ending"); err != nil {
			t.Error(err)
		}
	}
	for _, o := range objects(t, p) {
		t.Errorf("%+v", o)
	}
	slow.meanwhile = nothing
	if list := objects(t, p); len(list) != 1 || list[0].Mark != hsm.Pending {
		t.Errorf("%+v", list)
	}
	for _, p := range []*hsm.Provider{p, ender, creating} {
		mustClose(t, p)
	}
}

// TestDeleteFinishedAtStart: a deletion whose objects could not be destroyed succeeds for every caller. The next start
// finishes it.
func TestDeleteFinishedAtStart(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	p := b.mustOpen(t)
	b.meter.Fail("DestroyObject", 1, errKilled)
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Version(t.Context(), version); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("a deleted version: %v", err)
	}
	if list := objects(t, p); len(list) != 1 || list[0].Mark != hsm.Pending {
		t.Errorf("%+v", list)
	}
	mustClose(t, p)
	p = b.mustOpen(t)
	if list := objects(t, p); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	mustClose(t, p)
}

// TestRollCrashes is TestCrashes for Roll. After a crash there may be one version more than the caller knows.
func TestRollCrashes(t *testing.T) {
	b := newSite(t)
	var store *failing
	b.around = func(s metastore.Store) metastore.Store { store = &failing{Store: s}; return store }
	for _, c := range []struct {
		name     string
		fault    func()
		versions int
	}{
		{"before Begin", func() { store.at = 1 }, 2},
		{"after Begin", func() { store.at, store.after = 1, true }, 2},
		{"before FinishRoll", func() { store.at = 2 }, 2},
		{"after FinishRoll", func() { store.at, store.after = 2, true }, 3},
		{"GenerateKey", func() { b.meter.Fail("GenerateKey", 1, errKilled) }, 2},
		{"Encrypt", func() { b.meter.Fail("Encrypt", 20, errKilled) }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := t.Context()
			p := b.mustOpen(t)
			if _, err := p.Create(ctx, provider.Spec{Name: "k", Cipher: claviger.DefaultCipher,
				BitLength: 256}); err != nil {
				t.Fatal(err)
			}
			store.n = 0
			c.fault()
			if v, err := p.Roll(ctx, "k", nil); err == nil {
				t.Fatalf("rolled to %s", v.Name)
			}
			b.meter.Heal()
			mustClose(t, p)
			p = b.mustOpen(t)
			if _, err := p.Roll(ctx, "k", nil); err != nil {
				t.Error(err)
			}
			vs, err := p.Versions(ctx, "k")
			list := objects(t, p)
			if err != nil || len(vs) != c.versions || len(list) != c.versions {
				t.Errorf("%d versions, %d objects, %v; want %d of both", len(vs), len(list), err, c.versions)
			}
			for _, o := range list {
				if o.Mark != hsm.InUse {
					t.Errorf("%s is %s", o.Label, o.Mark)
				}
			}
			if err := p.Delete(ctx, "k"); err != nil {
				t.Error(err)
			}
			mustClose(t, p)
		})
	}
}

// TestTwoNodes: two providers on one store and one token make one key if both create it, and lose no version if both
// roll it.
func TestTwoNodes(t *testing.T) {
	b := newSite(t)
	nodes := []*hsm.Provider{b.mustOpen(t), b.mustOpen(t)}
	ctx := t.Context()
	var made atomic.Int64
	g := new(errgroup.Group)
	for _, p := range nodes {
		g.Go(func() error {
			_, err := p.Create(ctx, provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 256})
			if err == nil {
				made.Add(1)
			}
			if err != nil && !claviger.Is(err, claviger.KeyExists) {
				return err
			}
			for range 4 {
				if _, err := p.Roll(ctx, "k", nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	vs, err := nodes[0].Versions(ctx, "k")
	if made.Load() != 1 || err != nil || len(vs) != 9 || len(objects(t, nodes[1])) != 9 {
		t.Errorf("made %d times, %d versions, %v", made.Load(), len(vs), err)
	}
	// Each provider uses what the other made, and notices its deletion.
	for _, p := range nodes {
		for _, v := range vs {
			if err := p.EncryptBlocks(ctx, v.Name, make([]byte, 16)); err != nil {
				t.Error(err)
			}
		}
	}
	if err := nodes[0].Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	for _, v := range vs {
		if err := nodes[1].EncryptBlocks(ctx, v.Name, make([]byte, 16)); !claviger.Is(err, claviger.VersionNotFound) {
			t.Errorf("a version that another node deleted: %v", err)
		}
	}
	for _, p := range nodes {
		mustClose(t, p)
	}
}

// TestURIs: both schemes lead to the same token. The error for a missing file names the file.
func TestURIs(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	for _, uri := range []string{
		"cloudera.hsmkp://file@" + b.file,
		"pkcs11:token=" + b.token.Label + ";serial=" + b.token.Serial + "?module-path=" + b.token.Module +
			"&pin-source=file:" + b.token.PINFile,
	} {
		b.uri = uri
		p := b.mustOpen(t)
		if p.URI() != uri || p.Info().Serial != b.token.Serial {
			t.Errorf("%s: %+v", p.URI(), p.Info())
		}
		if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); err != nil {
			t.Error(err)
		}
		mustClose(t, p)
	}
	for uri, want := range map[string]string{
		"cloudera.hsmkp://file@/nowhere/luna.keystore":    "keystore file /nowhere/luna.keystore does not exist",
		"cloudera.hsmkp://hdfs@nn/luna.keystore":          "cloudera.hsmkp://hdfs@nn/luna.keystore",
		"pkcs11:token=x?module-path=/x.so&pin-value=1234": "use pin-source=file:/path",
	} {
		b.uri = uri
		if _, err := b.open(t.Context()); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}
