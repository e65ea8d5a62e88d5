package diagnosis

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/internal/golden"
	"claviger/kms/kmstest"
	"claviger/trustee"
	"claviger/trustee/host"
	"claviger/trustee/location"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
	"claviger/web"
)

// newIdentity makes the identity of a trustee, with a short key, which takes less time.
func newIdentity() *trustee.Identity {
	id, err := trustee.NewIdentity("keytrustee", "server", "keytrustee@h", 2048, time.Now())
	if err != nil {
		panic(err)
	}
	return id
}

// identities are those of two trustees.
var identities = [2]func() *trustee.Identity{sync.OnceValue(newIdentity), sync.OnceValue(newIdentity)}

// trustee starts a Key Trustee Server. It returns its address, and the file with its certificate.
func (l *lab) trustee(number int) (addr, cert string) {
	l.t.Helper()
	dir := filepath.Join(l.t.TempDir(), ".keytrustee")
	_, err := trustee.NewFolder(dir, identities[number]())
	l.must(err)
	_, err = location.Init(l.t.Context(), dir, location.InitOptions{Hosts: []string{"127.0.0.1"}})
	l.must(err)
	store, err := sqlite.Open(l.t.Context(), filepath.Join(dir, location.FileName), false)
	l.must(err)
	l.must(errors.Join(store.AddOrg(l.t.Context(), server.Org{Name: "ORG", UUID: "u", Auth: "walrus",
		Created: time.Now()}), store.Close()))
	url := kmstest.Serve(l.t, func(ctx context.Context, ready string) error {
		return host.Run(ctx, host.Config{Folder: dir, Listen: "127.0.0.1:0", ReadyFile: ready,
			Connections: web.ConnectionLimits{Total: 64}, Log: slog.New(slog.DiscardHandler)})
	})
	return strings.TrimSuffix(strings.TrimPrefix(url, "https://"), "/"), filepath.Join(dir, trustee.TLSCert)
}

// keptAt makes this server a Key Trustee KMS with the trustees at these addresses.
func (l *lab) keptAt(cert string, addrs ...string) {
	l.t.Helper()
	const p = "cloudera.trustee.keyprovider."
	site := map[string]string{p + "org": "ORG", p + "auth": "walrus", p + "keylength": "2048"}
	for i, name := range []string{"ACTIVE", "PASSIVE"}[:len(addrs)] {
		site[p+"hostname-"+name] = addrs[i]
	}
	if cert == "" {
		site[p+"insecure"] = "true"
	} else {
		l.props["claviger.ssl.truststore"] = cert
	}
	kmstest.WriteFile(l.t, l.path("kts-site.xml"), siteXML(site))
	l.must(os.Chmod(l.path("kts-site.xml"), 0o600))
	l.set(hadoopconf.ProviderURI, "keytrustee://file@"+l.path(".keytrustee"))
}

// dated starts a web server whose clock is wrong, and which answers each request with this body.
func (l *lab) dated(status int, body string) (addr string) {
	l.t.Helper()
	s := httptest.NewTLSServer(late(status, body))
	l.t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "https://")
}

// trusteeFailures are failures of Key Trustee Servers.
var trusteeFailures = []failure{
	{"no kts-site.xml", "D-kts-reach", false, func(l *lab) {
		l.keptAt("", "127.0.0.1:1")
		l.must(os.Remove(l.path("kts-site.xml")))
	}},
	{"nothing answers", "D-kts-reach", false, func(l *lab) { l.keptAt("", "127.0.0.1:1") }},
	{"only the file names a trustee", "D-kts-reach", false, func(l *lab) {
		l.keptAt("", "127.0.0.1:1")
		l.props[hadoopconf.TrusteeConf] = l.dir
		l.set(hadoopconf.ProviderURI, "jceks://file@"+l.path("k.jceks"))
	}},
	{"the passive one does not answer", "D-kts-reach", false, func(l *lab) {
		addr, cert := l.trustee(0)
		l.keptAt(cert, addr, "127.0.0.1:1")
	}},
	{"another certificate", "D-kts-reach", false, func(l *lab) {
		addr, _ := l.trustee(0)
		l.keptAt(certtest.New(l.t, l.t.TempDir()).CA, addr)
	}},
	{"a web server", "D-kts-reach", false, func(l *lab) { l.keptAt("", l.dated(http.StatusNotFound, "")) }},
	{"another time", "D-kts-clock", false, func(l *lab) {
		l.keptAt("", l.dated(http.StatusOK, "-----BEGIN PGP PUBLIC KEY BLOCK-----"))
	}},
	{"a web server that has a page", "D-kts-reach", false, func(l *lab) {
		l.keptAt("", l.dated(http.StatusOK, "<html>Welcome</html>"))
	}},
	{"another trustee at the address", "D-kts-keys", false, func(l *lab) {
		addr, cert := l.trustee(0)
		l.keptAt(cert, addr)
		l.keys("payroll")
		addr, cert = l.trustee(1)
		l.keptAt(cert, addr)
	}},
}

// TestTrusteeFailures provokes each finding about Key Trustee Servers.
func TestTrusteeFailures(t *testing.T) { provokeAll(t, "trustees.golden", trusteeFailures) }

// TestHealthyTrustee: a Key Trustee KMS whose trustee answers has no warning. Before its first start the doctor makes
// no folder, and registers nothing.
func TestHealthyTrustee(t *testing.T) {
	l := newLab(t)
	addr, cert := l.trustee(0)
	l.keptAt(cert, addr)
	text, err := l.check()
	if err != nil || !strings.Contains(text, "the first start of the server makes it, and registers it") {
		t.Errorf("%v\n%s", err, text)
	}
	if _, err := os.Stat(l.path(".keytrustee")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the doctor made the folder: %v", err)
	}
	l.keys("payroll")
	before := l.state()
	text, err = l.check()
	for _, want := range []string{"https://" + addr + " answers in", "clock agrees", "answers the identity of",
		"(keys: 1)", "no failure, no warning"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, text)
		}
	}
	if after := l.state(); after != before {
		t.Errorf("the doctor changed\n%s\ninto\n%s", before, after)
	}
}

// TestOtherSources: each source is checked, not only that of the migration.
func TestOtherSources(t *testing.T) {
	l := newLab(t)
	l.keys("payroll")
	other := httptest.NewServer(late(http.StatusUnauthorized, ""))
	t.Cleanup(other.Close)
	l.props[hadoopconf.SourceURI] = "kms://https@127.0.0.1:2/kms"
	l.set(hadoopconf.ProviderURI, strings.Join([]string{l.props[hadoopconf.ProviderURI], "kms://https@127.0.0.1:1/kms",
		"jceks://file@" + l.path("old.jceks"), "kms://" + strings.Replace(other.URL, "://", "@", 1) + "/kms"}, ","))
	text, _ := l.check("D-source-others")
	golden.Sections(t, "testdata/others.golden",
		map[string]string{"three other sources": l.lines(text, "D-source-others")}, true)
	l.set(hadoopconf.ProviderURI, strings.Split(l.props[hadoopconf.ProviderURI], ",")[0])
	if text, _ := l.check("D-source-others"); !strings.Contains(text, "one source is configured") {
		t.Errorf("%s", text)
	}
}
