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
)

// certificateLife is how long a certificate that CreateCertificate makes is good.
// Trustees have its very file, so there is nobody who could renew it for them.
const certificateLife = 10 * 365 * 24 * time.Hour

// Files that CreateCertificate makes: the certificate, to be given to trustees,
// and its private key.
const (
	CertificateFile = "server.crt"
	PrivateKeyFile  = "server.key"
)

// CreateCertificate makes a key and a self-signed certificate, good for hosts
// (names and addresses), in a folder. Neither file is overwritten. The key gets its name
// last: what was cut off before that is made anew.
func CreateCertificate(dir string, hosts []string) error {
	certPEM, keyPEM, err := keystore.SelfSigned("claviger Key HSM", hosts, certificateLife)
	if err != nil {
		return err
	}
	defer clear(keyPEM)
	key, cert := filepath.Join(dir, PrivateKeyFile), filepath.Join(dir, CertificateFile)
	fresh := key + ".new"
	if there(key) {
		return &durable.AlreadyError{Path: key}
	}
	write := durable.Create
	if there(fresh) { // its certificate was never used
		write = durable.Replace
	} else if there(cert) {
		return &durable.AlreadyError{Path: cert}
	}
	if err := durable.Replace(fresh, keyPEM, 0o600); err != nil {
		return err
	}
	if err := write(cert, certPEM, 0o644); err != nil {
		return err
	}
	return durable.Rename(fresh, key)
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// HasCertificate tells whether a setup that was killed before it wrote the settings has
// made both files, which are used then. The error says that they are not good for one of
// the hosts.
func HasCertificate(dir string, hosts []string) (bool, error) {
	key, cert := filepath.Join(dir, PrivateKeyFile), filepath.Join(dir, CertificateFile)
	if there(filepath.Join(dir, SettingsFile)) || !there(key) || !there(cert) {
		return false, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return false, nil //nolint:nilerr // CreateCertificate refuses what is there
	}
	made, err := leaf(&pair)
	if err != nil {
		return false, err
	}
	for _, host := range hosts {
		if err := made.VerifyHostname(host); err != nil {
			return false, fmt.Errorf("%s is there, of a setup that was broken off, and is not good for %s (%w): remove it "+
				"and %s, and call this again", cert, host, err, key)
		}
	}
	return true, nil
}

// Identity reads the server's certificate, and whom it trusts.
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

func privateKeyFile(path string) secret.File { return secret.File{Path: path, What: "private key"} }

// SecretFiles are the files of a folder's settings that others must not read or change.
func (s *Settings) SecretFiles(dir string) []secret.File {
	return []secret.File{pkcs11.SettingsFile("", filepath.Join(dir, SettingsFile)), pkcs11.PINFile(s.PINFile), privateKeyFile(s.PrivateKey)}
}

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
	leaf, err := leaf(&cert)
	if err != nil {
		return nil, err
	}
	if err := inTime(leaf, time.Now()); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Certificate, err)
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		return nil, fmt.Errorf("certificate %s is good for no host: it has no subject alternative name", s.Certificate)
	}
	return &cert, nil
}

// Admin makes a client for the administrator of the server of these settings,
// at the address that it listens at: it shows the server's own certificate, and
// takes no other for the server's.
func (s *Settings) Admin(url string) (*Client, error) {
	cert, err := s.certificate()
	if err != nil {
		return nil, err
	}
	leaf, err := leaf(cert)
	if err != nil {
		return nil, err
	}
	c := ClientConfig{URL: url, Certificate: func() (*tls.Certificate, error) { return cert, nil }, Servers: x509.NewCertPool(), MaxConnections: 1}
	c.Servers.AddCert(leaf)
	// It listens where it is told, not where its certificate is good for.
	switch {
	case len(leaf.DNSNames) > 0:
		c.ServerName = strings.Replace(leaf.DNSNames[0], "*", "keyhsm", 1) // a name that a wildcard stands for
	case len(leaf.IPAddresses) > 0:
		c.ServerName = leaf.IPAddresses[0].String()
	}
	return NewClient(c)
}
