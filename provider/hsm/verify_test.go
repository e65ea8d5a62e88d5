package hsm_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/logtest"
	"claviger/metastore"
	"claviger/pkcs11"
)

// TestVerifiedLater: versions that are not verified at the start are never used unverified. The verification in the
// background logs them.
func TestVerifiedLater(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	const n = 66 // the current one and the 63 oldest are verified at start
	vs, err := p.Import(t.Context(), claviger.Metadata{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}, n,
		0,
		nil)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	wrong, right := vs[n-2].Name, vs[n-3].Name
	id, label := b.object(t, wrong)
	b.withToken(t, func(tok *pkcs11.Token) {
		if err := tok.Destroy(t.Context(), id, label); err != nil {
			t.Fatal(err)
		}
		if err := tok.GenerateKey(t.Context(), id, label, 128); err != nil {
			t.Fatal(err)
		}
	})
	log := new(logtest.Buffer)
	b.log = slog.New(slog.NewTextHandler(log, nil))
	p = b.mustOpen(t)
	for range 2 {
		if err := p.EncryptBlocks(t.Context(), wrong, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), "check value differs") {
			t.Errorf("another key under a version's name: %v", err)
		}
	}
	if err := p.EncryptBlocks(t.Context(), right, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(log.String(),
		"is not as the metastore says; it is not used\" version="+wrong); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the verification in the background has logged nothing: %s", log)
		}
	}
	if strings.Contains(log.String(), right) {
		t.Errorf("it logs a version that is right: %s", log)
	}
	mustClose(t, p)
}

// swapping is a library that finds another key than the requested one, after the token was lost.
type swapping struct {
	pkcs11.Boundary
	swap  *atomic.Bool
	id    []byte
	label string
}

func (s *swapping) FindObjectsInit(h p11.SessionHandle, template []*p11.Attribute) error {
	if s.swap.Load() && len(template) > 2 {
		template = append(template[:2:2], p11.NewAttribute(p11.CKA_ID, s.id), p11.NewAttribute(p11.CKA_LABEL, s.label))
	}
	return s.Boundary.FindObjectsInit(h, template)
}

// TestAnotherKeyCameBack: a call brings a lost token back, and the token now holds another key. The call returns
// nothing that was encrypted with that key.
func TestAnotherKeyCameBack(t *testing.T) {
	b := newSite(t)
	version, other := b.create(t, "k"), b.create(t, "other")
	id, label := b.object(t, other)
	var swap atomic.Bool
	b.wrap = func(c pkcs11.Boundary) pkcs11.Boundary {
		return &swapping{Boundary: c, swap: &swap, id: id, label: label}
	}
	p := b.mustOpen(t)
	want := make([]byte, 16)
	if err := p.EncryptBlocks(t.Context(), version, want); err != nil {
		t.Fatal(err)
	}
	swap.Store(true)
	b.meter.Fail("Encrypt", 1, p11.Error(p11.CKR_DEVICE_REMOVED))
	for range 2 {
		if err := p.EncryptBlocks(t.Context(), version, make([]byte, 16)); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), "check value differs") {
			t.Errorf("encrypted with another key: %v", err)
		}
	}
	swap.Store(false)
	b.meter.Fail("Encrypt", 1, p11.Error(p11.CKR_SESSION_CLOSED)) // makes the token forget the handle
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got := make([]byte, 16)
		err := p.EncryptBlocks(t.Context(), version, got)
		if err == nil {
			if !bytes.Equal(got, want) {
				t.Errorf("%x, want %x", got, want)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	mustClose(t, p)
}

// counting is a store that counts the lookups of versions.
type counting struct {
	metastore.Store
	n atomic.Int64
}

func (c *counting) ByVersion(ctx context.Context, version string) (*claviger.Metadata, metastore.Version, error) {
	c.n.Add(1)
	return c.Store.ByVersion(ctx, version)
}

// TestStoreReadOnce: using a version reads the metastore only once.
func TestStoreReadOnce(t *testing.T) {
	b := newSite(t)
	version := b.create(t, "k")
	var store *counting
	b.around = func(s metastore.Store) metastore.Store { store = &counting{Store: s}; return store }
	p := b.mustOpen(t)
	for range 20 {
		if err := p.EncryptBlocks(t.Context(), version, make([]byte, 32)); err != nil {
			t.Fatal(err)
		}
	}
	if n := store.n.Load(); n != 1 {
		t.Errorf("the store was read %d times", n)
	}
	mustClose(t, p)
}

// TestGivenUpIsNoError: versions that an operator has given up are mentioned at a start, and are no error.
func TestGivenUpIsNoError(t *testing.T) {
	b := newSite(t)
	for _, key := range []string{"a", "b", "c"} {
		b.create(t, key)
	}
	b.destroyObjects(t, "a@0", "b@0")
	b.rebind(t)
	log := new(logtest.Buffer)
	b.log = slog.New(slog.NewTextHandler(log, nil))
	p := b.mustOpen(t)
	for deadline := time.Now().Add(30 * time.Second); strings.Count(log.String(), "was given up on this token") < 2; {
		if time.Sleep(10 * time.Millisecond); time.Now().After(deadline) {
			t.Fatalf("the versions are not mentioned: %s", log)
		}
	}
	mustClose(t, p)
	if text := log.String(); strings.Contains(text, "level=ERROR") {
		t.Errorf("given up on purpose, and yet an error: %s", text)
	}
}
