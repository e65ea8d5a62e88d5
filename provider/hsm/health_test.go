package hsm_test

import (
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11"
	"claviger/provider"
)

// always is more often than any test calls.
const always = 10_000

// TestCheckEncrypts: readiness is what encryptions do. It fails where each of them
// fails, whatever the code, and holds where random numbers alone fail, or one key.
func TestCheckEncrypts(t *testing.T) {
	ctx := t.Context()
	b := newBacking(t)
	p := b.mustOpen(t)
	if err := p.Check(ctx); err != nil {
		t.Fatalf("a token without keys: %v", err)
	}
	var versions []string
	for _, key := range []string{"one", "two"} {
		v, err := p.Create(ctx, provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128})
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, v.Name)
	}
	if _, ok := p.Last(); ok {
		t.Error("an encryption was seen before there was a request")
	}
	encrypt := func(version string) error { return p.EncryptBlocks(ctx, version, make([]byte, 16)) }
	for _, v := range versions {
		if err := encrypt(v); err != nil {
			t.Fatal(err)
		}
	}
	if last, ok := p.Last(); !ok || last.Err != nil || time.Since(last.At) > time.Minute || last.Took <= 0 ||
		last.Took > time.Minute {
		t.Errorf("after encryptions: %+v, %t", last, ok)
	}
	b.meter.Fail("GenerateRandom", always, p11.Error(p11.CKR_FUNCTION_FAILED))
	if err := p.Check(ctx); err != nil {
		t.Errorf("random numbers alone fail: %v", err)
	}
	b.meter.Heal()
	for _, code := range []uint{p11.CKR_GENERAL_ERROR, p11.CKR_OPERATION_ACTIVE, p11.CKR_HOST_MEMORY,
		p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_ERROR, p11.CKR_KEY_FUNCTION_NOT_PERMITTED, p11.CKR_VENDOR_DEFINED +
			7} {
		b.meter.Fail("EncryptInit", always, p11.Error(code))
		if err := p.Check(ctx); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), "does not encrypt") {
			t.Errorf("%v at each encryption: %v", p11.Error(code), err)
		}
		b.meter.Heal()
		for deadline := time.Now().Add(30 * time.Second); p.Check(ctx) != nil; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after %v: %v", p11.Error(code), p.Check(ctx))
			}
		}
	}
	time.Sleep(1100 * time.Millisecond) // no encryption for a request has gone well about that time
	b.meter.Fail("EncryptInit", always, p11.Error(p11.CKR_FUNCTION_FAILED))
	if err := encrypt(versions[0]); err == nil {
		t.Fatal("it was encrypted")
	}
	if last, ok := p.Last(); !ok || last.Err == nil || !strings.Contains(last.Err.Error(), "CKR_FUNCTION_FAILED") {
		t.Errorf("after a failure: %+v, %t", last, ok)
	}
	if err := p.CheckEncryptions(ctx); err == nil || !strings.Contains(err.Error(), versions[0]) ||
		strings.Contains(err.Error(), versions[1]) {
		t.Errorf("after a failure with %s: %v", versions[0], err)
	}
	b.meter.Heal()
	if err := encrypt(versions[0]); err != nil {
		t.Fatal(err)
	}
	if last, ok := p.Last(); !ok || last.Err != nil || p.CheckEncryptions(ctx) != nil {
		t.Errorf("after it works again: %+v, %v", last, p.CheckEncryptions(ctx))
	}
	id, label := b.object(t, versions[0])
	b.withToken(t, func(tok *pkcs11.Token) {
		if err := tok.Destroy(ctx, id, label); err != nil {
			t.Fatal(err)
		}
	})
	time.Sleep(1100 * time.Millisecond) // no encryption for a request has gone well about that time
	if err := encrypt(versions[0]); err == nil {
		t.Fatal("it was encrypted without a key")
	}
	if err := p.Check(ctx); err != nil {
		t.Errorf("one key of two is missing: %v", err)
	}
	if last, ok := p.Last(); !ok || last.Err != nil {
		t.Errorf("one key of two is missing: %+v", last)
	}
	mustClose(t, p)
	p = b.mustOpen(t)
	if err := encrypt(versions[0]); err == nil {
		t.Fatal("it was encrypted without a key")
	}
	if err := p.Check(ctx); err != nil {
		t.Errorf("of two keys one is missing, and the other was never used: %v", err)
	}
	if last, ok := p.Last(); ok {
		t.Errorf("a missing key is taken for a fault of the HSM: %+v", last)
	}
	mustClose(t, p)
}
