package trustee

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Limits of a public key. To read a key ring is to verify its signatures, and the sender chooses
// their cost: with invented parameters of a DSA key, one verification takes many seconds. So
// checkPackets checks the packets first. A key that GnuPG made has one or two keys, a user id and as
// many signatures.
const (
	maxKeyBits    = 8192
	maxExponent   = 32 // bits: go-crypto accepts at most 24
	maxKeys       = 16 // primary key and subkeys
	maxUserIDs    = 16
	maxSignatures = 64
	// maxSignature is the size limit of a detached signature, in bytes. A signature by a key of
	// maxKeyBits has about 1,100.
	maxSignature = 16 << 10
)

// Packets of a public key (RFC 9580, section 5).
const (
	tagSignature     = 2
	tagSecretKey     = 5
	tagPublicKey     = 6
	tagSecretSubkey  = 7
	tagTrust         = 12
	tagUserID        = 13
	tagPublicSubkey  = 14
	tagUserAttribute = 17
)

var errPrivate = errors.New("this holds a private key: send only the public key, and treat that private key as " +
	"compromised")

// checkPackets refuses a public key of a form or size that no identity here has. It verifies no
// signature and decompresses nothing.
func checkPackets(b []byte) error {
	var keys, primaries, users, signatures int
	r := packet.NewOpaqueReader(bytes.NewReader(b))
	for {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("this is not an OpenPGP public key: %w", err)
		}
		switch p.Tag {
		case tagSecretKey, tagSecretSubkey:
			return errPrivate
		case tagPublicKey, tagPublicSubkey:
			if keys++; p.Tag == tagPublicKey {
				primaries++
			}
			if err := checkKey(p.Contents, p.Tag == tagPublicSubkey); err != nil {
				return err
			}
		case tagUserID, tagUserAttribute:
			users++
		case tagSignature:
			signatures++
		case tagTrust: // GnuPG writes it into its rings
		default:
			return fmt.Errorf("this is not an OpenPGP public key: it has a packet of type %d", p.Tag)
		}
	}
	switch {
	case primaries != 1:
		return fmt.Errorf("found %d public keys, but there must be one", primaries)
	case keys > maxKeys || users > maxUserIDs || signatures > maxSignatures:
		return fmt.Errorf("a public key with %d keys, %d user ids and %d signatures is too large: at most %d, %d and "+
			"%d; export it by gpg --export-options export-minimal",
			keys, users, signatures, maxKeys, maxUserIDs, maxSignatures)
	}
	return nil
}

// checkKey checks the algorithm and the size of one key. A primary key must be an RSA key. A subkey
// may also use an elliptic curve, which determines the size.
func checkKey(body []byte, subkey bool) error {
	const head = 6 // version, time of creation, algorithm
	if len(body) < head {
		return errors.New("this is not an OpenPGP public key: a key is truncated")
	}
	if body[0] != 4 {
		return fmt.Errorf("a key has OpenPGP version %d, but only version 4 is accepted: make the identity with RSA "+
			"keys of %d bits", body[0], KeyBits)
	}
	switch algorithm := packet.PublicKeyAlgorithm(body[head-1]); algorithm {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSAEncryptOnly, packet.PubKeyAlgoRSASignOnly:
	case packet.PubKeyAlgoECDH, packet.PubKeyAlgoECDSA, packet.PubKeyAlgoEdDSA:
		if subkey {
			return nil
		}
		fallthrough
	default:
		return fmt.Errorf("a key is not an RSA key, but has algorithm %d: make the identity with RSA keys of %d bits",
			algorithm, KeyBits)
	}
	numbers := body[head:]
	for i, limit := range []int{maxKeyBits, maxExponent} {
		if len(numbers) < 2 {
			return errors.New("this is not an OpenPGP public key: a key is truncated")
		}
		bits := int(binary.BigEndian.Uint16(numbers))
		if bits > limit {
			return fmt.Errorf("an RSA key has a number of %d bits, but at most %d are accepted: make the identity "+
				"with RSA keys of %d bits", bits, limit, KeyBits)
		}
		if numbers = numbers[2:]; len(numbers) < (bits+7)/8 {
			return errors.New("this is not an OpenPGP public key: a key is truncated")
		}
		numbers = numbers[(bits+7)/8:]
		if i == 1 && len(numbers) > 0 {
			return errors.New("this is not an OpenPGP public key: a key has bytes after its end")
		}
	}
	return nil
}
