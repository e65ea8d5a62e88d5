package keyhsm

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"claviger/durable"
	"claviger/keystore"
	"claviger/pkcs11"
	"claviger/secret"
	"claviger/web"
)

// certificateLife is the lifetime of a certificate that CreateCertificate makes. It is long,
// since a new certificate must be copied to each trustee.
const certificateLife = 10 * 365 * 24 * time.Hour

// Files that CreateCertificate makes: the certificate, which trustees need, and its private
// key.
const (
	CertificateFile = "server.crt"
	PrivateKeyFile  = "server.key"
)

// CreateCertificate makes a key and a self-signed certificate for hosts (names and addresses)
// in a folder. It overwrites neither file. The key gets its name last, so a call after an
// interrupted one makes both again.
func CreateCertificate(dir string, hosts []string) error {
	certPEM, keyPEM, err := keystore.SelfSigned("claviger Key HSM", hosts, certificateLife)
	if err != nil {
		return err
	}
	defer clear(keyPEM)
	key, cert := filepath.Join(dir, PrivateKeyFile), filepath.Join(dir, CertificateFile)
	newKey := key + ".new"
	if exists(key) {
		return &durable.AlreadyError{Path: key}
	}
	write := durable.Create
	if exists(newKey) { // an interrupted call left it, and its certificate was never used
		write = durable.Replace
	} else if exists(cert) {
		return &durable.AlreadyError{Path: cert}
	}
	if err := durable.Replace(newKey, keyPEM, 0o600); err != nil {
		return err
	}
	if err := write(cert, certPEM, 0o644); err != nil {
		return err
	}
	return durable.Rename(newKey, key)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// HasCertificate returns whether an interrupted setup has made both files but no settings; the
// next setup uses them. It is an error if the certificate is not valid for one of the hosts.
func HasCertificate(dir string, hosts []string) (bool, error) {
	key, cert := filepath.Join(dir, PrivateKeyFile), filepath.Join(dir, CertificateFile)
	if exists(filepath.Join(dir, SettingsFile)) || !exists(key) || !exists(cert) {
		return false, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return false, nil //nolint:nilerr // CreateCertificate refuses to overwrite the files
	}
	made, err := web.Leaf(&pair)
	if err != nil {
		return false, err
	}
	for _, host := range hosts {
		if err := made.VerifyHostname(host); err != nil {
			return false, fmt.Errorf("an interrupted setup has made %s, which is not valid for %s (%w): remove it "+
				"and %s, and call this again", cert, host, err, key)
		}
	}
	return true, nil
}

// Identity reads the server's certificate, and those that it trusts.
func (s *Settings) Identity() (*Identity, error) {
	cert, err := s.certificate()
	if err != nil {
		return nil, err
	}
	trust, err := ReadTrust(s.Trust)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", propTrust, err)
	}
	return &Identity{*cert, trust}, nil
}

func privateKeyFile(path string) secret.File { return secret.File{Path: path, Kind: "private key"} }

// SecretFiles are the files that other users must not read or change. dir is the folder of the
// settings.
func (s *Settings) SecretFiles(dir string) []secret.File {
	return []secret.File{pkcs11.SettingsFile("", filepath.Join(dir, SettingsFile)), pkcs11.PINFile(s.PINFile),
		privateKeyFile(s.PrivateKey)}
}

// certificate reads the server's certificate and its private key.
func (s *Settings) certificate() (*tls.Certificate, error) {
	if _, err := os.Stat(s.PrivateKey); err != nil {
		return nil, fmt.Errorf("%s: %w; put the file back, or name another in %s", propPrivateKey, err, SettingsFile)
	}
	if err := privateKeyFile(s.PrivateKey).Refuse(); err != nil {
		return nil, err
	}
	chain, err := readFile(s.Certificate, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; put the file back, or name another in %s", propCertificate, err, SettingsFile)
	}
	key, err := readFile(s.PrivateKey, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", propPrivateKey, err)
	}
	defer clear(key)
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with private key %s: %w", s.Certificate, s.PrivateKey, err)
	}
	leaf, err := web.Leaf(&cert)
	if err != nil {
		return nil, err
	}
	if err := inTime(leaf, time.Now()); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Certificate, err)
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		return nil, fmt.Errorf("certificate %s is valid for no host: it has no subject alternative name", s.Certificate)
	}
	return &cert, nil
}

// Admin makes a client for an administrator of the server with these settings, which listens at
// url. The client shows the server's own certificate, and trusts no other server.
func (s *Settings) Admin(url string) (*Client, error) {
	cert, err := s.certificate()
	if err != nil {
		return nil, err
	}
	leaf, err := web.Leaf(cert)
	if err != nil {
		return nil, err
	}
	c := ClientConfig{URL: url, Certificate: func() (*tls.Certificate, error) { return cert, nil },
		Servers: x509.NewCertPool(), MaxConnections: 1}
	c.Servers.AddCert(leaf)
	// The certificate need not be valid for the address of the server.
	switch {
	case len(leaf.DNSNames) > 0:
		c.ServerName = strings.Replace(leaf.DNSNames[0], "*", "keyhsm", 1) // a name that matches a wildcard
	case len(leaf.IPAddresses) > 0:
		c.ServerName = leaf.IPAddresses[0].String()
	}
	return NewClient(c)
}
