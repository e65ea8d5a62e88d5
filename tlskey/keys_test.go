package tlskey

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"go.uber.org/goleak"

	"claviger/internal/certtest"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/internal/softhsm"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
	"claviger/tlskey/tlskeytest"
)

func TestMain(m *testing.M) {
	worker.Main(os.Args)
	goleak.VerifyTestMain(m)
}

// envWorker has the tests run with the library in a worker, where they do not say otherwise.
const envWorker = "CLAVIGER_TEST_WORKER"

func testedMode() pkcs11.WorkerMode {
	if os.Getenv(envWorker) != "" {
		return pkcs11.WorkerYes
	}
	return pkcs11.WorkerNo
}

// lab is a token with private keys, and an authority that issues their certificates.
type lab struct {
	t      *testing.T
	tok    softhsm.Token
	dir    string
	module string // "" is that of the token
	ca     *certtest.Authority
	cfg    Config
	log    *logtest.Buffer
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{t: t, tok: softhsmtest.New(t), dir: dir, ca: certtest.New(t, dir), log: new(logtest.Buffer)}
	l.cfg = Config{Certificates: filepath.Join(dir, "chain.pem"), Worker: testedMode(),
		Log: slog.New(slog.NewTextHandler(l.log, nil))}
	return l
}

// key makes a key, and adds its certificate to the file.
func (l *lab) key(kind pkcs11.SigningKind, label string) crypto.PublicKey {
	l.t.Helper()
	uri, public := tlskeytest.New(l.t, l.tok, l.module, kind, label)
	l.cfg.URIs = append(l.cfg.URIs, uri)
	l.certificate(public, label)
	return public
}

// certificate adds a certificate to the file.
func (l *lab) certificate(public crypto.PublicKey, name string) {
	l.t.Helper()
	issued, err := os.ReadFile(l.ca.IssueFor(public, name, "127.0.0.1"))
	if err != nil {
		l.t.Fatal(err)
	}
	old, err := os.ReadFile(l.cfg.Certificates)
	if err != nil && !os.IsNotExist(err) {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(l.cfg.Certificates, append(old, issued...), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// open opens the keys, and closes them at the end of the test.
func (l *lab) open() (*Keys, error) {
	l.t.Helper()
	k, err := Open(l.t.Context(), l.cfg)
	if err == nil {
		l.t.Cleanup(func() {
			if err := k.Close(); err != nil {
				l.t.Error(err)
			}
		})
	}
	return k, err
}

// serve opens the keys and returns the configuration of a server.
func (l *lab) serve() (*Keys, *tls.Config) {
	l.t.Helper()
	k, err := l.open()
	if err != nil {
		l.t.Fatal(err)
	}
	list, _, err := k.Certificates()
	if err != nil {
		l.t.Fatal(err)
	}
	return k, &tls.Config{Certificates: list}
}

// connect makes a handshake in memory. It returns the client's state and the server's error.
func (l *lab) connect(server, client *tls.Config) (tls.ConnectionState, error) {
	l.t.Helper()
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		c := tls.Server(far, server)
		ended <- c.Handshake()
		_, _ = io.Copy(io.Discard, far) // what the client still sends
	}()
	client = client.Clone()
	client.RootCAs, client.ServerName = l.ca.Pool(), "127.0.0.1"
	c := tls.Client(near, client)
	err := c.Handshake()
	state := c.ConnectionState()
	_ = near.Close()
	if refused := <-ended; refused != nil {
		return state, refused
	}
	return state, err
}

var clients = map[string]*tls.Config{
	"TLS 1.3":        {MinVersion: tls.VersionTLS13},
	"TLS 1.2":        {MaxVersion: tls.VersionTLS12},
	"RSA of TLS 1.2": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384}},
}

