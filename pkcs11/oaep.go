package pkcs11

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" //nolint:gosec // RSA-OAEP needs no collision resistance, and older tokens have only SHA-1
	"errors"
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/secret"
)

// oaepHashes are the hashes for RSA-OAEP, in order of preference. SoftHSM 2.6 supports only SHA-1, which for OAEP is
// not weaker in any known way.
var oaepHashes = []struct {
	hash           crypto.Hash
	mechanism, mgf uint
}{
	{crypto.SHA256, p11.CKM_SHA256, p11.CKG_MGF1_SHA256},
	{crypto.SHA1, p11.CKM_SHA_1, p11.CKG_MGF1_SHA1},
}

// EncryptOAEP encrypts a few bytes with a pair's public key, by RSA-OAEP. The hash is used for the (empty) label and
// for the mask. It needs no token.
func EncryptOAEP(public *rsa.PublicKey, hash crypto.Hash, plain secret.Bytes) ([]byte, error) {
	return rsa.EncryptOAEP(hash.New(), rand.Reader, public, plain, nil)
}

// DecryptOAEP decrypts in the token the result of EncryptOAEP, by C_DecryptInit and C_Decrypt. The error is of kind
// KeyNotFound if the token has no such private key, and of kind Invalid if sealed was made for another key.
func (t *Token) DecryptOAEP(ctx context.Context, id []byte, label string, hash crypto.Hash,
	sealed []byte) (secret.Bytes, error) {
	const op = "pkcs11.DecryptOAEP"
	if len(sealed) < MinPairBits/8 || len(sealed) > MaxPairBits/8 {
		return nil, claviger.Errorf(op, claviger.Invalid, label,
			"%d bytes are not encrypted by RSA-OAEP of %d to %d bits", len(sealed), MinPairBits, MaxPairBits)
	}
	var plain secret.Bytes
	err := t.doWithPair(ctx, op, id, label, func(s p11.SessionHandle, key p11.ObjectHandle) (err error) {
		plain, err = t.openOAEP(s, key, hash, sealed)
		var refused refusedData
		if !errors.As(err, &refused) {
			return err
		}
		if refused.ambiguous && !t.decryptsTestMessage(s, key, hash) {
			return refused.error
		}
		return claviger.Errorf(op, claviger.Invalid, label, "the HSM key %x does not open this: it is damaged, or "+
			"made for another key (%v)", id, refused.error)
	})
	if err != nil {
		return nil, err // without plain, as in Find: a call that outlived ctx may still write it
	}
	return plain, nil
}

// ProbeOAEP returns the hash that the token can use for RSA-OAEP with that pair: SHA-256 if the token decrypts a
// test message with it, else SHA-1.
func (t *Token) ProbeOAEP(ctx context.Context, id []byte, label string) (crypto.Hash, error) {
	const op = "pkcs11.ProbeOAEP"
	var found crypto.Hash
	err := t.doWithPair(ctx, op, id, label, func(s p11.SessionHandle, key p11.ObjectHandle) error {
		k, err := t.describePair(s, key)
		if err != nil {
			return err
		}
		var tried []error
		for _, o := range oaepHashes {
			err := t.roundTrip(s, key, k.Public, o.hash)
			if err == nil {
				found = o.hash
				return nil
			}
			if damageOf(err) == gone {
				return err
			}
			tried = append(tried, fmt.Errorf("%v: %w", o.hash, err))
		}
		return fmt.Errorf("the token decrypts nothing by CKM_RSA_PKCS_OAEP with the key %q; allow that mechanism in "+
			"the policies of the partition: %w", label, errors.Join(tried...))
	})
	if err != nil {
		return 0, err
	}
	return found, nil
}

// refusedData marks the error of C_Decrypt (not of C_DecryptInit) for the data. If ambiguous is true, a broken token
// returns the same error.
type refusedData struct {
	error
	ambiguous bool
}

func (e refusedData) Unwrap() error { return e.error }

func (t *Token) openOAEP(s p11.SessionHandle, key p11.ObjectHandle, hash crypto.Hash,
	sealed []byte) (secret.Bytes, error) {
	for _, o := range oaepHashes {
		if o.hash != hash {
			continue
		}
		params := p11.NewOAEPParams(o.mechanism, o.mgf, p11.CKZ_DATA_SPECIFIED, nil)
		if err := t.b.DecryptInit(s, params, key); err != nil {
			return nil, err
		}
		plain, err := t.b.Decrypt(s, sealed)
		var code p11.Error
		if errors.As(err, &code) {
			switch code {
			case p11.CKR_ENCRYPTED_DATA_INVALID, p11.CKR_ENCRYPTED_DATA_LEN_RANGE, p11.CKR_DATA_INVALID,
				p11.CKR_DATA_LEN_RANGE:
				return nil, refusedData{err, false}
			case p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED: // SoftHSM 2.6 returns these for wrong padding
				return nil, refusedData{err, true}
			}
		}
		return plain, err
	}
	return nil, claviger.Errorf("pkcs11.DecryptOAEP", claviger.Invalid, "", "RSA-OAEP with %v is not known here", hash)
}

// decryptsTestMessage reports whether the token works: whether it decrypts a message that this process encrypts now.
// Without this check, one damaged message would make the library start again.
func (t *Token) decryptsTestMessage(s p11.SessionHandle, key p11.ObjectHandle, hash crypto.Hash) bool {
	k, err := t.describePair(s, key)
	return err == nil && t.roundTrip(s, key, k.Public, hash) == nil
}

func (t *Token) roundTrip(s p11.SessionHandle, key p11.ObjectHandle, public *rsa.PublicKey, hash crypto.Hash) error {
	want := make(secret.Bytes, 32)
	if _, err := rand.Read(want); err != nil {
		return err
	}
	sealed, err := EncryptOAEP(public, hash, want)
	if err != nil {
		return err
	}
	got, err := t.openOAEP(s, key, hash, sealed)
	if err == nil && !got.Equal(want) {
		err = errors.New("the token decrypted a test message to other bytes")
	}
	return err
}
