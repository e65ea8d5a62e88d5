package evidence

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"

	"claviger/durable"
	"claviger/secret"
)

// maxKeyFile is the greatest size of a file with a key, in bytes.
const maxKeyFile = 64 << 10

// The types of PEM blocks: PKCS #8, and SubjectPublicKeyInfo.
const (
	privateBlock = "PRIVATE KEY"
	publicBlock  = "PUBLIC KEY"
)

// KeyPair is the result of MakeKey.
type KeyPair struct {
	Private     string `json:"privateKeyFile"`
	Public      string `json:"publicKeyFile"`
	Fingerprint string `json:"fingerprint"`
}

// MakeKey makes a key that signs reports: the private key in a new file of mode 0600, and the public key in a new file
// beside it with the name PATH.pub.
func MakeKey(path string) (*KeyPair, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	defer clear(private)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	text := pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: der})
	defer clear(text)
	publicDER, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	pair := &KeyPair{Private: path, Public: path + ".pub", Fingerprint: fingerprint(public)}
	// The public key first: if the private key cannot be written, no file remains that looks like a key.
	if err := durable.Create(pair.Public, pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: publicDER}),
		0o644); err != nil {
		return nil, err
	}
	if err := durable.Create(pair.Private, text, 0o600); err != nil {
		return nil, errors.Join(err, durable.Remove(pair.Public))
	}
	return pair, nil
}

// fingerprint is the SHA-256 of a public key in DER, as "openssl pkey -pubin -outform DER | sha256sum" shows it.
func fingerprint(key ed25519.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(err) // each public key of Ed25519 can be encoded
	}
	return "sha256:" + digest(der)
}

// fingerprintOf returns the fingerprint of the public key that belongs to a private key.
func fingerprintOf(key ed25519.PrivateKey) string {
	return fingerprint(ed25519.PublicKey(bytes.Clone(key[ed25519.PrivateKeySize-ed25519.PublicKeySize:])))
}

const (
	cureKey    = "claviger migrate report keygen makes such a key"
	curePublic = "name the file that claviger migrate report keygen has made beside the private key (FILE.pub)"
)

// ReadKey reads a private key, from a file that nobody else may read.
func ReadKey(path string) (ed25519.PrivateKey, error) {
	der, err := readBlock(path, privateBlock)
	info, statErr := os.Stat(path)
	if errors.Is(err, errIsPublic) || statErr == nil && !info.Mode().IsRegular() {
		return nil, err // no advice to change the mode of a public key, or of a device
	}
	defer clear(der)
	if err := (secret.File{Path: path, Kind: "the signing key", Deny: 0o077,
		Risk: "who could sign reports"}).Refuse(); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w; %s", err, cureKey)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	key, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("%s has no private key of Ed25519; %s", path, cureKey)
	}
	return key, nil
}

// ReadPublicKey reads a public key.
func ReadPublicKey(path string) (ed25519.PublicKey, error) {
	der, err := readBlock(path, publicBlock)
	if err != nil {
		return nil, fmt.Errorf("%w; %s", err, curePublic)
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	key, ok := parsed.(ed25519.PublicKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("%s has no public key of Ed25519; %s", path, curePublic)
	}
	if lowOrder(key) {
		return nil, fmt.Errorf("%s has a public key that belongs to no private key: anybody can make signatures that "+
			"it verifies; %s", path, curePublic)
	}
	return key, nil
}

// lowOrderPoints are the encodings of the points of Ed25519 whose order is at most 8, with the sign bit cleared; the
// last two are not in the standard form. For such a public key, one signature verifies many texts, and nobody needs a
// private key (RFC 8032 5.1.7 does not refuse them; libsodium's ge25519_has_small_order does, by this list).
var lowOrderPoints = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

// lowOrder reports whether a public key is one of these points.
func lowOrder(key ed25519.PublicKey) bool {
	y := bytes.Clone(key)
	y[len(y)-1] &= 0x7f
	return slices.Contains(lowOrderPoints, hex.EncodeToString(y))
}

// errIsPublic says that a file has a public key where a private key is needed.
var errIsPublic = errors.New("is the public key")

// readBlock reads a file that has one PEM block of a type, and nothing else.
func readBlock(path, kind string) ([]byte, error) {
	text, err := durable.ReadRegular(path, maxKeyFile)
	defer clear(text)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, fmt.Errorf("%s is not a key in PEM", path)
	case block.Type == privateBlock && kind == publicBlock:
		clear(block.Bytes)
		return nil, fmt.Errorf("%s is a private key: keep it secret, and give only the public key to others", path)
	case block.Type == publicBlock && kind == privateBlock:
		return nil, fmt.Errorf("%s %w: name the file of the private key, which has the name without .pub", path,
			errIsPublic)
	case block.Type != kind:
		return nil, fmt.Errorf("%s has a block %q, and not %q", path, block.Type, kind)
	case len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(text, []byte("-----BEGIN ")):
		return nil, fmt.Errorf("%s has more than one key, or other text beside the key", path)
	}
	return block.Bytes, nil
}
