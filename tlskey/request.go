package tlskey

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"

	"claviger"
	"claviger/pkcs11"
)

// Request asks an authority for the certificate of a private key in an HSM.
type Request struct {
	URI   string             // of the key, with its label (object)
	Kind  pkcs11.SigningKind // of a new key
	Hosts []string           // names and addresses of the server
	// Worker says where the HSM's library runs.
	Worker pkcs11.WorkerMode
}

// Requested is the result of a Request.
type Requested struct {
	Made bool   `json:"made"`    // whether the key is new
	Kind string `json:"key"`     // of the key, as in pkcs11.SigningKey
	PEM  string `json:"request"` // the request by PKCS #10
}

// Make makes the key, unless the token has it, and the request, which the key signs.
func (r *Request) Make(ctx context.Context) (done Requested, err error) {
	cfg, name, _, err := pkcs11.ParseKeyURI(r.URI)
	switch {
	case err != nil:
		return done, err
	case name.Label == "":
		return done, errors.New("pkcs11: URI: object is missing: the label of the key")
	case len(r.Hosts) == 0:
		return done, errors.New("no host is named: clients compare the names of the certificate with that of their URI")
	}
	cfg.SignOnly, cfg.Worker = true, r.Worker
	tok, err := pkcs11.Open(ctx, cfg)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, tok.Close()) }()
	k, err := tok.SigningKey(ctx, name)
	if claviger.Is(err, claviger.KeyNotFound) {
		if len(name.ID) == 0 {
			name.ID = make([]byte, 8)
			_, _ = rand.Read(name.ID) // it never fails
		}
		if err = tok.GenerateSigningPair(ctx, name, r.Kind); err == nil {
			done.Made = true
			k, err = tok.SigningKey(ctx, name)
		}
	}
	if err != nil {
		return done, err
	}
	if k.Public == nil {
		return done, fmt.Errorf("the token does not show the public key of the private key with %v; make a new key, "+
			"with another label", name)
	}
	done.Kind = k.Kind
	done.PEM, err = r.sign(signFunc{k.Public, func(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		return tok.Sign(ctx, name, k.Public, digest, opts)
	}})
	return done, err
}

// sign makes the request.
func (r *Request) sign(key crypto.Signer) (string, error) {
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: r.Hosts[0]}}
	for _, host := range r.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// signFunc is a crypto.Signer that signs by a function.
type signFunc struct {
	public crypto.PublicKey
	sign   func(digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// Public returns the public key.
func (s signFunc) Public() crypto.PublicKey { return s.public }

// Sign signs a digest.
func (s signFunc) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.sign(digest, opts)
}
