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
	"claviger/web"
)

// validity is from when to when all certificates of a TLS store are good.
type validity struct {
	Store     string // the property that names it
	Subject   string // of the certificate that ends first
	NotBefore time.Time
	NotAfter  time.Time
}

// validityOf is that of a chain with at least one certificate.
func validityOf(store string, certs []*x509.Certificate) validity {
	first := slices.MinFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	last := slices.MaxFunc(certs, func(a, b *x509.Certificate) int { return a.NotBefore.Compare(b.NotBefore) })
	return validity{store, first.Subject.String(), last.NotBefore, first.NotAfter}
}

// fault says what is wrong with the time of it.
func (v validity) fault() error {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch now := time.Now(); {
	case now.After(v.NotAfter):
		return fmt.Errorf("the certificate of %s has ended at %s", v.Subject, at(v.NotAfter))
	case now.Before(v.NotBefore):
		return fmt.Errorf("the certificate of %s is not valid before %s", v.Subject, at(v.NotBefore))
	case v.NotAfter.Sub(now) < web.ExpiryNotice:
		return fmt.Errorf("the certificate of %s ends at %s", v.Subject, at(v.NotAfter))
	}
	return nil
}

// untimely is an error where clients refuse a certificate for its time.
func untimely(c tls.Certificate) error {
	v, err := servedValidity(&c)
	if err == nil && (time.Now().After(v.NotAfter) || time.Now().Before(v.NotBefore)) {
		return v.fault()
	}
	return nil
}

const serverKeystore = "ssl.server.keystore."

// servedValidity is that of what a server shows its clients.
func servedValidity(c *tls.Certificate) (validity, error) {
	var certs []*x509.Certificate
	for _, der := range c.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return validity{}, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return validity{}, errors.New("there is no certificate")
	}
	return validityOf(serverKeystore+"location", certs), nil
}

// storeFiles looks at the files of the TLS stores, each of which is in unreadable where
// it cannot be used.
func (s *Service) storeFiles() (list []validity, unreadable []error, err error) {
	server, err := sslStores(s.Conf, s.Log, "hadoop.ssl.server.conf", "ssl-server.xml")
	if err != nil {
		return nil, nil, err
	}
	client, err := sslStores(s.Conf, s.Log, "hadoop.ssl.client.conf", "ssl-client.xml")
	if err != nil {
		return nil, nil, err
	}
	add := func(name string, f keystore.TLSFile, err error) {
		var certs []*x509.Certificate
		if err == nil {
			certs, err = f.Certificates()
		}
		if err == nil && strings.HasPrefix(name, serverKeystore) {
			_, err = f.Certificate() // with its private key
		}
		if err != nil {
			unreadable = append(unreadable, fmt.Errorf("%s: %w; what was loaded before stays in use, and the next "+
				"start fails", name, err))
			return
		}
		list = append(list, validityOf(name, certs))
	}
	for _, store := range []struct {
		of     stores
		prefix string
	}{{server, serverKeystore}, {server, "ssl.server.truststore."}, {client, "ssl.client.keystore."}} {
		if f, ok, err := store.of.file(store.prefix); ok {
			add(store.prefix+"location", f, err)
		}
	}
	if f, setting, err := client.clientTrust(); setting != "" {
		add(strings.TrimPrefix(setting, "property "), f, err)
	}
	return list, unreadable, nil
}

// certificateCheck looks at the stores once a minute at most: opening one costs
// what its password's protection costs, and anybody may ask for what it tells.
type certificateCheck struct {
	// served is what clients are shown; nil: none is.
	served func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	mu         sync.Mutex
	at         time.Time
	list       []validity
	unreadable []error
	err        error
}

// certificates are the validities of the stores: of the server's what it shows clients
// now, of the others as their files were a minute ago at most.
func (s *Service) certificates() (list []validity, unreadable []error, err error) {
	c := &s.certificateCheck
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) >= time.Minute {
		c.list, c.unreadable, c.err = s.storeFiles()
		c.at = time.Now()
	}
	list = slices.Clone(c.list)
	if c.served != nil {
		cert, err := c.served(nil)
		if err != nil {
			return nil, nil, err
		}
		v, err := servedValidity(cert)
		if err != nil {
			return nil, nil, err
		}
		list = slices.DeleteFunc(list, func(of validity) bool { return of.Store == v.Store })
		list = append(list, v)
	}
	return list, c.unreadable, c.err
}

// checkCertificates fails where a certificate is of no use now, or will soon be, and where
// the next start could not use a file.
func (s *Service) checkCertificates(context.Context) error {
	list, errs, err := s.certificates()
	errs = append(slices.Clone(errs), err)
	for _, v := range list {
		if fault := v.fault(); fault != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v.Store, fault))
		}
	}
	return errors.Join(errs...)
}
