package keyhsm

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"claviger"
	"claviger/pkcs11"
	"claviger/secret"
)

// Limits of a deposit and of its envelope.
const (
	// MaxContent is the longest deposit, in bytes.
	MaxContent = 1 << 20
	// MaxUUID is the longest deposit uuid, in bytes.
	MaxUUID = 128
	// MaxWrapped is the longest envelope.
	MaxWrapped = headSize + maxKeyID + 2 + pkcs11.MaxPairBits/8 + gcmOverhead + MaxContent
)

const (
	magic       = "CKHSM" // a byte with the version follows
	version     = 1
	headSize    = len(magic) + 3 // magic, version, OAEP hash, length of the key id
	maxKeyID    = 64
	dataKeySize = 32
	gcmOverhead = 12 + 16 // nonce before, tag after the ciphertext
)

// hashCodes are the bytes that name the hash of RSA-OAEP.
var hashCodes = map[byte]crypto.Hash{1: crypto.SHA1, 2: crypto.SHA256}

func hashCode(h crypto.Hash) (byte, bool) {
	for code, hash := range hashCodes {
		if hash == h {
			return code, true
		}
	}
	return 0, false
}

// Envelope is a parsed wrapped deposit. Its bytes, in version 1, are:
//
//	"CKHSM"            5 bytes
//	version            1 byte, 1
//	OAEP hash          1 byte: 1 is SHA-1, 2 is SHA-256
//	length of key id   1 byte, 1 to 64
//	key id             CKA_ID of the RSA pair
//	length of data key 2 bytes, big-endian, 256 to 512
//	data key           32 bytes, by RSA-OAEP with an empty label
//	nonce              12 bytes
//	deposit            AES-256-GCM, and then its tag of 16 bytes
//
// The associated data of AES-GCM is everything before the nonce, and then the deposit's uuid.
// So an envelope can be opened only with the same uuid and an unchanged header.
type Envelope struct {
	Hash    crypto.Hash
	KeyID   []byte
	DataKey []byte // encrypted
	sealed  []byte // nonce, ciphertext, tag
	header  []byte // everything before sealed
}

// HexKeyID returns the key id of the envelope in hexadecimal, as messages and settings write it.
func (e *Envelope) HexKeyID() string { return hex.EncodeToString(e.KeyID) }

// ParseEnvelope parses a wrapped deposit, without opening it. The parts are slices of data.
// The error is of kind Invalid.
func ParseEnvelope(data []byte) (*Envelope, error) {
	const op = "keyhsm.ParseEnvelope"
	bad := func(format string, args ...any) (*Envelope, error) {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "not a deposit that Key HSM wrapped: "+format, args...)
	}
	switch {
	case len(data) > MaxWrapped:
		return bad("it has %d bytes, and at most %d are possible", len(data), MaxWrapped)
	case len(data) < headSize:
		return bad("it has %d bytes, which is too short", len(data))
	case string(data[:len(magic)]) != magic:
		return bad("it does not begin with %q", magic)
	case data[len(magic)] != version:
		return bad("it has version %d, but only version %d is supported", data[len(magic)], version)
	}
	e := new(Envelope)
	var ok bool
	if e.Hash, ok = hashCodes[data[len(magic)+1]]; !ok {
		return bad("OAEP hash %d is not known", data[len(magic)+1])
	}
	n := int(data[len(magic)+2])
	if n == 0 || n > maxKeyID {
		return bad("the key id has %d bytes; 1 to %d are possible", n, maxKeyID)
	}
	rest := data[headSize:]
	if len(rest) < n+2 {
		return bad("it ends within the key id")
	}
	e.KeyID, rest = rest[:n], rest[n:]
	n = int(binary.BigEndian.Uint16(rest))
	if n < pkcs11.MinPairBits/8 || n > pkcs11.MaxPairBits/8 {
		return bad("the data key has %d bytes; %d to %d are possible", n, pkcs11.MinPairBits/8, pkcs11.MaxPairBits/8)
	}
	rest = rest[2:]
	if len(rest) < n+gcmOverhead {
		return bad("it ends too early")
	}
	e.DataKey, e.sealed = rest[:n], rest[n:]
	if len(e.sealed) > gcmOverhead+MaxContent {
		return bad("the deposit in it has %d bytes, and at most %d are possible", len(e.sealed)-gcmOverhead, MaxContent)
	}
	e.header = data[:len(data)-len(e.sealed)]
	return e, nil
}

// MaxHead is how many bytes of the beginning of an envelope are enough to read its key id.
const MaxHead = headSize + maxKeyID

// KeyIDOfHead reads the key id, in hexadecimal, from the first MaxHead bytes of an envelope.
// It returns "?" if data is not the beginning of an envelope.
func KeyIDOfHead(data []byte) string {
	if len(data) < headSize || string(data[:len(magic)]) != magic || data[len(magic)] != version {
		return "?"
	}
	n := int(data[len(magic)+2])
	if n == 0 || n > maxKeyID || len(data) < headSize+n {
		return "?"
	}
	return hex.EncodeToString(data[headSize : headSize+n])
}

// newEnvelope encrypts content for uuid under dataKey, and returns the envelope. encryptedKey
// is dataKey as the RSA pair has encrypted it.
func newEnvelope(hash crypto.Hash, keyID, encryptedKey []byte, dataKey secret.Bytes, uuid string,
	content []byte) ([]byte, error) {
	code, ok := hashCode(hash)
	if !ok || len(keyID) == 0 || len(keyID) > maxKeyID || len(encryptedKey) > pkcs11.MaxPairBits/8 {
		return nil, fmt.Errorf("an envelope cannot hold hash %v, a key id of %d bytes and an encrypted data key of %d",
			hash, len(keyID), len(encryptedKey))
	}
	aead, err := newGCM(dataKey)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, headSize+len(keyID)+2+len(encryptedKey)+gcmOverhead+len(content))
	out = append(append(out, magic...), version, code, byte(len(keyID)))
	out = append(out, keyID...)
	out = binary.BigEndian.AppendUint16(out, uint16(len(encryptedKey))) //nolint:gosec // at most 512
	out = append(out, encryptedKey...)
	return aead.Seal(out, nil, content, associated(out, uuid)), nil //nolint:gosec // newGCM's AEAD makes a random nonce
}

// open returns the deposit. Its error does not say which part is wrong.
func (e *Envelope) open(dataKey secret.Bytes, uuid string) ([]byte, error) {
	aead, err := newGCM(dataKey)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, e.sealed, associated(e.header, uuid))
}

// associated returns the associated data. It is unambiguous, since the header contains its own
// length.
func associated(header []byte, uuid string) []byte {
	return append(append(make([]byte, 0, len(header)+len(uuid)), header...), uuid...)
}

func newGCM(dataKey secret.Bytes) (cipher.AEAD, error) {
	if len(dataKey) != dataKeySize {
		return nil, fmt.Errorf("the data key has %d bytes, not %d", len(dataKey), dataKeySize)
	}
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// checkUUID refuses a uuid that a trustee cannot have made.
func checkUUID(op, uuid string) error {
	if uuid == "" || len(uuid) > MaxUUID {
		return claviger.Errorf(op, claviger.Invalid, "", "the deposit's uuid has %d bytes; 1 to %d are possible",
			len(uuid), MaxUUID)
	}
	for i := range len(uuid) {
		if c := uuid[i]; c <= ' ' || c > '~' {
			return claviger.Errorf(op, claviger.Invalid, "",
				"the deposit's uuid %q holds a character that is not printable ASCII", uuid)
		}
	}
	return nil
}
