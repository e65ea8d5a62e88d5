package web

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"time"

	"claviger/keystore"
)

// TLS is the TLS configuration of a server. When a file with a certificate changes, Config
// uses the new certificate; the server need not restart.
type TLS struct {
	Config      *tls.Config
	certificate *keystore.Reloader[tls.Certificate]
	roots       *keystore.Reloader[*x509.CertPool] // of client certificates; nil: none are required
	tickets     tickets
	close       []func()
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
	t := &TLS{certificate: r, close: []func(){r.Close}}
	t.Config = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: keystore.GetCertificate(r), GetConfigForClient: t.forClient}
	return t, nil
}

// forClient returns the configuration of one connection. The certificate, the roots and the ticket of a connection are
// those of one moment, even if files change during the handshake.
func (t *TLS) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	now := t.Config.Clone()
	now.GetConfigForClient = nil
	if t.roots != nil {
		now.ClientCAs = t.roots.Get()
	}
	certificate := t.certificate.Get()
	now.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }
	m := &ticketMaker{tickets: &t.tickets, shows: sha256.Sum256(certificate.Certificate[0]), now: now.Time}
	if m.now == nil {
		m.now = time.Now
	}
	now.WrapSession, now.UnwrapSession = m.wrap, m.unwrap
	return now, nil
}

// ShareTickets makes a ticket of TLS 1.3 valid at each server that has the same secrets and the same certificate. A
// ticket becomes invalid when its secret does. ShareTickets may be called while the server runs.
func (t *TLS) ShareTickets(secrets Secrets) { t.tickets.shared.Store(&sharedTickets{secrets: secrets}) }

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
	t.roots = r
	t.Config.ClientAuth = tls.RequireAndVerifyClientCert
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
