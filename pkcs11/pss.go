package pkcs11

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	p11 "github.com/miekg/pkcs11"
)

// rawPSSWay makes a signature by RSA-PSS with CKM_RSA_X_509, for tokens without CKM_RSA_PKCS_PSS.
func rawPSSWay(public *rsa.PublicKey, hash crypto.Hash, digest []byte) (signingWay, error) {
	salt := make([]byte, hash.Size())
	_, _ = rand.Read(salt) // it never fails
	encoded, err := encodePSS(public.N.BitLen()-1, hash, digest, salt)
	data := make([]byte, public.Size())
	copy(data[len(data)-len(encoded):], encoded)
	return signingWay{p11.NewMechanism(p11.CKM_RSA_X_509, nil), data, pssFinish(public, hash, digest)}, err
}

// encodePSS is EMSA-PSS-ENCODE of RFC 8017, section 9.1.1. bits is the length of the result.
func encodePSS(bits int, hash crypto.Hash, digest, salt []byte) ([]byte, error) {
	size := (bits + 7) / 8
	at := size - len(digest) - 1 // of H, after the masked DB
	if at < len(salt)+2 {
		return nil, errors.New("the RSA key is too short for a signature by RSA-PSS with this hash")
	}
	h := hash.New()
	h.Write(make([]byte, 8))
	h.Write(digest)
	h.Write(salt)
	sum := h.Sum(nil)
	encoded := make([]byte, size)
	db := encoded[:at]
	db[at-len(salt)-1] = 1
	copy(db[at-len(salt):], salt)
	subtle.XORBytes(db, db, mgf1(hash, sum, at))
	db[0] &= 0xff >> (8*size - bits)
	copy(encoded[at:], sum)
	encoded[size-1] = 0xbc
	return encoded, nil
}

// mgf1 is the mask of RFC 8017, appendix B.2.1.
func mgf1(hash crypto.Hash, seed []byte, size int) []byte {
	var mask []byte
	for i := uint32(0); len(mask) < size; i++ {
		h := hash.New()
		h.Write(seed)
		h.Write(binary.BigEndian.AppendUint32(nil, i))
		mask = h.Sum(mask)
	}
	return mask[:size]
}
