package trustee

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Limits of a public key. Reading a key ring means verifying its signatures, and the sender chooses
// their cost: with made-up parameters of a DSA key one verification takes many seconds. So the
// packets are checked first. GnuPG's own keys have one or two keys, a user id and as many
// signatures.
const (
	maxKeyBits    = 8192
	maxExponent   = 32 // bits: go-crypto takes none of more than 24
	maxKeys       = 16 // primary key and subkeys
	maxUserIDs    = 16
	maxSignatures = 64
	// maxSignature bounds a detached signature, in bytes. A signature by a key of maxKeyBits has
	// about 1,100.
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

var errPrivate = errors.New("this holds a private key: send the public key only, and count that private key as known " +
	"to others")

// checkPackets refuses a public key whose form or size is not that of the keys here. It verifies no
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
			return fmt.Errorf("this is no OpenPGP public key: %w", err)
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
		case tagTrust: // GnuPG's own, in its rings
		default:
			return fmt.Errorf("this is no OpenPGP public key: it has a packet of type %d", p.Tag)
		}
	}
	switch {
	case primaries != 1:
		return fmt.Errorf("%d public keys where there must be one", primaries)
	case keys > maxKeys || users > maxUserIDs || signatures > maxSignatures:
		return fmt.Errorf("a public key with %d keys, %d user ids and %d signatures is too large: at most %d, %d and "+
			"%d; export it by gpg --export-options export-minimal",
			keys, users, signatures, maxKeys, maxUserIDs, maxSignatures)
	}
	return nil
}

// checkKey looks at the algorithm and the size of one key: RSA, and for subkeys those
// whose curve fixes the size as well.
func checkKey(body []byte, subkey bool) error {
	const head = 6 // version, time of creation, algorithm
	if len(body) < head {
		return errors.New("this is no OpenPGP public key: a key is cut short")
	}
	if body[0] != 4 {
		return fmt.Errorf("a key is of OpenPGP version %d, and 4 is taken here: make the identity with RSA keys of "+
			"%d bits", body[0], KeyBits)
	}
	switch algorithm := packet.PublicKeyAlgorithm(body[head-1]); algorithm {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSAEncryptOnly, packet.PubKeyAlgoRSASignOnly:
	case packet.PubKeyAlgoECDH, packet.PubKeyAlgoECDSA, packet.PubKeyAlgoEdDSA:
		if subkey {
			return nil
		}
		fallthrough
	default:
		return fmt.Errorf("a key is not an RSA key, but of algorithm %d: make the identity with RSA keys of %d bits",
			algorithm, KeyBits)
	}
	numbers := body[head:]
	for i, most := range []int{maxKeyBits, maxExponent} {
		if len(numbers) < 2 {
			return errors.New("this is no OpenPGP public key: a key is cut short")
		}
		bits := int(binary.BigEndian.Uint16(numbers))
		if bits > most {
			return fmt.Errorf("an RSA key has a number of %d bits, where at most %d are taken: make the identity "+
				"with RSA keys of %d bits", bits, most, KeyBits)
		}
		if numbers = numbers[2:]; len(numbers) < (bits+7)/8 {
			return errors.New("this is no OpenPGP public key: a key is cut short")
		}
		numbers = numbers[(bits+7)/8:]
		if i == 1 && len(numbers) > 0 {
			return errors.New("this is no OpenPGP public key: a key has bytes behind its end")
		}
	}
	return nil
}
