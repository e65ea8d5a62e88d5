package replica_test

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/internal/certtest"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

// certificate returns a file with a certificate for hosts, and the file with its key.
func certificate(t *testing.T, hosts ...string) (cert, withKey string) {
	t.Helper()
	dir := t.TempDir()
	withKey = certtest.New(t, dir).Issue("server", hosts...)
	text, err := os.ReadFile(withKey)
	must(t, err)
	_, rest := pem.Decode(text)
	cert = filepath.Join(dir, "cert.pem")
	must(t, os.WriteFile(cert, rest, 0o600))
	return cert, withKey
}

// TestOpen: Open makes a server one of two if it can, and says why if not.
func TestOpen(t *testing.T) {
	cert, _ := certificate(t, "b.example.com")
	text := filepath.Join(t.TempDir(), "text")
	must(t, os.WriteFile(text, []byte("no certificate"), 0o600))
	const url = "https://b.example.com"
	for name, c := range map[string]struct {
		database bool        // the deposits are in PostgreSQL
		role     server.Role // of the store
		pair     replica.Pair
		says     string // "" for success
		opens    bool
	}{
		"a database":              {true, "", replica.Pair{}, "", false},
		"a database with a peer":  {true, "", replica.Pair{URL: url}, "deposits are in PostgreSQL", false},
		"a database with a role":  {true, "", replica.Pair{First: active}, "deposits are in PostgreSQL", false},
		"single":                  {false, server.RoleSingle, replica.Pair{}, "", false},
		"active, without a peer":  {false, active, replica.Pair{}, "then: claviger trustee alone on", false},
		"passive, without a peer": {false, passive, replica.Pair{}, "then: claviger trustee promote --force", false},
		"no certificate":          {false, active, replica.Pair{URL: url, Cert: "/missing"}, "no such file", false},
		"another file":            {false, active, replica.Pair{URL: url, Cert: text}, "no certificate in PEM", false},
		"another URL":             {false, active, replica.Pair{URL: "b", Cert: cert}, "--peer", false},
		"no role":                 {false, server.RoleSingle, replica.Pair{URL: url, Cert: cert}, "--role", false},
		"one of two":              {false, active, replica.Pair{URL: url, Cert: cert}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			var store server.Store = &recordStore{}
			if !c.database {
				s := single(t)
				_, err := s.UpdatePosition(t.Context(), func(st *replica.Position) error {
					st.Role = c.role
					return nil
				})
				must(t, err)
				store = s
			}
			f := &trustee.Folder{Path: t.TempDir(), Identity: identities()[0]}
			r, closePeer, err := replica.Open(t.Context(), f, store, c.pair, nil)
			if closePeer(); (r != nil) != c.opens {
				t.Errorf("%v", r)
			}
			if c.says == "" {
				must(t, err)
			} else if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Error(err)
			}
		})
	}
}

// TestOpenWithoutRole: Open does not guess the role of a store that cannot be read.
func TestOpenWithoutRole(t *testing.T) {
	s := single(t)
	must(t, s.Close())
	_, _, err := replica.Open(t.Context(), &trustee.Folder{}, s, replica.Pair{}, nil)
	if err == nil {
		t.Error("a closed store is single")
	}
}

// TestOperatorConfig: an operator's client trusts the certificate in the folder of the server, whatever host the
// certificate is for.
func TestOperatorConfig(t *testing.T) {
	f := &trustee.Folder{Path: t.TempDir(), Identity: identities()[0]}
	file := filepath.Join(f.Path, trustee.TLSCert)
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	for _, hosts := range [][]string{{"a.example.com", "192.0.2.1"}, {"192.0.2.1"}} {
		cert, withKey := certificate(t, hosts...)
		must(t, os.Rename(cert, file))
		pair, err := tls.LoadX509KeyPair(withKey, withKey)
		must(t, err)
		web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the server was reached", http.StatusTeapot)
		}))
		web.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		web.StartTLS()
		cfg, err := replica.OperatorConfig(f, web.URL)
		must(t, err)
		c, err := trustee.NewClient(cfg)
		must(t, err)
		if err := c.Request(t.Context(), trustee.VerbStatus, struct{}{}, nil); err == nil ||
			!strings.Contains(err.Error(), "the server was reached") {
			t.Errorf("%q: %v", hosts, err)
		}
		c.Close()
		web.Close()
	}
	for text, says := range map[string]string{"text": "holds no certificate in PEM",
		"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": "x509"} {
		must(t, os.WriteFile(file, []byte(text), 0o600))
		if _, err := replica.OperatorConfig(f, "https://a"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
	must(t, os.Remove(file))
	if _, err := replica.OperatorConfig(f, "https://a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no certificate: %v", err)
	}
}
