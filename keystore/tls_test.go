package keystore

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger/secret"
)

// pemFile writes the key and certificate of a store as one PEM file.
func pemFile(t *testing.T, c tls.Certificate) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
	data = append(data, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	name := filepath.Join(t.TempDir(), "server.pem")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestTLS makes a handshake with each kind of keystore and each kind of trust store that keytool writes.
func TestTLS(t *testing.T) {
	changeit := secret.Bytes("changeit")
	first := TLSFile{Path: "testdata/tls/server.jks", Type: "jks", Password: changeit,
		KeyPassword: secret.Bytes("keypass")}
	c, err := first.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	inPEM := pemFile(t, c)
	for _, tc := range []struct{ server, trust TLSFile }{
		{first, TLSFile{Path: "testdata/tls/trust.jks", Password: changeit}},
		{first, TLSFile{Path: "testdata/tls/server.jks", Password: changeit}}, // trusts a key's certificate
		{TLSFile{Path: inPEM}, TLSFile{Path: "testdata/tls/server.pem", Type: "PEM"}},
		{TLSFile{Path: "testdata/tls/server.pem", KeyPath: inPEM}, TLSFile{Path: "testdata/tls/server.pem"}},
		{TLSFile{Path: "testdata/tls/server.pkcs12", Type: "jks", Password: changeit},
			TLSFile{Path: "testdata/tls/trust.pkcs12", Type: "jks", Password: changeit}},
		{TLSFile{Path: "testdata/tls/server.pkcs12", Password: changeit},
			TLSFile{Path: "testdata/tls/server.pkcs12", Password: changeit}},
		{TLSFile{Path: "testdata/keytool.jceks", Password: changeit},
			TLSFile{Path: "testdata/keytool.jceks", Password: changeit}},
	} {
		t.Run(filepath.Base(tc.server.Path)+","+filepath.Base(tc.trust.Path), func(t *testing.T) {
			cert, err := tc.server.Certificate()
			if err != nil {
				t.Fatal(err)
			}
			roots, err := tc.trust.Roots()
			if err != nil {
				t.Fatal(err)
			}
			a, b := net.Pipe()
			server := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}})
			client := tls.Client(b, &tls.Config{RootCAs: roots, ServerName: "localhost"})
			done := make(chan error, 1)
			go func() { done <- server.Handshake() }()
			if err := client.Handshake(); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			_, _ = a.Close(), b.Close()
		})
	}
}

