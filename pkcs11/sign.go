package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	p11 "github.com/miekg/pkcs11"

	"claviger"
)

// ErrWrongSignature means that the token made a signature that the public key does not verify.
var ErrWrongSignature = errors.New("the token made a signature that the public key does not verify")

// Sign signs a digest in the token, by C_SignInit and C_Sign. public is the public half of the key: an *rsa.PublicKey
// or an *ecdsa.PublicKey. opts are those of crypto.Signer; *rsa.PSSOptions select RSA-PSS, with a salt of the length of
// the hash. A signature by ECDSA is the ASN.1 form that TLS uses.
//
// The signature is verified before it is used, because a handle may be the handle of another key by now, and because a
// wrong RSA signature can reveal the private key. If the key is another one, the error is ErrWrongSignature, of kind
// Invalid. It is of kind KeyNotFound if the token has no such key.
func (t *Token) Sign(ctx context.Context, name PrivateKeyName, public crypto.PublicKey, digest []byte,
	opts crypto.SignerOpts) ([]byte, error) {
	const op = "pkcs11.Sign"
	way, err := signingWays(public, digest, opts)
	if err != nil {
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	var signature []byte
	err = t.doAndNotify(ctx, op, keySubject(name.String()), nil, func(l *login, s p11.SessionHandle) (err error) {
		signature, err = t.sign(l, s, name, way)
		return err
	}, func(error) {})
	if err != nil {
		return nil, err // without the result: a call that outlived ctx may still write it
	}
	return signature, nil
}

// sign signs with a key. If the handle may be the handle of another object, it searches the key again and tries once
// more.
func (t *Token) sign(l *login, s p11.SessionHandle, name PrivateKeyName, way []signingWay) ([]byte, error) {
	for again := false; ; again = true {
		key, err := t.signingHandle(l, s, name)
		if err != nil {
			return nil, err
		}
		signature, err := t.signBy(s, key, way)
		if err == nil {
			return signature, nil
		}
		l.handles.CompareAndDelete(name.cached(), key) // the handle may be the cause
		if again || !errors.Is(err, ErrWrongSignature) && !wrongObject(err) {
			return nil, err
		}
	}
}

// signBy signs by the first way whose mechanism the token does not refuse, and verifies the signature.
func (t *Token) signBy(s p11.SessionHandle, key p11.ObjectHandle, ways []signingWay) ([]byte, error) {
	if len(ways) > 1 && t.refusesPSS.Load() {
		ways = ways[1:]
	}
	for i, w := range ways {
		signature, err := t.b.Sign(s, w.mechanism, key, w.data)
		if err != nil && i+1 < len(ways) && isOneOf(err, p11.CKR_MECHANISM_INVALID, p11.CKR_MECHANISM_PARAM_INVALID) {
			t.refusesPSS.Store(true)
			t.log.Info("the token does not sign by CKM_RSA_PKCS_PSS; CKM_RSA_X_509 makes the same signatures", "err",
				err)
			continue
		}
		if err == nil {
			signature, err = w.finish(signature)
		}
		if err != nil {
			return nil, err
		}
		return signature, nil
	}
	return nil, errors.New("no mechanism is known for this signature") // not reached: there is always a way
}

// signingWay is a call that makes a signature.
type signingWay struct {
	mechanism *p11.Mechanism
	data      []byte
	// finish returns the signature in the form of crypto.Signer, or an error if it is wrong.
	finish func(made []byte) ([]byte, error)
}

// signingHashes are the hashes of signatures in TLS 1.2 and 1.3.
var signingHashes = map[crypto.Hash]struct {
	oid            asn1.ObjectIdentifier // of RFC 8017, appendix B.1
	mechanism, mgf uint
}{
	crypto.SHA256: {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, p11.CKM_SHA256, p11.CKG_MGF1_SHA256},
	crypto.SHA384: {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, p11.CKM_SHA384, p11.CKG_MGF1_SHA384},
	crypto.SHA512: {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, p11.CKM_SHA512, p11.CKG_MGF1_SHA512},
}

// signingWays returns the calls that make a signature, the best first.
func signingWays(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts) ([]signingWay, error) {
	hash := opts.HashFunc()
	known, ok := signingHashes[hash]
	if !ok || len(digest) != hash.Size() {
		return nil, fmt.Errorf("a digest of %d bytes by %v cannot be signed; it must be by SHA-256, SHA-384 or SHA-512",
			len(digest), hash)
	}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		return []signingWay{ecdsaWay(public, digest)}, nil
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			salt := hash.Size()
			if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != salt {
				return nil, fmt.Errorf("a salt of the length %d cannot be made; it must have the length of the hash",
					pss.SaltLength)
			}
			params := p11.NewPSSParams(known.mechanism, known.mgf, uint(salt))
			raw, err := rawPSSWay(public, hash, digest)
			best := signingWay{p11.NewMechanism(p11.CKM_RSA_PKCS_PSS, params), digest, pssFinish(public, hash, digest)}
			return []signingWay{best, raw}, err
		}
		info, err := asn1.Marshal(digestInfo{pkix.AlgorithmIdentifier{Algorithm: known.oid,
			Parameters: asn1.NullRawValue}, digest})
		return []signingWay{{p11.NewMechanism(p11.CKM_RSA_PKCS, nil), info, func(made []byte) ([]byte, error) {
			return verified(made, rsa.VerifyPKCS1v15(public, hash, digest, made) == nil)
		}}}, err
	}
	return nil, fmt.Errorf("a key of type %T cannot sign; it must be RSA or ECDSA", public)
}

// digestInfo is DigestInfo of RFC 8017, section 9.2.
type digestInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Digest    []byte
}

// verified returns a signature that was verified, or an error if it is wrong.
func verified(signature []byte, ok bool) ([]byte, error) {
	if !ok {
		return nil, claviger.E("pkcs11.Sign", claviger.Invalid, "", ErrWrongSignature)
	}
	return signature, nil
}

func pssFinish(public *rsa.PublicKey, hash crypto.Hash, digest []byte) func([]byte) ([]byte, error) {
	return func(made []byte) ([]byte, error) {
		salt := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		return verified(made, rsa.VerifyPSS(public, hash, digest, made, salt) == nil)
	}
}

// ecdsaWay signs by CKM_ECDSA, whose result is r and s, each as long as the order of the curve.
func ecdsaWay(public *ecdsa.PublicKey, digest []byte) signingWay {
	// FIPS 186-5, 6.4.1: only the leftmost bits of the digest count. Some tokens refuse more.
	data := digest[:min(len(digest), (public.Curve.Params().N.BitLen()+7)/8)]
	return signingWay{p11.NewMechanism(p11.CKM_ECDSA, nil), data, func(made []byte) ([]byte, error) {
		half := len(made) / 2
		signature, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(made[:half]),
			new(big.Int).SetBytes(made[half:])})
		if err != nil {
			return nil, err
		}
		return verified(signature, ecdsa.VerifyASN1(public, digest, signature))
	}}
}
