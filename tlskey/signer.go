package tlskey

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/pkcs11"
)

// Signer signs with the key of one certificate.
type Signer struct {
	keys   *Keys
	public crypto.PublicKey
	key    atomic.Pointer[key] // nil until it is found
	last   atomic.Pointer[Signature]
}

var _ crypto.Signer = (*Signer)(nil)

// Public returns the public key of the certificate.
func (s *Signer) Public() crypto.PublicKey { return s.public }

// Sign signs a digest of a handshake. It returns an error after the time limit, so that the handshake is refused.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), s.keys.cfg.Timeout)
	defer cancel()
	signature, err := s.sign(ctx, digest, opts)
	done := Signature{At: time.Now(), Took: time.Since(began), Err: err}
	s.last.Store(&done)
	if err == nil {
		s.keys.made.Add(1)
	} else {
		s.keys.failed.Add(1)
		s.keys.log.Warn("a TLS handshake is refused, because the HSM did not sign it", "err", err)
	}
	if f := s.keys.onSign.Load(); f != nil {
		(*f)(done)
	}
	return signature, err
}

func (s *Signer) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k, failures := s.find(ctx)
	if k == nil {
		return nil, joined(failures)
	}
	tok, err := k.token.get()
	if err != nil {
		return nil, err
	}
	return tok.Sign(ctx, k.name, s.public, digest, opts)
}

// errOtherKey means that a private key is not that of a certificate.
var errOtherKey = errors.New("the private key does not belong to the certificate")

// failure says why a key is not that of a certificate, or why that is not known.
type failure struct {
	key *key
	err error
}

// unknown reports whether the HSM did not answer.
func (f failure) unknown() bool {
	return claviger.Is(f.err, claviger.Unavailable) && !errors.Is(f.err, pkcs11.ErrRefused)
}

// joined returns the errors of failures.
func joined(list []failure) error {
	var errs []error
	for _, f := range list {
		errs = append(errs, fmt.Errorf("the private key with %v: %w", f.key.name, f.err))
	}
	return errors.Join(errs...)
}

// find returns the key that belongs to the certificate, or nil and a failure for each key.
func (s *Signer) find(ctx context.Context) (*key, []failure) {
	if k := s.key.Load(); k != nil {
		return k, nil
	}
	var failures []failure
	for _, k := range s.keys.keys {
		err := s.try(ctx, k)
		if err == nil {
			s.key.Store(k)
			return k, nil
		}
		failures = append(failures, failure{k, err})
	}
	return nil, failures
}

// try returns nil if a key belongs to the certificate: the token signs with it in each way that TLS requests, and the
// public key of the certificate verifies that.
func (s *Signer) try(ctx context.Context, k *key) error {
	tok, err := k.token.get()
	if err != nil {
		return err
	}
	found, err := tok.SigningKey(ctx, k.name)
	if err != nil {
		return err
	}
	kind := pkcs11.KindOf(s.public)
	if found.Kind != kind {
		return fmt.Errorf("%w: the key of the HSM is %s, and that of the certificate is %s", errOtherKey, found.Kind,
			kind)
	}
	digest := crypto.SHA256.New().Sum(nil)
	ways := []crypto.SignerOpts{crypto.SHA256}
	if _, ok := s.public.(*rsa.PublicKey); ok { // TLS 1.3 has RSA-PSS only; older clients of TLS 1.2 have PKCS #1 only
		ways = append(ways, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	}
	for _, way := range ways {
		_, err := tok.Sign(ctx, k.name, s.public, digest, way)
		if errors.Is(err, pkcs11.ErrWrongSignature) {
			return fmt.Errorf("%w: the public key of the certificate does not verify a signature of the HSM",
				errOtherKey)
		}
		if err != nil {
			return fmt.Errorf("the HSM makes no test signature (%s): %w", wayName(way), err)
		}
	}
	return nil
}

func wayName(way crypto.SignerOpts) string {
	if _, ok := way.(*rsa.PSSOptions); ok {
		return "RSA-PSS"
	}
	return "RSA PKCS #1 or ECDSA"
}

// Check signs a test digest for each certificate that is served. Its error is for an operator.
func (k *Keys) Check(ctx context.Context) error {
	var errs []error
	if served := k.served.Load(); served != nil {
		for _, s := range *served {
			if _, err := s.sign(ctx, crypto.SHA256.New().Sum(nil), crypto.SHA256); err != nil {
				errs = append(errs, fmt.Errorf("the HSM does not sign for the certificate with the key %s: %w",
					pkcs11.KindOf(s.public), err))
			}
		}
	}
	return errors.Join(errs...)
}

// Last returns the last signature of a handshake: of the certificate whose last signature failed, if there is one. ok
// is false if a certificate has not been used yet.
func (k *Keys) Last() (last Signature, ok bool) {
	served := k.served.Load()
	if served == nil {
		return Signature{}, false
	}
	for i, s := range *served {
		of := s.last.Load()
		switch {
		case of == nil:
			return Signature{}, false
		case i == 0, of.Err != nil && last.Err == nil, (of.Err == nil) == (last.Err == nil) && of.At.Before(last.At):
			last = *of
		}
	}
	return last, len(*served) > 0
}

// Refused returns why the newest file with certificates was refused; nil if it was accepted.
func (k *Keys) Refused() error {
	if err := k.refused.Load(); err != nil {
		return *err
	}
	return nil
}
