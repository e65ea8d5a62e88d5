package trustee

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"claviger"
)

// KeyBits is the size of the RSA keys that NewIdentity makes; GET /?a=fingerprint shows it as
// "4096R".
const KeyBits = 4096

// minKeyBits is the shortest RSA key that is accepted from a ring.
const minKeyBits = 2048

// A Party is the public key of a client or server: it checks signatures and encrypts. It never
// holds a private key.
type Party struct {
	entity *openpgp.Entity
	bits   int
}

// An Identity is a Party with its private keys. Its printed form never contains them.
type Identity struct {
	Party
	private *openpgp.Entity
}

// NewIdentity makes an RSA key pair for signatures, with a subkey for encryption. Both never expire.
// The user id is "name (comment) <email>", in Cloudera's folders "keytrustee (client) <kms@HOST>".
// bits is KeyBits outside of tests.
func NewIdentity(name, comment, email string, bits int, now time.Time) (*Identity, error) {
	const op = "trustee.NewIdentity"
	if bits < minKeyBits {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "an RSA key of %d bits is too short: use %d", bits,
			KeyBits)
	}
	e, err := openpgp.NewEntity(name, comment, email, &packet.Config{
		Algorithm: packet.PubKeyAlgoRSA, RSABits: bits, DefaultHash: crypto.SHA256,
		DefaultCipher: packet.CipherAES256, Time: func() time.Time { return now },
	})
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "user id %q (%s) <%s>: %w", name, comment, email, err)
	}
	return newIdentity(op, e)
}

func newIdentity(op string, e *openpgp.Entity) (*Identity, error) {
	p, err := newParty(op, e)
	if err != nil {
		return nil, err
	}
	return &Identity{Party: *p, private: e}, nil
}

// newParty keeps a copy of e without private parts.
func newParty(op string, e *openpgp.Entity) (*Party, error) {
	fpr := hex.EncodeToString(e.PrimaryKey.Fingerprint)
	if len(fpr) != fingerprintLen {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "key %s is not an OpenPGP version 4 key: its "+
			"fingerprint should have %d hex digits", fpr, fingerprintLen)
	}
	if e.PrimaryKey.PubKeyAlgo != packet.PubKeyAlgoRSA {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "key %s is not an RSA key: make the identity with RSA "+
			"keys of %d bits", fpr, KeyBits)
	}
	bits, err := e.PrimaryKey.BitLength()
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "key %s: %w", fpr, err)
	}
	if bits < minKeyBits {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "key %s has %d bits, which is too short: make an "+
			"identity of %d bits", fpr, bits, KeyBits)
	}
	if err := checkNeverExpires(e); err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "key %s %w", strings.ToUpper(fpr), err)
	}
	var b bytes.Buffer
	if err := e.Serialize(&b); err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "key %s cannot be written: %w", fpr, err)
	}
	list, err := openpgp.ReadKeyRing(&b)
	if len(list) != 1 { // an error comes with an empty list
		return nil, claviger.Errorf(op, claviger.Invalid, "", "key %s cannot be read back: %v", fpr, err)
	}
	return &Party{entity: list[0], bits: int(bits)}, nil
}

// checkNeverExpires refuses keys that expire or have expired: from that day on, no deposit could be
// read. The server has another way to lock out a client: the state of the client.
func checkNeverExpires(e *openpgp.Entity) error {
	far := time.Now().AddDate(100, 0, 0)
	_, signs := e.SigningKey(far)
	_, encrypts := e.EncryptionKey(far)
	if signs && encrypts {
		return nil
	}
	what := "has no key for signatures or no key for encryption, or it was revoked"
	const cure = "remove the expiry date of each of its keys, by gpg --edit-key and expire, and export the rings again"
	report := func(made time.Time, sig *packet.Signature) {
		if sig != nil && sig.KeyLifetimeSecs != nil && *sig.KeyLifetimeSecs != 0 {
			end := made.Add(time.Duration(*sig.KeyLifetimeSecs) * time.Second)
			what = fmt.Sprintf("expires at %s, and after that its deposits could not be read: %s",
				end.UTC().Format(time.RFC3339), cure)
		}
	}
	for _, sub := range e.Subkeys {
		report(sub.PublicKey.CreationTime, sub.Sig)
	}
	if sig, _ := e.PrimarySelfSignature(); sig != nil {
		report(e.PrimaryKey.CreationTime, sig)
	}
	return errors.New(what)
}

// fingerprintLen is the number of hex digits of a version 4 fingerprint, which is a SHA-1 hash (RFC
// 9580, section 5.5.4.1).
const fingerprintLen = 40

// Fingerprint returns the fingerprint of the primary key: 40 hex digits, in capitals as GnuPG prints
// them.
func (p *Party) Fingerprint() string {
	return strings.ToUpper(hex.EncodeToString(p.entity.PrimaryKey.Fingerprint))
}

// String returns "<bits>R/<fingerprint>", the form of GET /?a=fingerprint and of keytrustee.conf.
func (p *Party) String() string { return fmt.Sprintf("%dR/%s", p.bits, p.Fingerprint()) }

