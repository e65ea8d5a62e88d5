package trustee

import (
	"bytes"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // fingerprints of OpenPGP version 4
	"encoding/binary"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"claviger"
)

// opaque writes one packet in the new format.
func opaque(tag byte, body []byte) []byte {
	size := uint32(len(body)) //nolint:gosec // of a test
	return append(binary.BigEndian.AppendUint32([]byte{0xc0 | tag, 0xff}, size), body...)
}

// number writes an OpenPGP number of random bits.
func number(t *testing.T, bits int) []byte {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1))) //nolint:gosec // of a test
	if err != nil {
		t.Fatal(err)
	}
	n.SetBit(n, bits-1, 1).SetBit(n, 0, 1)
	return append(binary.BigEndian.AppendUint16(nil, uint16(bits)), n.Bytes()...) //nolint:gosec // of a test
}

// madeUp returns a public key with a user id and one self-signature. The numbers of the key are random.
func madeUp(t *testing.T, algorithm packet.PublicKeyAlgorithm, bits ...int) []byte {
	t.Helper()
	key := append([]byte{4}, 0x60, 0, 0, 0, byte(algorithm))
	for _, n := range bits {
		key = append(key, number(t, n)...)
	}
	size := uint16(len(key))                                                           //nolint:gosec // of a test
	sum := sha1.Sum(append(binary.BigEndian.AppendUint16([]byte{0x99}, size), key...)) //nolint:gosec // as above
	hashed := append([]byte{5, 2, 0x60, 0, 0, 1, 2, 27, 3, 9, 16}, sum[12:]...)
	sig := append([]byte{4, 0x13, byte(algorithm), 8, 0, byte(len(hashed))}, hashed...) //nolint:gosec // of a test
	sig = append(sig, 0, 0, 0, 0)
	sig = append(sig, number(t, bits[0]-2)...)
	if algorithm == packet.PubKeyAlgoDSA {
		sig = append(sig, 0, 1, 1)
	}
	return append(append(opaque(tagPublicKey, key), opaque(tagUserID, []byte("x <x@x>"))...),
		opaque(tagSignature, sig)...)
}

// TestCostlyKeys: an invented public key is refused quickly. A DSA key of 24576 bits once took half a minute.
func TestCostlyKeys(t *testing.T) {
	a, _ := pair()
	var good bytes.Buffer
	if err := a.Public(&good); err != nil {
		t.Fatal(err)
	}
	var first, last []byte // packets of a good key
	r := packet.NewOpaqueReader(bytes.NewReader(good.Bytes()))
	for p, err := r.Next(); err == nil; p, err = r.Next() {
		last = opaque(p.Tag, p.Contents)
		if p.Tag == tagSignature {
			first = last
		}
	}
	const dsaBits = 24576
	for what, c := range map[string]struct {
		data []byte
		want string
	}{
		"a DSA key": {madeUp(t, packet.PubKeyAlgoDSA, dsaBits+7, dsaBits, dsaBits, dsaBits), "not an RSA key"},
		"an Elgamal subkey": {append(bytes.Clone(good.Bytes()), opaque(tagPublicSubkey, append([]byte{4, 0, 0, 0, 0,
			16}, number(t, 16384)...))...), "not an RSA key"},
		"a DSA subkey": {append(bytes.Clone(good.Bytes()), opaque(tagPublicSubkey, append([]byte{4, 0, 0, 0, 0,
			17}, number(t, 16384)...))...), "not an RSA key"},
		"a huge RSA key":  {madeUp(t, packet.PubKeyAlgoRSA, 65528, 17), "number of 65528 bits"},
		"a huge exponent": {madeUp(t, packet.PubKeyAlgoRSA, 4096, 4096), "number of 4096 bits"},
		"signatures": {append(bytes.Clone(good.Bytes()), bytes.Repeat(first, maxSignatures)...),
			"signatures is too large"},
		"subkeys": {append(bytes.Clone(good.Bytes()), bytes.Repeat(opaque(tagPublicSubkey, madeUpBody(t)),
			maxKeys)...), "is too large"},
		"user ids": {append(bytes.Clone(good.Bytes()), bytes.Repeat(opaque(tagUserID, []byte("x")),
			maxUserIDs)...), "is too large"},
		"compressed":       {opaque(8, []byte{2, 0x78, 0x9c}), "packet of type 8"},
		"version 6":        {opaque(tagPublicKey, []byte{6, 0, 0, 0, 0, 1, 0, 0}), "version 6"},
		"a truncated head": {opaque(tagPublicKey, []byte{4, 0, 0, 0, 0}), "a key is truncated"},
		"no number":        {opaque(tagPublicKey, []byte{4, 0, 0, 0, 0, 1}), "a key is truncated"},
		"a truncated second number": {opaque(tagPublicKey, []byte{4, 0, 0, 0, 0, 1, 0, 1, 1, 0, 9, 1}),
			"a key is truncated"},
		"a truncated number": {opaque(tagPublicKey, []byte{4, 0, 0, 0, 0, 1, 16, 0, 1}), "a key is truncated"},
		"more behind": {opaque(tagPublicKey, append([]byte{4, 0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 1}, 0)),
			"after its end"},
	} {
		began := time.Now()
		p, err := ReadParty(c.data)
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s (%d bytes): %v, %v", what, len(c.data), p, err)
		}
		if took := time.Since(began); took > 10*time.Second { // a number of 65,528 bits would take minutes
			t.Errorf("%s took %s", what, took)
		}
	}
	if err := a.verify([]byte("x"), make([]byte, maxSignature+1), time.Now()); err == nil ||
		!strings.Contains(err.Error(), "too long") {
		t.Errorf("a long signature: %v", err)
	}
}

// madeUpBody returns the body of an RSA key with random numbers.
func madeUpBody(t *testing.T) []byte {
	t.Helper()
	return append(append([]byte{4, 0, 0, 0, 0, 1}, number(t, 2048)...), number(t, 17)...)
}
