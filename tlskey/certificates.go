package tlskey

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"claviger"
	"claviger/keystore"
)

// Files returns the files that Certificates reads.
func (k *Keys) Files() []string { return []string{k.cfg.Certificates} }

// Certificates reads the certificates, finds the key of each one, and lets it sign. It returns what a server shows to
// its clients, the best first, and why other certificates of the file are not used. It is an error if a certificate for
// a key is missing. While an HSM does not answer, a certificate whose key is not known counts as one with a key.
func (k *Keys) Certificates() (list []tls.Certificate, doubts []string, err error) {
	list, doubts, err = k.certificates()
	if err != nil {
		k.refused.Store(&err)
		return nil, doubts, err
	}
	var served []*Signer
	for _, c := range list {
		if s, ok := c.PrivateKey.(*Signer); ok {
			served = append(served, s)
		}
	}
	k.refused.Store(nil)
	k.served.Store(&served)
	return list, doubts, nil
}

func (k *Keys) certificates() (list []tls.Certificate, doubts []string, err error) {
	chains, err := keystore.Chains(k.cfg.Certificates)
	if err != nil {
		return nil, nil, err
	}
	var with []tls.Certificate // those with a key
	var failures []failure     // of those without a key
	found := map[*key]bool{}
	silent := false // an HSM does not answer
	for _, chain := range chains {
		s := &Signer{keys: k, public: chain[0].PublicKey}
		ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
		key, failed := s.find(ctx)
		cancel()
		switch {
		case key != nil:
			found[key] = true
		case slices.ContainsFunc(failed, failure.unknown):
			silent = true
			k.log.Warn("the HSM does not say whether it has the private key of a certificate; the certificate is used",
				"subject", chain[0].Subject.String(), "err", joined(failed))
		default:
			failures = append(failures, failed...)
			doubts = append(doubts, fmt.Sprintf("no private key of the HSM belongs to the certificate of %s",
				chain[0].Subject))
			continue
		}
		with = append(with, certificate(chain, s))
	}
	for _, key := range k.keys {
		if !silent && !found[key] {
			return nil, nil, k.noCertificate(key, failures)
		}
	}
	list, more := keystore.Select(with, func(c *x509.Certificate) string {
		return "the certificate of " + c.Subject.String()
	})
	if len(list) == 0 {
		return nil, nil, fmt.Errorf("no certificate belongs to a private key of the HSM: %w", joined(failures))
	}
	return list, append(doubts, more...), nil
}

// noCertificate is the error for a key without a certificate. failures are those of the certificates without a key.
func (k *Keys) noCertificate(of *key, failures []failure) error {
	var reasons []string
	for _, f := range failures {
		if f.key == of {
			reasons = append(reasons, claviger.Reason(f.err))
		}
	}
	why := strings.Join(slices.Compact(reasons), "; ")
	if why == "" {
		why = "each certificate belongs to another key"
	}
	return fmt.Errorf("no certificate of the file belongs to the private key with %v of the HSM (%s): request a "+
		"certificate for that key (claviger hsm tls-key), and put it into the file with those of its authorities, or "+
		"name the key of the certificate", of.name, why)
}

// certificate joins a chain and its signer.
func certificate(chain []*x509.Certificate, s *Signer) tls.Certificate {
	c := tls.Certificate{PrivateKey: s, Leaf: chain[0]}
	for _, cert := range chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}
