package keystore

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Protocols converts hadoop.ssl.enabled.protocols to a range of TLS versions. It drops versions before TLS 1.2, and
// returns their names in unsafe. It returns an error for an unknown name, or if no version is left.
func Protocols(names []string) (lowest, highest uint16, unsafe []string, err error) {
	var versions []uint16
	for _, name := range names {
		switch strings.ToLower(name) {
		case "tlsv1.2":
			versions = append(versions, tls.VersionTLS12)
		case "tlsv1.3":
			versions = append(versions, tls.VersionTLS13)
		case "sslv2hello", "sslv3", "tlsv1", "tlsv1.0", "tlsv1.1":
			unsafe = append(unsafe, name)
		default:
			return 0, 0, nil, fmt.Errorf("%q is not a known protocol; the known ones are TLSv1.2 and TLSv1.3", name)
		}
	}
	if len(versions) == 0 {
		return 0, 0, unsafe, errors.New("it must name TLSv1.2 or TLSv1.3: older ones are not safe and not supported")
	}
	return slices.Min(versions), slices.Max(versions), unsafe, nil
}

// Suites returns the safe cipher suites of TLS 1.2 (ephemeral keys, authenticated encryption), without the suites of
// ssl.server.exclude.cipher.list. As for Jetty, an entry of that list is a Java name or a regular expression for Java
// names. The suites of TLS 1.3 are all safe and cannot be excluded; fixed has the names of those that an entry matches.
func Suites(exclude []string) (suites []uint16, fixed []string, err error) {
	var patterns []*regexp.Regexp
	for _, e := range exclude {
		p, err := regexp.Compile("^(?:" + e + ")$")
		if err != nil {
			return nil, nil, fmt.Errorf("%q is neither a cipher suite nor a regular expression: %w", e, err)
		}
		patterns = append(patterns, p)
	}
	for _, s := range tls.CipherSuites() {
		excluded := slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(s.Name) })
		switch {
		case slices.Contains(s.SupportedVersions, tls.VersionTLS13):
			if excluded {
				fixed = append(fixed, s.Name)
			}
		case excluded || !strings.HasPrefix(s.Name, "TLS_ECDHE_") || strings.Contains(s.Name, "_CBC_"):
		default:
			suites = append(suites, s.ID)
		}
	}
	if len(suites) == 0 {
		return nil, fixed, errors.New("it excludes all cipher suites of TLS 1.2")
	}
	return suites, fixed, nil
}

// Certificates returns all certificates of a store, so that their expiry can be checked (NotAfter): the chains of
// ServerCertificates if it has a private key, and otherwise its trusted certificates.
func (f TLSFile) Certificates() ([]*x509.Certificate, error) {
	data, format, err := f.open()
	if err != nil {
		return nil, err
	}
	if list, _, err := f.ServerCertificates(); err == nil {
		var certs []*x509.Certificate
		for _, c := range list {
			for _, der := range c.Certificate {
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					return nil, f.explain(format, err)
				}
				certs = append(certs, cert)
			}
		}
		return certs, nil
	}
	return f.roots(data, format)
}

// roots returns the certificates that a store trusts.
func (f TLSFile) roots(data []byte, format Format) (list []*x509.Certificate, err error) {
	var certs [][]byte
	switch format {
	case JKSFormat:
		certs, err = f.jksRoots(data)
	case JCEKSFormat:
		certs, err = f.jceksRoots(data)
	case PKCS12Format:
		certs, err = f.pkcs12Roots(data)
	case PEMFormat:
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" {
				certs = append(certs, block.Bytes)
			}
		}
	}
	if err == nil && len(certs) == 0 {
		err = errors.New("the file has no trusted certificate")
	}
	if err != nil {
		return nil, f.explain(format, err)
	}
	for _, der := range certs {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, f.explain(format, fmt.Errorf("certificate: %w", err))
		}
		list = append(list, c)
	}
	return list, nil
}
