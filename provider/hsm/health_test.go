package hsm_test

import (
	"strings"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
)

// always is more calls than any test makes.
const always = 10_000

// twoKeys opens a provider with two keys, and encrypts with both.
func twoKeys(t *testing.T) (b *testSite, p *hsm.Provider, versions []string) {
	t.Helper()
	b = newSite(t)
	p = b.mustOpen(t)
	if err := p.Check(t.Context()); err != nil {
		t.Fatalf("a token without keys: %v", err)
	}
	for _, key := range []string{"one", "two"} {
		v, err := p.Create(t.Context(), provider.Spec{Name: key, Cipher: claviger.DefaultCipher, BitLength: 128})
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, v.Name)
	}
	if _, ok := p.Last(); ok {
		t.Error("an encryption was recorded before there was a request")
	}
	for _, v := range versions {
		if err := encryptBlock(t, p, v); err != nil {
			t.Fatal(err)
		}
	}
	return b, p, versions
}

func encryptBlock(t *testing.T, p *hsm.Provider, version string) error {
	return p.EncryptBlocks(t.Context(), version, make([]byte, 16))
}

// waitAlive waits until the last success no longer counts as a sign that the token is alive.
func waitAlive() {
	time.Sleep(1100 * time.Millisecond) // longer than aliveWindow, which is measured with the real clock
}

// TestCheckEncrypts: Check fails if every encryption fails, whatever the error code is. It succeeds if only random
// numbers fail.
func TestCheckEncrypts(t *testing.T) {
	ctx := t.Context()
	b, p, _ := twoKeys(t)
	b.meter.Fail("GenerateRandom", always, p11.Error(p11.CKR_FUNCTION_FAILED))
	if err := p.Check(ctx); err != nil {
		t.Errorf("random numbers alone fail: %v", err)
	}
	b.meter.Heal()
	for _, code := range []uint{p11.CKR_GENERAL_ERROR, p11.CKR_OPERATION_ACTIVE, p11.CKR_HOST_MEMORY,
		p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_ERROR, p11.CKR_KEY_FUNCTION_NOT_PERMITTED, p11.CKR_VENDOR_DEFINED +
			7} {
		b.meter.Fail("Encrypt", always, p11.Error(code))
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
	mustClose(t, p)
}

// TestLastEncryption: Last returns the last result of a request, and CheckEncryptions names the version that failed,
// until it encrypts again.
func TestLastEncryption(t *testing.T) {
	ctx := t.Context()
	b, p, versions := twoKeys(t)
	if last, ok := p.Last(); !ok || last.Err != nil || time.Since(last.At) > time.Minute || last.Took <= 0 ||
		last.Took > time.Minute {
		t.Errorf("after encryptions: %+v, %t", last, ok)
	}
	b.meter.Fail("Encrypt", always, p11.Error(p11.CKR_FUNCTION_FAILED))
	if err := encryptBlock(t, p, versions[0]); err == nil {
		t.Fatal("the encryption succeeded")
	}
	if last, ok := p.Last(); ok {
		t.Errorf("a failure just after a success needs a probe: %+v", last)
	}
	waitAlive()
	if err := encryptBlock(t, p, versions[0]); err == nil {
		t.Fatal("the encryption succeeded")
	}
	if last, ok := p.Last(); !ok || last.Err == nil || !strings.Contains(last.Err.Error(), "CKR_FUNCTION_FAILED") {
		t.Errorf("after a failure: %+v, %t", last, ok)
	}
	if err := p.CheckEncryptions(ctx); err == nil || !strings.Contains(err.Error(), versions[0]) ||
		strings.Contains(err.Error(), versions[1]) {
		t.Errorf("after a failure with %s: %v", versions[0], err)
	}
	b.meter.Heal()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) { // a key that failed pauses
		err := encryptBlock(t, p, versions[0])
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if last, ok := p.Last(); !ok || last.Err != nil || p.CheckEncryptions(ctx) != nil {
		t.Errorf("after it works again: %+v, %v", last, p.CheckEncryptions(ctx))
	}
	mustClose(t, p)
}

// TestCheckWithMissingKey: while the token has another key, a missing key is not a fault of the token.
func TestCheckWithMissingKey(t *testing.T) {
	ctx := t.Context()
	b, p, versions := twoKeys(t)
	id, label := b.object(t, versions[0])
	b.withToken(t, func(tok *pkcs11.Token) {
		if err := tok.Destroy(ctx, id, label); err != nil {
			t.Fatal(err)
		}
	})
	waitAlive()
	if err := encryptBlock(t, p, versions[0]); err == nil {
		t.Fatal("the encryption succeeded without a key")
	}
	if err := p.Check(ctx); err != nil {
		t.Errorf("one key of two is missing: %v", err)
	}
	if last, ok := p.Last(); !ok || last.Err != nil {
		t.Errorf("one key of two is missing: %+v", last)
	}
	mustClose(t, p)
	p = b.mustOpen(t)
	if err := encryptBlock(t, p, versions[0]); err == nil {
		t.Fatal("the encryption succeeded without a key")
	}
	if err := p.Check(ctx); err != nil {
		t.Errorf("one key of two is missing, and the other was never used: %v", err)
	}
	if last, ok := p.Last(); ok {
		t.Errorf("a missing key counts as a fault of the HSM: %+v", last)
	}
	mustClose(t, p)
}
