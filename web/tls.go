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
	Config       *tls.Config
	certificates *keystore.Reloader[[]tls.Certificate]
	roots        *keystore.Reloader[*x509.CertPool] // of client certificates; nil: none are required
	tickets      tickets
	close        []func()
}

// FollowCertificate returns a TLS with the certificates of a server, which load reads from files: one for each kind of
// key, and at least one. A client gets the first one that is valid and that it supports, or else the last one. load is
// called again when one of the files has changed. While it fails, the certificates that were loaded before stay in use.
// The caller may limit versions and cipher suites in Config before the server starts.
func FollowCertificate(files []string, load func() ([]tls.Certificate, error), log *slog.Logger) (*TLS, error) {
	r, err := keystore.NewReloader(files, load, keystore.ReloadInterval, log)
	if err != nil {
		return nil, err
	}
	t := &TLS{certificates: r, close: []func(){r.Close}}
	t.Config = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return choose(hello, r.Get(), time.Now()), nil
		}, GetConfigForClient: t.forClient}
	return t, nil
}

// forClient returns the configuration of one connection. The certificate, the roots and the ticket of a connection are
// those of one moment, even if files change during the handshake.
func (t *TLS) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	conf := t.Config.Clone()
	conf.GetConfigForClient = nil
	if t.roots != nil {
		conf.ClientCAs = t.roots.Get()
	}
	now := conf.Time
	if now == nil {
		now = time.Now
	}
	certificates := t.certificates.Get()
	conf.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return choose(hello, certificates, now()), nil
	}
	hash := sha256.New()
	for _, c := range certificates {
		hash.Write(c.Certificate[0])
	}
	m := &ticketMaker{tickets: &t.tickets, certificates: [sha256.Size]byte(hash.Sum(nil)), now: now}
	conf.WrapSession, conf.UnwrapSession = m.wrap, m.unwrap
	return conf, nil
}

// choose returns the first certificate that is valid now and that the client supports, or else the last one. Without a
// client, it returns the first one.
func choose(hello *tls.ClientHelloInfo, list []tls.Certificate, now time.Time) *tls.Certificate {
	if hello == nil {
		return &list[0]
	}
	anyName := *hello
	anyName.ServerName = "" // all certificates are for the same names, and the client verifies them
	for i := range list[:len(list)-1] {
		c := &list[i]
		if c.Leaf != nil && (now.Before(c.Leaf.NotBefore) || now.After(c.Leaf.NotAfter)) {
			continue
		}
		if anyName.SupportsCertificate(c) == nil {
			return c
		}
	}
	return &list[len(list)-1]
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

// Certificate returns the first certificate that the server shows to clients now.
func (t *TLS) Certificate() (*x509.Certificate, error) { return Leaf(&t.certificates.Get()[0]) }

// Certificates returns the certificates that the server shows to clients now.
func (t *TLS) Certificates() []tls.Certificate { return t.certificates.Get() }

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
