// Package tlskeytest gives tests private keys of TLS in a SoftHSM token.
package tlskeytest

import (
	"crypto"
	"crypto/rand"
	"net/url"
	"testing"

	"claviger/internal/softhsm"
	"claviger/pkcs11"
)

// New makes a private key with that label in a token, and returns its URI and its public key. module is the library in
// the URI; "" is that of the token.
func New(t testing.TB, tok softhsm.Token, module string, kind pkcs11.SigningKind, label string) (uri string,
	public crypto.PublicKey) {
	t.Helper()
	opened := Open(t, tok)
	name := pkcs11.PrivateKeyName{Label: label, ID: make([]byte, 8)}
	if _, err := rand.Read(name.ID); err != nil {
		t.Fatal(err)
	}
	if err := opened.GenerateSigningPair(t.Context(), name, kind); err != nil {
		t.Fatal(err)
	}
	k, err := opened.SigningKey(t.Context(), name)
	if err != nil || k.Public == nil {
		t.Fatalf("%+v, %v", k, err)
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	if module == "" {
		module = tok.Module
	}
	return URI(tok, module, label), k.Public
}

// URI returns the URI of a private key.
func URI(tok softhsm.Token, module, label string) string {
	return "pkcs11:token=" + url.PathEscape(tok.Label) + ";object=" + url.PathEscape(label) + "?module-path=" +
		url.PathEscape(module) + "&pin-source=file:" + url.PathEscape(tok.PINFile)
}

// Open opens the token in this process. The caller closes it.
func Open(t testing.TB, tok softhsm.Token) *pkcs11.Token {
	t.Helper()
	cfg, _, err := pkcs11.ParseURI("pkcs11:token=" + url.PathEscape(tok.Label) + "?module-path=" + tok.Module +
		"&pin-source=file:" + tok.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Worker = pkcs11.WorkerNo
	opened, err := pkcs11.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}
