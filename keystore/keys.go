package keystore

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"software.sslmate.com/src/go-pkcs12"
)

// keyEntry is a private key of a file, with its certificate chain.
type keyEntry struct {
	name string // the alias, or the place in a PEM file
	load func() (tls.Certificate, error)
}

// keyEntries finds the private keys of the file: at least one, in the order of their aliases, or of a PEM file.
func (f TLSFile) keyEntries() (format Format, entries []keyEntry, err error) {
	data, format, err := f.open()
	if err != nil {
		return "", nil, err
	}
	switch format {
	case JKSFormat:
		entries, err = f.jksKeys(data)
	case JCEKSFormat:
		entries, err = f.jceksKeys(data)
	case PKCS12Format:
		entries, err = f.pkcs12Keys(data)
	case PEMFormat:
		entries, err = f.pemKeys(data)
	}
	if err == nil && len(entries) == 0 {
		err = errNoKey
	}
	if err != nil {
		return format, nil, f.explain(format, err)
	}
	return format, entries, nil
}

// ServerCertificates loads the certificates that a server shows to its clients: the certificate of Certificate, and,
// for clients that support it, the first certificate with another kind of key that is valid for the same names. The
// certificate with the cheapest signature comes first, and the certificate that most clients support comes last. doubts
// says why other private keys of the file are not used.
func (f TLSFile) ServerCertificates() (list []tls.Certificate, doubts []string, err error) {
	format, entries, err := f.keyEntries()
	if err != nil {
		return nil, nil, err
	}
	for i, e := range entries {
		c, err := e.load()
		if i == 0 && err != nil {
			return nil, nil, f.explain(format, err)
		}
		if err != nil {
			doubts = append(doubts, fmt.Sprintf("%s of %s cannot be read: %v", e.name, f.Path, err))
			continue
		}
		if slices.ContainsFunc(list, func(o tls.Certificate) bool {
			return o.Leaf.PublicKeyAlgorithm == c.Leaf.PublicKeyAlgorithm
		}) {
			continue // as in Java, the first one of its kind is used
		}
		if i > 0 {
			if name, lacks := lacks(c.Leaf, list[0].Leaf); lacks {
				doubts = append(doubts, fmt.Sprintf("%s of %s is not valid for %s, as the first certificate is", e.name,
					f.Path, name))
				continue
			}
		}
		list = append(list, c)
	}
	slices.SortStableFunc(list, func(a, b tls.Certificate) int { return cmp.Compare(cost(a.Leaf), cost(b.Leaf)) })
	return list, doubts, nil
}

// cost orders kinds of keys: first by the time of a signature, then by the number of clients that support them.
func cost(c *x509.Certificate) int {
	switch c.PublicKeyAlgorithm {
	case x509.ECDSA:
		return 0
	case x509.RSA:
		return 2
	default:
		return 1
	}
}

// lacks returns a name for which first is valid and c is not, or the use by a server if c is not for servers.
func lacks(c, first *x509.Certificate) (name string, lacks bool) {
	uses := func(c *x509.Certificate, use x509.ExtKeyUsage) bool { return slices.Contains(c.ExtKeyUsage, use) }
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !uses(c, x509.ExtKeyUsageServerAuth) &&
		!uses(c, x509.ExtKeyUsageAny) {
		return "servers (serverAuth)", true
	}
	for _, name := range first.DNSNames {
		if !slices.Contains(c.DNSNames, name) && c.VerifyHostname(name) != nil { // Contains is for wildcards
			return name, true
		}
	}
	for _, ip := range first.IPAddresses {
		if c.VerifyHostname(ip.String()) != nil {
			return ip.String(), true
		}
	}
	return "", false
}

func (f TLSFile) jksKeys(data []byte) (entries []keyEntry, err error) {
	ks, err := f.loadJKS(data)
	if err != nil {
		return nil, err
	}
	for _, alias := range ks.Aliases() {
		if !ks.IsPrivateKeyEntry(alias) {
			continue
		}
		entries = append(entries, keyEntry{alias, func() (tls.Certificate, error) {
			e, err := ks.GetPrivateKeyEntry(alias, f.keyPassword())
			if err != nil {
				// Replace the error: the library's text says only "digest".
				return tls.Certificate{}, fmt.Errorf("entry %q: %w", alias, ErrPassword)
			}
			key, err := x509.ParsePKCS8PrivateKey(e.PrivateKey)
			if err != nil {
				return tls.Certificate{}, fmt.Errorf("entry %q: %w", alias, err)
			}
			var chain [][]byte
			for _, c := range e.CertificateChain {
				chain = append(chain, c.Content)
			}
			return certificate(key, chain)
		}})
	}
	return entries, nil
}

