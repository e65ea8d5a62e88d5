package libcrypto

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// signer makes a key and its Signer. The test fails if the library fails, and is skipped without the library.
func signer(t testing.TB, bits int) *Signer {
	t.Helper()
	if err := load(); err != nil && os.Getenv("CLAVIGER_REQUIRE_LIBCRYPTO") != "1" {
		t.Skipf("%s cannot be loaded, so its signatures are not tested in this run: %v", Name, err)
	}
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(key, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// verify checks a signature by Go's own code.
func verify(s *Signer, opts crypto.SignerOpts, digest, signature []byte) error {
	public := s.Public().(*rsa.PublicKey) //nolint:forcetypeassert // a panic fails the test
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		return rsa.VerifyPSS(public, opts.HashFunc(), digest, signature, pss)
	}
	return rsa.VerifyPKCS1v15(public, opts.HashFunc(), digest, signature)
}

// TestSignatures: Go's verification accepts each kind of signature of a Signer, with keys of all usual lengths.
func TestSignatures(t *testing.T) {
	for _, bits := range []int{2048, 3072, 4096} {
		s := signer(t, bits)
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			h := hash.New()
			_, _ = fmt.Fprint(h, bits, hash)
			digest := h.Sum(nil)
			for _, opts := range []crypto.SignerOpts{hash, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash,
				Hash: hash}, &rsa.PSSOptions{SaltLength: hash.Size(), Hash: hash}, &rsa.PSSOptions{SaltLength: 11,
				Hash: hash}, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: hash}} {
				signature, err := s.Sign(rand.Reader, digest, opts)
				if err == nil {
					err = verify(s, opts, digest, signature)
				}
				if err != nil {
					t.Errorf("%d bits, %#v: %v", bits, opts, err)
				}
				if digest[0] ^= 1; verify(s, opts, digest, signature) == nil {
					t.Errorf("%d bits, %#v: the signature is good for another digest", bits, opts)
				}
				digest[0] ^= 1
			}
		}
		if _, err := s.Sign(rand.Reader, []byte("short"), crypto.SHA256); err == nil {
			t.Error("a digest of five bytes was signed")
		}
	}
}

// TestFailingLibrary: if the library fails, Go signs, and the Signer reports the failure to its caller.
func TestFailingLibrary(t *testing.T) {
	s := signer(t, 2048)
	small := signer(t, 1024)
	var reported []error
	s.failed = func(err error) { reported = append(reported, err) }
	s.pkey, small.pkey = small.pkey, s.pkey // so the library makes signatures of another length
	digest := sha256.Sum256([]byte("text"))
	signature, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err == nil {
		err = verify(s, crypto.SHA256, digest[:], signature)
	}
	if err != nil || len(reported) != 1 || !strings.Contains(
		reported[0].Error(), "a signature has 128 bytes, not 256") {
		t.Errorf("%v, reported %v", err, reported)
	}
	if err := s.prove(); err == nil {
		t.Error("a library that signs with another key has passed")
	}
	small.failed = s.failed
	if _, err := small.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}); err != nil ||
		len(reported) != 2 || !strings.Contains(reported[1].Error(), "error:") {
		t.Errorf("%v, reported %v", err, reported)
	}
	s.pkey, small.pkey = small.pkey, s.pkey
	runtime.KeepAlive(small)
}

// TestLibraryOrGo: the library makes the signatures that TLS uses, and Go makes all others.
func TestLibraryOrGo(t *testing.T) {
	s, other := signer(t, 2048), signer(t, 1024)
	calls := 0
	s.failed = func(error) { calls++ }
	s.pkey, other.pkey = other.pkey, s.pkey // now each call of the library fails, and failed counts it
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		for what, opts := range map[string]crypto.SignerOpts{"PKCS #1": hash,
			"PSS, salt as long as the digest": &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash},
			"PSS, salt of that length":        &rsa.PSSOptions{SaltLength: hash.Size(), Hash: hash},
			"PSS, short salt":                 &rsa.PSSOptions{SaltLength: 11, Hash: hash},
			"PSS, any salt":                   &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: hash}} {
			want := 1
			if hash == crypto.SHA1 || what == "PSS, short salt" || what == "PSS, any salt" {
				want = 0
			}
			calls = 0
			digest := make([]byte, hash.Size())
			signature, err := s.Sign(rand.Reader, digest, opts)
			if err == nil {
				err = verify(s, opts, digest, signature)
			}
			if err != nil || calls != want {
				t.Errorf("%v, %s: %d calls of the library, want %d; %v", hash, what, calls, want, err)
			}
		}
	}
	s.pkey, other.pkey = other.pkey, s.pkey
	runtime.KeepAlive(other)
}

// TestNoSigner: NewSigner returns an error if the library cannot be loaded, or if one kind of signature fails. A key of
// 512 bits is too short for PSS with SHA-256.
func TestNoSigner(t *testing.T) {
	s := signer(t, 2048)
	t.Setenv("GODEBUG", "rsa1024min=0")
	short, err := rsa.GenerateKey(rand.Reader, 512) //nolint:gosec // the test needs a short key
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewSigner(short, s.failed); err == nil || !strings.Contains(err.Error(), "a signature of PSS: ") {
		t.Errorf("a key of 512 bits: %v", err)
	}
	if _, err := parse([]byte("no key")); err == nil || !strings.Contains(err.Error(), "error:") {
		t.Errorf("a text that is no key: %v", err)
	}
	defer func(before func() error) { load = before }(load)
	missing := errors.New("the library is missing")
	load = func() error { return missing }
	if _, err := NewSigner(s.key, s.failed); !errors.Is(err, missing) {
		t.Errorf("without the library: %v", err)
	}
}

