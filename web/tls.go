package web

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"

	"claviger/keystore"
)

// TLS is the TLS configuration of a server. When a file with a certificate changes, Config
// uses the new certificate; the server need not restart.
type TLS struct {
	Config *tls.Config
	close  []func()
}

// FollowCertificate returns a TLS with the certificate that load reads from files. load is called
// again when one of the files has changed; while it fails, the certificate that was loaded
// before stays in use. The caller may set limits of versions and cipher suites in Config
// before the server starts.
func FollowCertificate(files []string, load func() (tls.Certificate, error), log *slog.Logger) (*TLS, error) {
	r, err := keystore.NewReloader(files, load, keystore.ReloadInterval, log)
	if err != nil {
		return nil, err
	}
	return &TLS{
		Config: &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
			GetCertificate: keystore.GetCertificate(r)},
		close: []func(){r.Close},
	}, nil
}

// RequireClientCertificates makes the server require a certificate of each client, which one
// of the roots must have signed. load reads the roots from files, and is called again when
// one of the files has changed. RequireClientCertificates must be called before the server
// starts.
func (t *TLS) RequireClientCertificates(files []string, load func() (*x509.CertPool, error), log *slog.Logger) error {
	r, err := keystore.NewReloader(files, load, keystore.ReloadInterval, log)
	if err != nil {
		return err
	}
	t.close = append(t.close, r.Close)
	conf := t.Config
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	conf.ClientCAs = r.Get()
	// crypto/tls keeps the session ticket keys of conf, see tls.Config.GetConfigForClient.
	conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := conf.Clone()
		now.ClientCAs = r.Get()
		return now, nil
	}
	return nil
}

// Close stops following the files. Config can be used afterwards.
func (t *TLS) Close() {
	for _, f := range t.close {
		f()
	}
}

// Certificate returns the certificate that the server shows to clients now.
func (t *TLS) Certificate() (*x509.Certificate, error) {
	cert, err := t.Config.GetCertificate(nil)
	if err != nil {
		return nil, err
	}
	return Leaf(cert)
}

// Leaf returns the first certificate of a chain.
func Leaf(c *tls.Certificate) (*x509.Certificate, error) {
	if c.Leaf != nil {
		return c.Leaf, nil
	}
	if len(c.Certificate) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return x509.ParseCertificate(c.Certificate[0])
}
