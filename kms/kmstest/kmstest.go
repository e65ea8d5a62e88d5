// Package kmstest holds what tests of a whole KMS share: configuration folders, a KMS that is started with such a
// folder, and requests to it. It does not import package kms, so that the tests of kms itself can use it.
package kmstest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/hosttest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11"
)

// WriteFile writes a file that its owner alone can read.
func WriteFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// SiteXML returns a configuration file with these names and values, each pair in a line of its own.
func SiteXML(pairs ...string) string {
	var b strings.Builder
	b.WriteString("<configuration>\n")
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "<property><name>%s</name><value>%s</value></property>\n", pairs[i], pairs[i+1])
	}
	return b.String() + "</configuration>\n"
}

// WriteSite writes a kms-site.xml with these properties into dir.
func WriteSite(t testing.TB, dir string, properties map[string]string) {
	t.Helper()
	var pairs []string
	for name, value := range properties {
		pairs = append(pairs, name, value)
	}
	WriteFile(t, filepath.Join(dir, "kms-site.xml"), SiteXML(pairs...))
}

// Conf loads a new configuration folder with these properties.
func Conf(t testing.TB, properties map[string]string) *hadoopconf.Conf {
	t.Helper()
	dir := t.TempDir()
	WriteSite(t, dir, properties)
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// HSM makes a SoftHSM token and a folder with its keystore file. It returns the folder, into which the
// caller writes a kms-site.xml, and properties for a KMS on the token.
func HSM(t testing.TB) (dir string, properties map[string]string) {
	t.Helper()
	dir, tok := t.TempDir(), softhsmtest.New(t)
	file := filepath.Join(dir, "luna.keystore")
	if err := pkcs11.WriteKeystoreFile(file, pkcs11.FileConfig{Module: tok.Module, Token: tok.Label,
		PINFile: tok.PINFile, Profile: pkcs11.SoftHSM}); err != nil {
		t.Fatal(err)
	}
	return dir, map[string]string{
		hadoopconf.ProviderURI:                "cloudera.hsmkp://file@" + file,
		hadoopconf.MetastoreURI:               "sqlite://" + filepath.Join(dir, "c.db"),
		"hadoop.kms.http.host":                "127.0.0.1",
		"hadoop.kms.key.authorization.enable": "false",
		"claviger.audit.file":                 filepath.Join(dir, "audit.log"),
	}
}

// startTimeout is how long Start waits for the ready file.
const startTimeout = 20 * time.Second

// Start runs serve until stop is called. serve must write its base URL into the file ready. stop returns the error of
// serve.
func Start(t testing.TB, serve func(ctx context.Context, ready string) error) (url string, stop func() error) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	return hosttest.StartWithin(t, startTimeout, ready, func(ctx context.Context) error { return serve(ctx, ready) })
}

// Serve is Start for a KMS that stops when the test ends, and must do so without an error.
func Serve(t testing.TB, serve func(ctx context.Context, ready string) error) (url string) {
	t.Helper()
	url, stop := Start(t, serve)
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("the KMS ended: %v", err)
		}
	})
	return url
}

// Get requests a path of a server in the name of a user. With user "" it sends no user name.
func Get(t testing.TB, base, path, user string) (status int, body string) {
	t.Helper()
	url := strings.TrimSuffix(base, "/kms") + path
	if user != "" {
		sep := "?"
		if strings.Contains(path, "?") {
			sep = "&"
		}
		url += sep + "user.name=" + user
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// Send sends a request, with body as JSON if body is not nil, and returns the answer. The error is one of the
// connection.
func Send(ctx context.Context, client *http.Client, method, url string, body any) (int, []byte, error) {
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		in = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, in)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, errors.Join(err, resp.Body.Close())
}

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready  bool
	Checks []Check
}

// Check is one condition of readiness.
type Check struct {
	Name, Error, By   string
	OK, Informational bool
}

// Readyz requests the readiness of a server.
func Readyz(t testing.TB, base string) (status int, r Readiness) {
	t.Helper()
	status, body := Get(t, base, "/readyz", "")
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return status, r
}
