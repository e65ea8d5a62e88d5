package keystore

import (
	"bytes"
	"crypto"
	"crypto/sha1" //nolint:gosec // the format of Java's keystores
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	jks "github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"

	"claviger"
	"claviger/secret"
)

// maxTLSFile is the largest size of a certificate or key file. A trust store of all public CAs is below 1 MiB.
const maxTLSFile = 16 << 20

// TLSFile describes a file with TLS material, as the ssl.server.keystore.* and ssl.server.truststore.* properties
// of ssl-server.xml, and ssl.client.* of ssl-client.xml, do.
type TLSFile struct {
	Path string
	// Type is "jks", "jceks", "pkcs12" or "pem", in upper or lower case; "" means any. If Type and
	// content differ, the content counts, as in Java, whose "jks" also reads PKCS#12.
	Type string
	// Password is the password of the file. PEM files have none.
	Password secret.Bytes
	// TypeProperty and PasswordProperty are the properties that set Type and Password, for messages; "" if none.
	TypeProperty     string
	PasswordProperty string
	// KeyPassword is the password of the private key in the file; empty means Password.
	KeyPassword secret.Bytes
	// KeyPath is a PEM file with the private key, if Path has only certificates.
	KeyPath string
}

// Files returns the files that are read.
func (f TLSFile) Files() []string {
	if f.KeyPath == "" {
		return []string{f.Path}
	}
	return []string{f.Path, f.KeyPath}
}

func readTLSFile(path string) ([]byte, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxTLSFile+1))
	if err == nil && len(data) > maxTLSFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxTLSFile)
	}
	return data, err
}

// open reads the file and recognises its format.
func (f TLSFile) open() ([]byte, Format, error) {
	if f.Path == "" {
		return nil, "", errors.New("no keystore file is named")
	}
	switch t := Format(strings.ToLower(f.Type)); t {
	case "", JKSFormat, JCEKSFormat, PKCS12Format, PEMFormat, "p12", "pfx":
	default:
		if f.TypeProperty != "" {
			return nil, "", &claviger.PropertyError{Name: f.TypeProperty, Value: f.Type,
				Want: "it must be jks, jceks, pkcs12 or pem"}
		}
		return nil, "", fmt.Errorf("keystore %s: type %q is not known; it is one of jks, jceks, pkcs12, pem", f.Path,
			f.Type)
	}
	data, err := readTLSFile(f.Path)
	if err != nil {
		return nil, "", fmt.Errorf("keystore: %w", err)
	}
	format := Sniff(data)
	if format == "" {
		return nil, "", fmt.Errorf("keystore %s: its format is none of jks, jceks, pkcs12, pem", f.Path)
	}
	return data, format, nil
}

// explain adds to an error the file, and what to do.
func (f TLSFile) explain(format Format, err error) error {
	if !errors.Is(err, ErrPassword) && !errors.Is(err, pkcs12.ErrIncorrectPassword) &&
		!errors.Is(err, pkcs12.ErrDecryption) {
		return fmt.Errorf("keystore %s (%s): %w", f.Path, format, err)
	}
	if len(f.Password) == 0 {
		property := f.PasswordProperty
		if property == "" {
			property = "the .password property of this file"
		}
		return fmt.Errorf("keystore %s (%s): no password is set, and the file cannot be read without its password: "+
			"set %s (or a credential of that name in a store of %s)", f.Path, format, property, CredentialPathProperty)
	}
	return fmt.Errorf("keystore %s (%s): %w; check the passwords of the keystore and of its key", f.Path, format,
		ErrPassword)
}

// Certificate loads a private key and its certificate chain. If a file has several keys, Certificate loads the
// key whose alias sorts first. From a PEM file it loads the first key.
func (f TLSFile) Certificate() (tls.Certificate, error) {
	format, entries, err := f.keyEntries()
	if err != nil {
		return tls.Certificate{}, err
	}
	c, err := entries[0].load()
	if err != nil {
		return tls.Certificate{}, f.explain(format, err)
	}
	return c, nil
}

func (f TLSFile) keyPassword() secret.Bytes {
	if len(f.KeyPassword) > 0 {
		return f.KeyPassword
	}
	return f.Password
}

var errNoKey = errors.New("the file has no private key with a certificate")

// certificate joins a key and its chain. It returns an error if the key is not that of the first certificate.
func certificate(key any, chain [][]byte) (tls.Certificate, error) {
	if len(chain) == 0 {
		return tls.Certificate{}, errNoKey
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return tls.Certificate{}, fmt.Errorf("a private key of type %T cannot sign", key)
	}
	if public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return tls.Certificate{}, errors.New("the private key does not belong to the certificate")
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}

func (f TLSFile) loadJKS(data []byte) (jks.KeyStore, error) {
	ks := jks.New(jks.WithOrderedAliases())
	err := ks.Load(bytes.NewReader(data), f.Password)
	if err != nil && strings.Contains(err.Error(), "digest") {
		err = ErrPassword
	}
	return ks, err
}

// Roots loads the certificates that a trust store trusts: its trusted certificates, and, as in Java, the certificates
// of its private keys.
func (f TLSFile) Roots() (*x509.CertPool, error) {
	data, format, err := f.open()
	if err != nil {
		return nil, err
	}
	certs, err := f.roots(data, format)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

// unchecked makes a JKS or JCEKS store readable if no password is given: it replaces the digest at the end by the
// digest for an empty password. Without a password, Java also skips the check and reads the trusted certificates, and
// -Djavax.net.ssl.trustStore is mostly set without a password.
func (f TLSFile) unchecked(data []byte) []byte {
	if len(f.Password) > 0 || len(data) < sha1.Size {
		return data
	}
	body := data[:len(data)-sha1.Size]
	sum := jceksDigest(nil, body)
	return slices.Concat(body, sum[:])
}

func (f TLSFile) jksRoots(data []byte) ([][]byte, error) {
	ks, err := f.loadJKS(f.unchecked(data))
	if err != nil {
		return nil, err
	}
	var certs [][]byte
	for _, alias := range ks.Aliases() {
		if e, err := ks.GetTrustedCertificateEntry(alias); err == nil {
			certs = append(certs, e.Certificate.Content)
		} else if chain, err := ks.GetPrivateKeyEntryCertificateChain(alias); err == nil && len(chain) > 0 {
			certs = append(certs, chain[0].Content)
		}
	}
	return certs, nil
}

func (f TLSFile) jceksRoots(data []byte) ([][]byte, error) {
	ks, err := ParseJCEKS(f.unchecked(data), f.Password)
	if err != nil {
		return nil, err
	}
	var certs [][]byte
	for _, alias := range ks.Aliases() {
		if chain := ks.Entry(alias).chain; len(chain) > 0 {
			certs = append(certs, chain[0])
		}
	}
	return certs, nil
}

func (f TLSFile) pkcs12Roots(data []byte) ([][]byte, error) {
	list, err := pkcs12.DecodeTrustStore(data, string(f.Password))
	if err != nil && !errors.Is(err, pkcs12.ErrIncorrectPassword) {
		// The library does not accept a file with a private key as a trust store.
		if _, leaf, _, errKey := pkcs12.DecodeChain(data, string(f.Password)); errKey == nil {
			return [][]byte{slices.Clone(leaf.Raw)}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	var certs [][]byte
	for _, c := range list {
		certs = append(certs, c.Raw)
	}
	return certs, nil
}