// TestHandshakes: handshakes by TLS 1.2 and 1.3 succeed with keys of each kind in the HSM, and with one of each kind.
func TestHandshakes(t *testing.T) {
	for name, kinds := range map[string][]pkcs11.SigningKind{
		"RSA": {pkcs11.RSA2048}, "P-256": {pkcs11.P256}, "P-384": {pkcs11.P384}, "both": {pkcs11.RSA2048, pkcs11.P256},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			for _, kind := range kinds {
				l.key(kind, string(kind))
			}
			k, server := l.serve()
			want := uint64(0)
			for version, client := range clients {
				of := x509.ECDSA
				if kinds[0] == pkcs11.RSA2048 && (len(kinds) == 1 || strings.HasPrefix(version, "RSA")) {
					of = x509.RSA
				}
				state, err := l.connect(server, client)
				if strings.HasPrefix(version, "RSA") && of != x509.RSA {
					if err == nil {
						t.Errorf("%s: no suite is common, and there is a connection", version)
					}
					continue
				}
				want++
				if err != nil || state.PeerCertificates[0].PublicKeyAlgorithm != of {
					t.Errorf("%s: %v", version, err)
				}
			}
			if made, failed := k.Counts(); made != want || failed != 0 {
				t.Errorf("%d signatures, %d failed, want %d", made, failed, want)
			}
			if err := k.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRawRSA: a token without CKM_RSA_PKCS_PSS serves TLS 1.3 all the same.
func TestRawRSA(t *testing.T) {
	l := newLab(t)
	m := faultmodule.New(t, l.tok.Module)
	m.RefuseMechanism(p11.CKM_RSA_PKCS_PSS)
	l.module = m.Path
	l.key(pkcs11.RSA2048, "kms")
	_, server := l.serve()
	for version, client := range clients {
		if _, err := l.connect(server, client); err != nil {
			t.Errorf("%s: %v", version, err)
		}
	}
	if n := m.Calls(faultmodule.SignInit); n == 0 {
		t.Error("the module was not asked")
	}
}

// TestOpenRefused: a key that is missing, ambiguous or not for signatures, and a wrong PIN, are errors at once.
func TestOpenRefused(t *testing.T) {
	l := newLab(t)
	uri, _ := tlskeytest.New(t, l.tok, "", pkcs11.P256, "kms")
	tok := tlskeytest.Open(t, l.tok)
	if err := tok.GeneratePair(t.Context(), []byte{1}, "keyhsm", 2048); err != nil {
		t.Fatal(err)
	}
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(l.dir, "pin")
	if err := os.WriteFile(pin, []byte("wrong-pin"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uris []string
		want string
	}{
		{nil, "no key is named"},
		{[]string{"pkcs11:token=a"}, "module-path is missing"},
		{[]string{tlskeytest.URI(l.tok, l.tok.Module, "other")}, `holds no private key with label "other"`},
		{[]string{tlskeytest.URI(l.tok, l.tok.Module, "keyhsm")}, "may not sign (CKA_SIGN is false)"},
		{[]string{uri, tlskeytest.URI(softhsm.Token{Label: "none", PINFile: l.tok.PINFile}, l.tok.Module, "kms")},
			`fits token "none"`},
		{[]string{tlskeytest.URI(softhsm.Token{Label: l.tok.Label, PINFile: pin}, l.tok.Module, "kms")},
			"refuses the PIN of file " + pin},
	} {
		l.cfg.URIs = c.uris
		if _, err := l.open(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.uris, err, c.want)
		}
	}
}

// TestCertificatesRefused: each key must have a certificate in the file.
func TestCertificatesRefused(t *testing.T) {
	l := newLab(t)
	_, public := tlskeytest.New(t, l.tok, "", pkcs11.P256, "kms")
	l.cfg.URIs = []string{tlskeytest.URI(l.tok, l.tok.Module, "kms")}
	k, err := l.open()
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, texts ...string) {
		t.Helper()
		_, _, err := k.Certificates()
		for _, text := range texts {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %q", what, err, text)
			}
		}
		if refused := k.Refused(); err == nil || !errors.Is(refused, err) {
			t.Errorf("%s: Refused returns %v", what, refused)
		}
	}
	refused("no file", "no such file")
	write := func(path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(l.cfg.Certificates, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(l.tok.PINFile)
	refused("no certificate", "holds no certificate in PEM")
	write(l.ca.Issue("another", "127.0.0.1"))
	refused("another key", `no certificate of the file belongs to the private key with label "kms" of the HSM`,
		"the public key of the certificate does not verify a signature of the HSM", "claviger hsm tls-key")
	_, other := tlskeytest.New(t, l.tok, "", pkcs11.RSA2048, "rsa")
	write(l.ca.IssueFor(other, "rsa", "127.0.0.1"))
	refused("another kind", "the key of the HSM is ECDSA on P-256, and that of the certificate is RSA of 2048 bits")
	l.certificate(public, "kms")
	list, doubts, err := k.Certificates()
	if err != nil || len(list) != 1 || list[0].Leaf.Subject.CommonName != "kms" || len(list[0].Certificate) != 2 ||
		len(doubts) != 1 || !strings.Contains(doubts[0], "belongs to the certificate of CN=rsa") || k.Refused() != nil {
		t.Errorf("%d certificates, %q, %v, %v", len(list), doubts, err, k.Refused())
	}
}

// TestKeyRemoved: after the key was destroyed, handshakes are refused, and that is counted, logged and shown.
func TestKeyRemoved(t *testing.T) {
	l := newLab(t)
	l.key(pkcs11.P256, "kms")
	k, server := l.serve()
	if _, ok := k.Last(); ok {
		t.Error("there was a handshake already")
	}
	if _, err := l.connect(server, clients["TLS 1.3"]); err != nil {
		t.Fatal(err)
	}
	if last, ok := k.Last(); !ok || last.Err != nil || last.At.IsZero() {
		t.Errorf("%+v, %t", last, ok)
	}
	destroy(t, l.tok, "kms")
	_, err := l.connect(server, clients["TLS 1.3"])
	if err == nil || !strings.Contains(err.Error(), `holds no private key with label "kms"`) {
		t.Errorf("the key is gone: %v", err)
	}
	if made, failed := k.Counts(); made != 1 || failed != 1 {
		t.Errorf("%d made, %d failed", made, failed)
	}
	if last, ok := k.Last(); !ok || last.Err == nil {
		t.Errorf("%+v, %t", last, ok)
	}
	if err := k.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "does not sign for the certificate") {
		t.Error(err)
	}
	if !strings.Contains(l.log.String(), "a TLS handshake is refused, because the HSM did not sign it") {
		t.Error(l.log.String())
	}
}

// destroy destroys the private key with that label, as an operator does with the HSM's tool.
func destroy(t *testing.T, tok softhsm.Token, label string) {
	t.Helper()
	ctx := p11.New(tok.Module)
	if err := ctx.Initialize(); err != nil && !errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		t.Fatal(err)
	} else if err == nil {
		defer func() { _ = ctx.Finalize() }()
	}
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ctx.OpenSession(slots[0], p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.CloseSession(s) //nolint:errcheck // a session of a test
	pin, err := os.ReadFile(tok.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	_ = ctx.Login(s, p11.CKU_USER, strings.TrimSpace(string(pin))) // this process may be logged in
	if err := ctx.FindObjectsInit(s, []*p11.Attribute{p11.NewAttribute(p11.CKA_LABEL, label),
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY)}); err != nil {
		t.Fatal(err)
	}
	found, _, err := ctx.FindObjects(s, 2)
	if err != nil || len(found) != 1 {
		t.Fatalf("%d objects, %v", len(found), err)
	}
	_ = ctx.FindObjectsFinal(s)
	if err := ctx.DestroyObject(s, found[0]); err != nil {
		t.Fatal(err)
	}
}

// TestHungHSM: while the HSM hangs, a handshake is refused after the time limit, the bound of signatures at the same
// time holds, and after the end of the hang handshakes succeed again.
func TestHungHSM(t *testing.T) {
	l := newLab(t)
	m := faultmodule.New(t, l.tok.Module)
	l.module = m.Path
	l.cfg.Timeout, l.cfg.AtOnce = 500*time.Millisecond, 2
	l.key(pkcs11.P256, "kms")
	k, server := l.serve()
	m.Order(faultmodule.Sign, faultmodule.Order{Action: faultmodule.Hang, Times: faultmodule.Always})
	defer m.Heal()
	began := time.Now()
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			if _, err := l.connect(server, clients["TLS 1.3"]); err == nil {
				t.Error("a handshake succeeded")
			}
		})
	}
	group.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the handshakes took %v", took)
	}
	if n := m.Running(faultmodule.Sign); n > 2 {
		t.Errorf("%d signatures at the same time", n)
	}
	if used, limit := k.Sessions(); limit != 2 || used > 2 {
		t.Errorf("%d of %d sessions", used, limit)
	}
	if _, failed := k.Counts(); failed != 6 {
		t.Errorf("%d failures", failed)
	}
	m.Heal()
	l.recovers(server)
}

