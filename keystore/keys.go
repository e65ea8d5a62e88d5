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
	var s selection
	for i, e := range entries {
		c, err := e.load()
		if i == 0 && err != nil {
			return nil, nil, f.explain(format, err)
		}
		if err != nil {
			s.doubts = append(s.doubts, fmt.Sprintf("%s of %s cannot be read: %v", e.name, f.Path, err))
			continue
		}
		s.add(c, e.name+" of "+f.Path)
	}
	return s.list(), s.doubts, nil
}

// Select chooses from certificates what a server shows to its clients, as ServerCertificates does. name names a
// certificate in doubts.
func Select(all []tls.Certificate, name func(*x509.Certificate) string) (list []tls.Certificate, doubts []string) {
	var s selection
	for _, c := range all {
		s.add(c, name(c.Leaf))
	}
	return s.list(), s.doubts
}

// selection are the certificates of a server.
type selection struct {
	of     []tls.Certificate
	doubts []string
}

// add adds a certificate, unless the server does not use it.
func (s *selection) add(c tls.Certificate, name string) {
	if slices.ContainsFunc(s.of, func(o tls.Certificate) bool {
		return o.Leaf.PublicKeyAlgorithm == c.Leaf.PublicKeyAlgorithm
	}) {
		return // as in Java, the first one of its kind is used
	}
	if len(s.of) > 0 {
		if lacked, lacks := lacks(c.Leaf, s.of[0].Leaf); lacks {
			s.doubts = append(s.doubts, fmt.Sprintf("%s is not valid for %s, as the first certificate is", name,
				lacked))
			return
		}
	}
	s.of = append(s.of, c)
}

// list returns the certificates in their order.
func (s *selection) list() []tls.Certificate {
	slices.SortStableFunc(s.of, func(a, b tls.Certificate) int { return cmp.Compare(cost(a.Leaf), cost(b.Leaf)) })
	return s.of
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

// chainOf returns a certificate, and after it those of its authorities that are in the list.
func chainOf(leaf *x509.Certificate, certs []*x509.Certificate) []*x509.Certificate {
	chain := []*x509.Certificate{leaf}
	for at := leaf; !bytes.Equal(at.RawIssuer, at.RawSubject) && len(chain) < len(certs); {
		i := slices.IndexFunc(certs, func(parent *x509.Certificate) bool { return issued(parent, at) })
		if i < 0 {
			break
		}
		at = certs[i]
		chain = append(chain, at)
	}
	return chain
}

// issued reports whether the authority parent has signed a certificate.
func issued(parent, c *x509.Certificate) bool {
	return bytes.Equal(parent.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(parent) == nil
}

// Chains reads the certificates of a PEM file, which may be in any order. Each certificate that has issued no other one
// of the file is the first of a chain. The certificates of its authorities follow it.
func Chains(path string) (chains [][]*x509.Certificate, err error) {
	data, err := readTLSFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate: %w", path, err)
		}
		if !slices.ContainsFunc(certs, c.Equal) {
			certs = append(certs, c)
		}
	}
	for _, c := range certs {
		if !slices.ContainsFunc(certs, func(o *x509.Certificate) bool { return !o.Equal(c) && issued(c, o) }) {
			chains = append(chains, chainOf(c, certs))
		}
	}
	if len(chains) == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM", path)
	}
	return chains, nil
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
		for _, authority := range chainOf(leaf, certs)[1:] {
			c.Certificate = append(c.Certificate, authority.Raw)
		}
		return c, nil
	}
	return tls.Certificate{}, fmt.Errorf("no certificate of the file belongs to it: %w", err)
}
