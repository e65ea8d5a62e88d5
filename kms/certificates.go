package kms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger/keystore"
	"claviger/tlskey"
	"claviger/web"
)

// Validity is the time in which all certificates of a TLS store are valid.
type Validity struct {
	Store     string // the property that names the store
	Subject   string // of the certificate that expires first
	NotBefore time.Time
	NotAfter  time.Time
}

// validityOf returns the validity of a chain. It has at least one certificate.
func validityOf(store string, certs []*x509.Certificate) Validity {
	first := slices.MinFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	last := slices.MaxFunc(certs, func(a, b *x509.Certificate) int { return a.NotBefore.Compare(b.NotBefore) })
	return Validity{store, first.Subject.String(), last.NotBefore, first.NotAfter}
}

// fault returns an error if the certificates have expired, are not valid yet, or expire soon.
func (v Validity) fault() error {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch now := time.Now(); {
	case now.After(v.NotAfter):
		return fmt.Errorf("the certificate of %s expired at %s", v.Subject, at(v.NotAfter))
	case now.Before(v.NotBefore):
		return fmt.Errorf("the certificate of %s is not valid before %s", v.Subject, at(v.NotBefore))
	case v.NotAfter.Sub(now) < web.ExpiryNotice:
		return fmt.Errorf("the certificate of %s expires at %s", v.Subject, at(v.NotAfter))
	}
	return nil
}

// checkTime returns an error if clients refuse a certificate now because of its
// validity.
func checkTime(c tls.Certificate) error {
	v, err := servedValidity("", []tls.Certificate{c})
	if err == nil && (time.Now().After(v.NotAfter) || time.Now().Before(v.NotBefore)) {
		return v.fault()
	}
	return nil
}

const serverKeystore = "ssl.server.keystore."

// servedValidity returns the validity of the certificates that a server presents to
// its clients. store is the property that names their file.
func servedValidity(store string, list []tls.Certificate) (Validity, error) {
	var certs []*x509.Certificate
	for _, c := range list {
		chain, err := parseChain(c)
		if err != nil {
			return Validity{}, err
		}
		certs = append(certs, chain...)
	}
	if len(certs) == 0 {
		return Validity{}, errors.New("there is no certificate")
	}
	return validityOf(store, certs), nil
}

// parseChain parses the chain of a certificate.
func parseChain(c tls.Certificate) (chain []*x509.Certificate, err error) {
	for _, der := range c.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// storeFiles reads the files of the TLS stores. unreadable has an error for each
// store that cannot be used.
func (s *Service) storeFiles() (list []Validity, unreadable []error, err error) {
	server, err := sslStores(s.Conf, s.Log, "hadoop.ssl.server.conf", "ssl-server.xml")
	if err != nil {
		return nil, nil, err
	}
	client, err := sslStores(s.Conf, s.Log, "hadoop.ssl.client.conf", "ssl-client.xml")
	if err != nil {
		return nil, nil, err
	}
	add := func(name string, certs []*x509.Certificate, err error) {
		if err != nil {
			unreadable = append(unreadable, fmt.Errorf("%s: %w; the store that was loaded before stays in use, and "+
				"the next start fails", name, err))
			return
		}
		list = append(list, validityOf(name, certs))
	}
	addFile := func(name string, f keystore.TLSFile, err error) {
		var certs []*x509.Certificate
		if err == nil {
			certs, err = f.Certificates()
		}
		if err == nil && strings.HasPrefix(name, serverKeystore) {
			_, err = f.Certificate() // with its private key
		}
		add(name, certs, err)
	}
	cfg, inHSM, err := tlsKeyConfig(s.Conf)
	if err != nil {
		return nil, nil, err
	}
	if inHSM {
		certs, err := certificatesOf(cfg.Certificates)
		add(tlsCertificateProperty, certs, err)
	}
	for _, store := range []struct {
		files  stores
		prefix string
	}{{server, serverKeystore}, {server, "ssl.server.truststore."}, {client, "ssl.client.keystore."}} {
		if inHSM && store.prefix == serverKeystore {
			continue // it is not used
		}
		if f, ok, err := store.files.file(store.prefix); ok {
			addFile(store.prefix+"location", f, err)
		}
	}
	if f, setting, err := client.clientTrust(); setting != "" {
		addFile(strings.TrimPrefix(setting, "property "), f, err)
	}
	return list, unreadable, nil
}

// certificatesOf returns the certificates of all chains of a PEM file.
func certificatesOf(path string) (certs []*x509.Certificate, err error) {
	chains, err := keystore.Chains(path)
	for _, chain := range chains {
		certs = append(certs, chain...)
	}
	return certs, err
}

// certificateCheck reads the stores at most once a minute: anybody may request the
// result, and the key derivation from a store's password is slow.
type certificateCheck struct {
	// served returns the certificates that clients get; nil without TLS.
	served func() []tls.Certificate
	keys   *tlskey.Keys // nil: the private keys of these certificates are in a file

	mu         sync.Mutex
	at         time.Time
	list       []Validity
	unreadable []error
	err        error
}

// certificates returns the validities of the stores. For the server's keystore it is
// that of the certificates that clients get now. The files of the other stores were
// read at most a minute ago.
func (s *Service) certificates() (list []Validity, unreadable []error, err error) {
	c := &s.certificateCheck
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) >= time.Minute {
		c.list, c.unreadable, c.err = s.storeFiles()
		c.at = time.Now()
	}
	list = slices.Clone(c.list)
	if c.served != nil {
		store := serverKeystore + "location"
		if c.keys != nil {
			store = tlsCertificateProperty
		}
		v, err := servedValidity(store, c.served())
		if err != nil {
			return nil, nil, err
		}
		list = slices.DeleteFunc(list, func(o Validity) bool { return o.Store == v.Store })
		list = append(list, v)
	}
	return list, c.unreadable, c.err
}

// checkCertificates returns an error if a certificate is not valid now or expires soon,
// or if the next start could not use a file.
func (s *Service) checkCertificates(context.Context) error {
	list, errs, err := s.certificates()
	errs = append(slices.Clone(errs), err)
	if keys := s.certificateCheck.keys; keys != nil {
		if err := keys.Refused(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w; the certificates that were loaded before stay in use, and "+
				"the next start fails", tlsCertificateProperty, err))
		}
	}
	for _, v := range list {
		if fault := v.fault(); fault != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v.Store, fault))
		}
	}
	return errors.Join(errs...)
}