// recovers waits until a handshake succeeds.
func (l *lab) recovers(server *tls.Config) {
	l.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		_, err := l.connect(server, clients["TLS 1.3"])
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatal(err)
		}
	}
}

// TestLateHSM: keys are opened without an HSM that does not answer. Its certificates count, handshakes are refused, and
// succeed when the HSM answers.
func TestLateHSM(t *testing.T) {
	l := newLab(t)
	m := faultmodule.New(t, l.tok.Module)
	l.module = m.Path
	l.key(pkcs11.RSA2048, "kms")
	m.Order(faultmodule.GetTokenInfo, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_DEVICE_REMOVED,
		Times: faultmodule.Always})
	k, server := l.serve()
	if _, err := l.connect(server, clients["TLS 1.3"]); err == nil || !strings.Contains(err.Error(), "is not open") {
		t.Error(err)
	}
	if err := k.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "is not open") {
		t.Error(err)
	}
	m.Heal()
	l.recovers(server)
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSigner: a Signer is a crypto.Signer of the key that the certificate names.
func TestSigner(t *testing.T) {
	l := newLab(t)
	public := l.key(pkcs11.RSA2048, "kms")
	k, server := l.serve()
	var seen []Signature
	k.OnSign(func(s Signature) { seen = append(seen, s) })
	s, ok := server.Certificates[0].PrivateKey.(crypto.Signer)
	if !ok || !public.(*rsa.PublicKey).Equal(s.Public()) {
		t.Fatalf("%T", server.Certificates[0].PrivateKey)
	}
	digest := crypto.SHA256.New().Sum(nil)
	signature, err := s.Sign(nil, digest, crypto.SHA256)
	if err != nil || rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.SHA256, digest, signature) != nil {
		t.Error(err)
	}
	if _, err := s.Sign(nil, digest, crypto.SHA1); err == nil {
		t.Error("a digest by SHA-1 was signed")
	}
	if len(seen) != 2 || seen[0].Err != nil || seen[1].Err == nil || seen[0].Took <= 0 {
		t.Errorf("%+v", seen)
	}
}

// TestOpenCancelled: Open returns when its context ends.
func TestOpenCancelled(t *testing.T) {
	l := newLab(t)
	l.key(pkcs11.P256, "kms")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k, err := Open(ctx, l.cfg)
	if err == nil { // an HSM that does not answer is opened later
		err = k.Close()
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
