package hsm_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/softhsm"
	"claviger/pkcs11"
	"claviger/provider"
)

// addStandby makes a clone of the site's token, and names it as the standby.
func (b *testSite) addStandby(t *testing.T) softhsm.Token {
	t.Helper()
	clone, err := b.token.Clone("standby")
	if err != nil {
		t.Fatal(err)
	}
	b.nameStandby(t, clone.Label)
	return clone
}

// nameStandby names a token of the same library as the standby.
func (b *testSite) nameStandby(t *testing.T, label string) {
	t.Helper()
	file := filepath.Join(filepath.Dir(b.file), "standby.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: b.token.Module, Token: label,
		PINFile: b.token.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(b.file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("standby = standby.keystore\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// firstFails makes each call for a key fail on the first token.
func (b *testSite) firstFails() {
	for _, call := range []string{"Encrypt", "FindObjects", "GenerateKey", "OpenSession", "GenerateRandom"} {
		b.meter.Fail(call, 1<<16, p11.Error(p11.CKR_DEVICE_ERROR))
	}
}

// TestStandby: while the first token fails, the standby encrypts, and gives the same blocks. The check says so, keys
// are not made, and the first token is used again when it works.
func TestStandby(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	b.addStandby(t)
	p := b.mustOpen(t)
	waitUntil(t, "the standby can be used", func() error { return p.CheckStandby(t.Context()) })
	want := make([]byte, 32)
	if err := p.EncryptBlocks(t.Context(), version, want); err != nil {
		t.Fatal(err)
	}
	b.firstFails()
	for range 3 {
		got := make([]byte, 32)
		if err := p.EncryptBlocks(t.Context(), version, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%x, want %x, %v", got, want, err)
		}
	}
	if err := p.CheckStandby(t.Context()); err == nil || !strings.Contains(err.Error(), "standby is in use") {
		t.Errorf("the check says %v", err)
	}
	if last, ok := p.Last(); !ok || last.Err != nil {
		t.Errorf("the last encryption: %+v, %v", last, ok)
	}
	if err := p.Check(t.Context()); err != nil {
		t.Errorf("the provider is not usable: %v", err)
	}
	if _, err := p.Create(t.Context(), provider.Spec{Name: "new", Cipher: claviger.DefaultCipher,
		BitLength: 256}); err == nil {
		t.Error("a key was made without the first token")
	}
	b.meter.Heal()
	waitUntil(t, "the first token is used again", func() error {
		before := b.meter.Count("Encrypt")
		if err := p.EncryptBlocks(t.Context(), version, make([]byte, 32)); err != nil {
			return err
		}
		if b.meter.Count("Encrypt") == before {
			return claviger.Errorf("test", claviger.Unavailable, "", "the first token is not used again")
		}
		return nil
	})
}

// TestLeaseByTheStandby: while the first token fails, the standby's copy of a key begins a lease. A key that only the
// first token has gets none.
func TestLeaseByTheStandby(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	clone, err := b.token.Clone("standby")
	if err != nil {
		t.Fatal(err)
	}
	lacking := b.create(t, "lacking")
	b.nameStandby(t, clone.Label)
	p := b.mustOpen(t)
	waitUntil(t, "the standby is compared", func() error { // compared, so open
		if err := p.CheckStandby(t.Context()); err == nil || !strings.Contains(err.Error(), lacking) {
			return claviger.Errorf("test", claviger.Unavailable, "", "the check says %w", err)
		}
		return nil
	})
	b.firstFails()
	if err := p.Lease(t.Context(), version, time.Minute); err != nil {
		t.Error(err)
	}
	if err := p.Lease(t.Context(), lacking, time.Minute); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a lease of a key that nobody can use: %v", err)
	}
}

// TestStandbyAtTheStart: a server that starts without its first token uses the standby.
func TestStandbyAtTheStart(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	b.addStandby(t)
	b.maxWait = 100 * time.Millisecond
	b.meter.Fail("OpenSession", 1<<16, p11.Error(p11.CKR_DEVICE_ERROR))
	p := b.mustOpen(t)
	if p.Missing() == nil {
		t.Fatal("the first token is there")
	}
	waitUntil(t, "the standby is used", func() error {
		return p.EncryptBlocks(t.Context(), version, make([]byte, 16))
	})
	if err := p.Lease(t.Context(), version, time.Nanosecond); err != nil {
		t.Errorf("no lease: %v", err)
	}
	if err := p.Check(t.Context()); err != nil {
		t.Errorf("the provider is not usable: %v", err)
	}
	b.meter.Heal()
	select {
	case <-p.Arrived():
	case <-time.After(20 * time.Second):
		t.Fatal("the first token has not come")
	}
}

// TestStandbyHasNoCopy: a key that the standby lacks fails with the error of the first token, and the check names it. A
// key that differs there is never used.
func TestStandbyHasNoCopy(t *testing.T) {
	b := newSite(t)
	differs, works := b.create(t, "differs"), b.create(t, "works")
	clone, err := b.token.Clone("standby")
	if err != nil {
		t.Fatal(err)
	}
	lacking := b.create(t, "lacking")
	b.nameStandby(t, clone.Label)
	id, label := b.object(t, differs)
	b.withTokenOf(t, clone, func(tok *pkcs11.Token) {
		if err := tok.Destroy(t.Context(), id, label); err != nil {
			t.Fatal(err)
		}
		if err := tok.GenerateKey(t.Context(), id, label, 256); err != nil {
			t.Fatal(err)
		}
	})
	p := b.mustOpen(t)
	waitUntil(t, "the check names what is missing", func() error {
		if err := p.CheckStandby(t.Context()); err == nil || !strings.Contains(err.Error(), lacking) {
			return claviger.Errorf("test", claviger.Unavailable, "", "the check says %w", err)
		}
		return nil
	})
	b.firstFails()
	for _, version := range []string{lacking, differs} {
		err := p.EncryptBlocks(t.Context(), version, make([]byte, 16))
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "standby") {
			t.Errorf("%s: %v", version, err)
		}
	}
	if err := p.EncryptBlocks(t.Context(), works, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if err := p.CheckStandby(t.Context()); err == nil || !strings.Contains(err.Error(), "standby is in use") ||
		!strings.Contains(err.Error(), lacking) {
		t.Errorf("the check of a standby that is used and lacks a key says %v", err)
	}
}

// TestStandbyHasSeveralCopies: if the standby holds several keys under one id and label, as after a second cloning, the
// one with the right check value is used.
func TestStandbyHasSeveralCopies(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "first") // also makes the data object
	file := b.made(t, func() { create(t, p, "k") })
	mustClose(t, p)
	const version = "k@0"
	id, label := b.object(t, version)
	b.double(t, file, id, label, true)
	b.addStandby(t)
	p = b.mustOpen(t)
	waitUntil(t, "the standby can be used", func() error { return p.CheckStandby(t.Context()) })
	want := make([]byte, 16)
	if err := p.EncryptBlocks(t.Context(), version, want); err != nil {
		t.Fatal(err)
	}
	b.firstFails()
	got := make([]byte, 16)
	if err := p.EncryptBlocks(t.Context(), version, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, want %x, %v", got, want, err)
	}
	if err := p.CheckStandby(t.Context()); err == nil || !strings.Contains(err.Error(), "standby is in use") {
		t.Errorf("the check says %v", err)
	}
}

// TestCopiesOfDestroyedKeys: a key that was destroyed while the keystore file named no standby is named if the standby
// has a copy of it. A deleted key that can come back is not.
func TestCopiesOfDestroyedKeys(t *testing.T) {
	b := newSite(t)
	b.soft = "false"
	version := b.create(t, "destroyed")
	b.create(t, "deleted")
	clone, err := b.token.Clone("standby")
	if err != nil {
		t.Fatal(err)
	}
	p := b.mustOpen(t)
	if err := p.Delete(t.Context(), "destroyed"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.soft = "true"
	p = b.mustOpen(t)
	if err := p.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.nameStandby(t, clone.Label)
	p = b.mustOpen(t)
	waitUntil(t, "the check names the copies", func() error {
		if err := p.CheckStandby(t.Context()); err == nil || !strings.Contains(err.Error(), version) {
			return claviger.Errorf("test", claviger.Unavailable, "", "the check says %w", err)
		}
		return nil
	})
	if err := p.CheckStandby(t.Context()); !strings.Contains(err.Error(), "that were destroyed") ||
		strings.Contains(err.Error(), "deleted@") {
		t.Error(err)
	}
}

// TestDestroyedOnTheStandby: a key that is deleted for good is destroyed on the standby too.
func TestDestroyedOnTheStandby(t *testing.T) {
	b := newSite(t)
	b.soft = "false"
	version := b.create(t, "k")
	clone := b.addStandby(t)
	id, _ := b.object(t, version)
	p := b.mustOpen(t)
	waitUntil(t, "the standby can be used", func() error { return p.CheckStandby(t.Context()) })
	if err := p.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.withTokenOf(t, clone, func(tok *pkcs11.Token) {
		if k, err := tok.Find(t.Context(), id); k != nil || err != nil {
			t.Errorf("the standby still has %+v, %v", k, err)
		}
	})
}

// TestDeletedElsewhere: the standby does not encrypt with a key that another process has deleted, although it has a
// copy and this process has used the key before.
func TestDeletedElsewhere(t *testing.T) {
	b := newSite(t)
	b.soft = "true" // the keys stay on both tokens
	version := b.create(t, "k")
	b.addStandby(t)
	p, other := b.mustOpen(t), b.mustOpen(t)
	waitUntil(t, "the standby can be used", func() error { return p.CheckStandby(t.Context()) })
	if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if err := other.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	b.firstFails()
	if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); err == nil {
		t.Error("a deleted key encrypts")
	}
	b.meter.Heal()
}

// TestStandbyWhenTheFirstHangs: if the first token hangs, a request waits for it for at most firstTokenLimit. The next
// request does not wait.
func TestStandbyWhenTheFirstHangs(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	b.addStandby(t)
	p := b.mustOpen(t)
	waitUntil(t, "the standby can be used", func() error { return p.CheckStandby(t.Context()) })
	release := b.meter.Hang("Encrypt")
	defer release()
	for i := range 2 {
		from := time.Now()
		if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(from); (took < time.Second) != (i == 1) || took > 10*time.Second {
			t.Errorf("request %d took %v", i, took)
		}
	}
	release()
}

// onlyCBC is a library whose HSM encrypts by CKM_AES_CBC alone.
type onlyCBC struct{ pkcs11.Boundary }

func (o onlyCBC) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error) {
	if m.Mechanism != p11.CKM_AES_CBC {
		return nil, p11.Error(p11.CKR_MECHANISM_INVALID)
	}
	return o.Boundary.Encrypt(s, m, key, data)
}

// TestStandbyWhenTheFirstIsSlow: a batch that takes longer than firstTokenLimit on a first token that works does not go
// to the standby.
func TestStandbyWhenTheFirstIsSlow(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	b.addStandby(t)
	b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary { return onlyCBC{c} }
	p := b.mustOpen(t)
	waitUntil(t, "the standby can be used", func() error { return p.CheckStandby(t.Context()) })
	b.meter.SetLatency(10 * time.Millisecond)
	from := time.Now()
	if err := p.EncryptBlocks(t.Context(), version, make([]byte, 300*16)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(from); took < 2500*time.Millisecond {
		t.Errorf("the batch took only %v", took)
	}
	if err := p.CheckStandby(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStandbyIsTheFirst: the first token itself is refused as its standby.
func TestStandbyIsTheFirst(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.nameStandby(t, b.token.Label)
	p := b.mustOpen(t)
	waitUntil(t, "the check refuses the first token", func() error {
		if err := p.CheckStandby(t.Context()); err == nil ||
			!strings.Contains(err.Error(), "is the first token itself") {
			return claviger.Errorf("test", claviger.Unavailable, "", "the check says %w", err)
		}
		return nil
	})
	mustClose(t, p)
}

// withTokenOf opens another token of the site's library.
func (b *testSite) withTokenOf(t *testing.T, token softhsm.Token, f func(*pkcs11.Token)) {
	t.Helper()
	cfg, _, err := pkcs11.ReadKeystoreFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TokenLabel = token.Label
	tok, err := pkcs11.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	f(tok)
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
}