// TestProof: a library that signs with another key passes no proof, for either kind of signature.
func TestProof(t *testing.T) {
	s, other := signer(t, 2048), signer(t, 2048)
	s.pkey, other.pkey = other.pkey, s.pkey
	if err := s.prove(); err == nil || !strings.Contains(err.Error(), "a signature of PKCS #1 v1.5: ") {
		t.Errorf("another key: %v", err)
	}
	s.pkey, other.pkey = other.pkey, s.pkey
	runtime.KeepAlive(other)
	defer func(before *rsa.PSSOptions) { salt = before }(salt)
	salt = &rsa.PSSOptions{SaltLength: 20} // the library's salt is longer
	if err := s.prove(); err == nil || !strings.Contains(err.Error(), "a signature of PSS: ") {
		t.Errorf("a wrong signature of PSS: %v", err)
	}
}

// TestMissingLibrary: a library that is not installed, or lacks a function, is an error that says so.
func TestMissingLibrary(t *testing.T) {
	for name, want := range map[string]string{"libnone.so.3": "libnone.so.3: cannot open shared object file",
		"libc.so.6": "undefined symbol: OPENSSL_init_crypto"} {
		if err := loadFrom(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := loadFrom(Name); load() == nil && err != nil { // all functions are there again
		t.Error(err)
	}
}

// TestConcurrentSignatures: many goroutines use one signer, while other signers begin and end.
func TestConcurrentSignatures(t *testing.T) {
	s := signer(t, 2048)
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			for j := range 20 {
				digest := sha256.Sum256([]byte{byte(i), byte(j)})
				opts := crypto.SignerOpts(crypto.SHA256)
				if j%2 == 0 {
					opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
				}
				signature, err := s.Sign(rand.Reader, digest[:], opts)
				if err == nil {
					err = verify(s, opts, digest[:], signature)
				}
				if err != nil {
					t.Error(err)
				}
				if _, err := NewSigner(s.key, s.failed); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

// TestNoLeak: the library wipes a key whose signer is not used any more, and frees the memory of each signature.
func TestNoLeak(t *testing.T) {
	s := signer(t, 1024) // a short key makes the test fast
	before := copies()
	for range 100 {
		if _, err := NewSigner(s.key, s.failed); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(20 * time.Second); copies() > before && time.Now().Before(end); {
		runtime.GC()
		runtime.Gosched()
	}
	if n := copies(); n > before || n < 1 { // s still has its key
		t.Errorf("%d keys are left, before there were %d", n, before)
	}
	digest := sha256.Sum256([]byte("text"))
	sign := func(n int) {
		for range n {
			if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
				t.Fatal(err)
			}
		}
	}
	sign(1000)
	runtime.GC()
	start := resident(t)
	sign(20000)
	runtime.GC()
	if grown := resident(t) - start; grown > 6<<20 { // a context for each would be more than 8 MiB
		t.Errorf("20,000 signatures keep %d bytes", grown)
	}
}

// resident returns the memory of this process in bytes.
func resident(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	var size, pages int
	if err == nil {
		_, err = fmt.Sscan(string(data), &size, &pages)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// selfSigned makes a self-signed certificate for a key.
func selfSigned(t testing.TB, key crypto.Signer) tls.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kms"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"kms"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// handshake makes a TLS connection in memory.
func handshake(served tls.Certificate, version uint16) error {
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- tls.Server(far, &tls.Config{Certificates: []tls.Certificate{served}, MinVersion: tls.VersionTLS12,
			SessionTicketsDisabled: true}).Handshake()
	}()
	err := tls.Client(near, &tls.Config{InsecureSkipVerify: true, //nolint:gosec // its signature is verified
		MinVersion: version, MaxVersion: version}).Handshake()
	_ = near.Close()
	return errors.Join(err, <-ended)
}

// TestHandshakes: crypto/tls accepts a signer as the key of a server.
func TestHandshakes(t *testing.T) {
	served := selfSigned(t, signer(t, 2048))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		if err := handshake(served, version); err != nil {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

// BenchmarkSign compares signatures of RSA-2048, and whole handshakes of both sides, by the library and by Go.
func BenchmarkSign(b *testing.B) {
	s := signer(b, 2048)
	digest := sha256.Sum256([]byte("text"))
	for name, key := range map[string]crypto.Signer{"libcrypto": s, "go": s.key} {
		for kind, opts := range map[string]crypto.SignerOpts{"pkcs1": crypto.SHA256, "pss": &rsa.PSSOptions{
			SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if _, err := key.Sign(rand.Reader, digest[:], opts); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		served := selfSigned(b, key)
		b.Run("handshake/"+name, func(b *testing.B) {
			for b.Loop() {
				if err := handshake(served, tls.VersionTLS13); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