// TestTLSErrors: the error of each keystore file that cannot be used names the file, its format and the cure.
func TestTLSErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	wrong, changeit := secret.Bytes("wrong-password"), secret.Bytes("changeit")
	for _, tc := range []struct {
		name string
		file TLSFile
		want string
	}{
		{"none named", TLSFile{}, "no keystore file is named"},
		{"missing", TLSFile{Path: filepath.Join(dir, "missing")}, "no such file"},
		{"type", TLSFile{Path: "testdata/tls/server.jks", Type: "bcfks"},
			`type "bcfks" is not known; it is one of jks, jceks, pkcs12, pem`},
		{"garbage", TLSFile{Path: write("garbage", "hello")}, "its format is none of jks, jceks, pkcs12, pem"},
		{"jks password", TLSFile{Path: "testdata/tls/server.jks", Password: wrong},
			"testdata/tls/server.jks (jks): wrong password or damaged file"},
		{"jks without", TLSFile{Path: "testdata/tls/server.jks", PasswordProperty: "ssl.server.keystore.password"},
			"testdata/tls/server.jks (jks): no password is set, and the file cannot be read without its password: " +
				"set ssl.server.keystore.password (or a credential"},
		{"jceks without", TLSFile{Path: "testdata/keytool.jceks"}, "testdata/keytool.jceks (jceks): no " +
			"password is set"},
		{"pkcs12 without", TLSFile{Path: "testdata/tls/server.pkcs12", PasswordProperty: "p"},
			"no password is set, and the file cannot be read without its password: set p (or"},
		{"jks key password", TLSFile{Path: "testdata/tls/server.jks", Password: changeit},
			"testdata/tls/server.jks (jks): wrong password or damaged file; check the passwords of the keystore and " +
				"of its key"},
		{"jceks password", TLSFile{Path: "testdata/keytool.jceks", Password: wrong},
			"testdata/keytool.jceks (jceks): wrong password or damaged file"},
		{"pkcs12 password", TLSFile{Path: "testdata/tls/server.pkcs12", Password: wrong},
			"testdata/tls/server.pkcs12 (pkcs12): wrong password or damaged file"},
		{"no key", TLSFile{Path: "testdata/tls/trust.jks", Password: changeit},
			"the file has no private key with a certificate"},
		{"no key in pem", TLSFile{Path: "testdata/tls/server.pem"}, "server.pem (pem): "},
		{"encrypted pem",
			TLSFile{Path: write("enc.pem",
				"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")},
			"the private key is encrypted"},
	} {
		_, err := tc.file.Certificate()
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if err != nil && (strings.Contains(err.Error(), "wrong-password") ||
			strings.Contains(err.Error(), "changeit")) {
			t.Errorf("%s: the error shows a password: %v", tc.name, err)
		}
	}
	for _, tc := range []struct {
		name string
		file TLSFile
		want string
	}{
		{"jks password", TLSFile{Path: "testdata/tls/trust.jks", Password: wrong}, "wrong password or damaged file"},
		{"pkcs12 without", TLSFile{Path: "testdata/tls/trust.pkcs12"},
			"testdata/tls/trust.pkcs12 (pkcs12): no password is set, and the file cannot be read without its " +
				"password: set the .password property of this file"},
		{"pkcs12 password", TLSFile{Path: "testdata/tls/trust.pkcs12", Password: wrong},
			"wrong password or damaged file"},
		{"nothing trusted", TLSFile{Path: "testdata/secretkeyspec.jceks", Password: changeit},
			"the file has no trusted certificate"},
	} {
		if _, err := tc.file.Roots(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("trust store, %s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// TestReloader: a changed file is loaded again; a broken one is not, and the old certificate stays in use.
func TestReloader(t *testing.T) {
	defer goleak.VerifyNone(t)
	load := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join("testdata/tls", name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	name := filepath.Join(t.TempDir(), "server")
	put := func(data []byte) {
		if err := os.WriteFile(name+".tmp", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".tmp", name); err != nil {
			t.Fatal(err)
		}
	}
	put(load("server.jks"))
	f := TLSFile{Path: name, Password: secret.Bytes("changeit"), KeyPassword: secret.Bytes("keypass")}
	r, err := NewReloader(f.Files(), f.Certificate, 5*time.Millisecond, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	get := func() *x509.Certificate { return r.Get().Leaf }
	first := get()
	put([]byte("broken"))
	time.Sleep(50 * time.Millisecond) // give the reloader time for a wrong reload
	if !get().Equal(first) {
		t.Error("after a broken file the old certificate is not used")
	}
	put(load("server.pkcs12"))
	for deadline := time.Now().Add(20 * time.Second); get().Equal(first); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new certificate is not used")
		}
	}
	r.Close()

	// A file that could not be loaded is tried again even if it did not change.
	var tries atomic.Int32
	retrying, err := NewReloader([]string{name}, func() (int32, error) {
		if n := tries.Add(1); n == 2 || n == 3 {
			return 0, errors.New("no right to read it")
		}
		return tries.Load(), nil
	}, 5*time.Millisecond, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer retrying.Close()
	put(load("server.jks"))
	for deadline := time.Now().Add(20 * time.Second); retrying.Get() != 4; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the file was loaded %d times", tries.Load())
		}
	}
	if get() == nil {
		t.Error("no certificate after Close")
	}
	if _, err := NewReloader([]string{name}, TLSFile{Path: name + "-missing"}.Certificate, time.Second,
		slog.New(slog.DiscardHandler)); err == nil {
		t.Error("NewReloader succeeded although the first load failed")
	}
}