// Public writes the OpenPGP packets of the public key, in the form of a public ring.
func (p *Party) Public(w io.Writer) error { return p.entity.Serialize(w) }

// secret writes the packets of the private keys, unencrypted, in the form of a private ring.
func (id *Identity) secret(w io.Writer) error {
	return id.private.SerializePrivateWithoutSigning(w, nil)
}

// maxPublicKey is the size limit of a public key that a peer sends. A key of 4096 bits with a subkey
// takes about 2.5 KiB.
const maxPublicKey = 64 << 10

// ReadParty reads exactly one public key, in binary as Public writes it. Before it verifies any
// signature, it refuses a private key, several keys, more than 64 KiB, and keys that are not RSA of
// up to 8192 bits.
func ReadParty(b []byte) (*Party, error) {
	const op = "trustee.ReadParty"
	if len(b) > maxPublicKey {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "a public key of %d bytes is too long: at most %d",
			len(b), maxPublicKey)
	}
	if err := checkPackets(b); err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%w", err)
	}
	list, err := openpgp.ReadKeyRing(bytes.NewReader(b))
	if len(list) != 1 { // an error comes with an empty list; checkPackets has refused more keys, and private ones
		return nil, claviger.Errorf(op, claviger.Invalid, "", "this is not an OpenPGP public key: %v", err)
	}
	return newParty(op, list[0])
}

// Seal encrypts a secret to the identity's own key and signs it. The result is the content of a
// deposit. GnuPG can open it.
func (id *Identity) Seal(secret []byte, now time.Time) ([]byte, error) {
	const op = "trustee.Seal"
	var b bytes.Buffer
	w, err := openpgp.Encrypt(&b, []*openpgp.Entity{id.entity}, id.private, &openpgp.FileHints{IsBinary: true},
		configAt(now))
	if err == nil {
		_, err = w.Write(secret)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Internal, "", "encrypt to %s: %w", id, err)
	}
	return b.Bytes(), nil
}

// maxSecret is the size limit of a secret that Open decrypts, so that a compressed message cannot
// fill the memory.
const maxSecret = 1 << 20

// Open decrypts a message that Seal made with the same identity. If the message is signed by another
// key, not signed, altered or truncated, Open returns an error and no part of the secret.
func (id *Identity) Open(sealed []byte, now time.Time) ([]byte, error) {
	const op = "trustee.Open"
	md, err := openpgp.ReadMessage(bytes.NewReader(sealed), openpgp.EntityList{id.private}, nil,
		configAt(now.Add(clockTolerance)))
	if err != nil {
		return nil, claviger.Errorf(op, claviger.Invalid, "", "not a message that %s can decrypt: %w", id, err)
	}
	b, err := io.ReadAll(io.LimitReader(md.UnverifiedBody, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("it holds more than %d bytes", maxSecret)
	}
	if err == nil {
		err = md.SignatureError
	}
	if err == nil && (!md.IsEncrypted || !md.IsSigned || md.SignedBy == nil || md.Signature == nil) {
		err = errors.New("it is not both encrypted to and signed by this identity")
	}
	if err != nil {
		clear(b)
		return nil, claviger.Errorf(op, claviger.Invalid, "", "a message to %s is refused: %w", id, err)
	}
	return b, nil
}

// clockTolerance is how far the time of a signature may be ahead of our clock. ReadRequest checks
// that a request is recent, with an error that names the clocks.
const clockTolerance = 24 * time.Hour

func configAt(now time.Time) *packet.Config {
	return &packet.Config{DefaultHash: crypto.SHA256, DefaultCipher: packet.CipherAES256,
		Time: func() time.Time { return now }}
}

// sign makes a binary detached signature. The error is of kind Unavailable if this host's clock
// shows a time before the identity was made.
func (id *Identity) sign(text []byte, now time.Time) ([]byte, error) {
	if made := id.private.PrimaryKey.CreationTime; now.Before(made) {
		return nil, claviger.Errorf("trustee.sign", claviger.Unavailable, "",
			"the clock of this host shows %s, but its identity was made %s: set the clock by NTP",
			now.UTC().Format(time.RFC3339), made.UTC().Format(time.RFC3339))
	}
	var b bytes.Buffer
	if err := openpgp.DetachSign(&b, id.private, bytes.NewReader(text), configAt(now)); err != nil {
		return nil, fmt.Errorf("sign with %s: %w", id, err)
	}
	return b.Bytes(), nil
}

// verify checks a binary detached signature that p must have made.
func (p *Party) verify(text, signature []byte, now time.Time) error {
	if len(signature) > maxSignature {
		return fmt.Errorf("a signature of %d bytes is too long: at most %d", len(signature), maxSignature)
	}
	_, err := openpgp.CheckDetachedSignature(openpgp.EntityList{p.entity}, bytes.NewReader(text),
		bytes.NewReader(signature), configAt(now.Add(clockTolerance)))
	return err
}