func (f TLSFile) jceksKeys(data []byte) (entries []keyEntry, err error) {
	ks, err := ParseJCEKS(data, f.Password)
	if err != nil {
		return nil, err
	}
	for _, alias := range ks.Aliases() {
		e := ks.Entry(alias)
		if e.Kind != PrivateKeyEntry {
			continue
		}
		entries = append(entries, keyEntry{alias, func() (tls.Certificate, error) {
			pkcs8, chain, err := e.PrivateKey(f.keyPassword())
			if err != nil {
				return tls.Certificate{}, err
			}
			defer pkcs8.Wipe()
			key, err := x509.ParsePKCS8PrivateKey(pkcs8)
			if err != nil {
				return tls.Certificate{}, fmt.Errorf("entry %q: %w", alias, err)
			}
			return certificate(key, chain)
		}})
	}
	return entries, nil
}

func (f TLSFile) pkcs12Keys(data []byte) (entries []keyEntry, err error) {
	key, leaf, ca, err := pkcs12.DecodeChain(data, string(f.Password))
	if err != nil {
		if !strings.Contains(err.Error(), "exactly one key bag") {
			return nil, err
		}
		return f.pkcs12SeveralKeys(data)
	}
	chain := [][]byte{leaf.Raw}
	for _, c := range ca {
		chain = append(chain, c.Raw)
	}
	return []keyEntry{{"the key", func() (tls.Certificate, error) { return certificate(key, chain) }}}, nil
}

// pkcs12SeveralKeys finds the keys of a file that has more than one.
func (f TLSFile) pkcs12SeveralKeys(data []byte) ([]keyEntry, error) {
	//nolint:staticcheck // DecodeChain refuses two keys; tls.X509KeyPair reads keys in the forms that ToPEM makes
	blocks, err := pkcs12.ToPEM(data, string(f.Password))
	if err != nil {
		return nil, fmt.Errorf("the file has several private keys, and one part of it is not known: %w", err)
	}
	const alias = "friendlyName"
	keys := slices.DeleteFunc(slices.Clone(blocks), func(b *pem.Block) bool { return b.Type == "CERTIFICATE" })
	slices.SortStableFunc(keys, func(a, b *pem.Block) int {
		return strings.Compare(a.Headers[alias], b.Headers[alias])
	})
	return matched(blocks, keys, func(i int) string { return keys[i].Headers[alias] })
}

func (f TLSFile) pemKeys(data []byte) ([]keyEntry, error) {
	keyData := data
	if f.KeyPath != "" {
		var err error
		if keyData, err = readTLSFile(f.KeyPath); err != nil {
			return nil, err
		}
	}
	var keys, blocks []*pem.Block
	for block, rest := pem.Decode(keyData); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the private key is encrypted, which is not supported in PEM files: " +
				"put it into a PKCS#12 file (openssl pkcs12 -export), or unencrypted into a file that only the " +
				"server's user can read")
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			keys = append(keys, block)
		}
	}
	if len(keys) < 2 {
		return []keyEntry{{"the key", func() (tls.Certificate, error) { return tls.X509KeyPair(data, keyData) }}}, nil
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks = append(blocks, block)
	}
	return matched(blocks, keys, func(i int) string { return fmt.Sprintf("private key %d", i+1) })
}

// matched returns each key with its certificates, which may be in any order in blocks.
func matched(blocks, keys []*pem.Block, name func(int) string) (entries []keyEntry, err error) {
	var certs []*x509.Certificate
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		certs = append(certs, c)
	}
	for i, key := range keys {
		entries = append(entries, keyEntry{name(i), func() (tls.Certificate, error) { return match(key, certs) }})
	}
	return entries, nil
}

// match finds the certificate of a key, and the certificates of its authorities.
func match(key *pem.Block, certs []*x509.Certificate) (c tls.Certificate, err error) {
	private := pem.EncodeToMemory(&pem.Block{Type: key.Type, Bytes: key.Bytes})
	defer clear(private)
	err = errNoKey
	for _, leaf := range certs {
		public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
		if c, err = tls.X509KeyPair(public, private); err != nil {
			continue
		}
		for at := leaf; !bytes.Equal(at.RawIssuer, at.RawSubject) && len(c.Certificate) < len(certs); {
			i := slices.IndexFunc(certs, func(parent *x509.Certificate) bool {
				return bytes.Equal(parent.RawSubject, at.RawIssuer) && at.CheckSignatureFrom(parent) == nil
			})
			if i < 0 {
				break
			}
			at = certs[i]
			c.Certificate = append(c.Certificate, at.Raw)
		}
		return c, nil
	}
	return tls.Certificate{}, fmt.Errorf("no certificate of the file belongs to it: %w", err)
}
