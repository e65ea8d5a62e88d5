package kms

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/internal/logtest"
	"claviger/internal/porttest"
	"claviger/kms/kmstest"
)

// consoleSite is a KMS on an HSM with a web console.
type consoleSite struct {
	t            *testing.T
	dir          string
	kms, console string // base URLs; kms ends with /kms
}

// startConsole starts a KMS with a web console. props replaces properties, and acls are rules of kms-acls.xml.
func startConsole(t *testing.T, props map[string]string, acls ...string) *consoleSite {
	t.Helper()
	dir, all := kmstest.HSM(t)
	address, err := porttest.Address()
	if err != nil {
		t.Fatal(err)
	}
	all[consoleListenName] = address
	maps.Copy(all, props)
	kmstest.WriteSite(t, dir, all)
	if len(acls) > 0 {
		kmstest.WriteFile(t, filepath.Join(dir, "kms-acls.xml"), kmstest.SiteXML(acls...))
	}
	return &consoleSite{t: t, dir: dir, kms: serve(t, dir), console: "http://" + all[consoleListenName]}
}

// consolePage is an answer of the console.
type consolePage struct {
	status int
	header http.Header
	text   string
}

// browser returns a client that keeps cookies, and follows no redirection.
func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// send sends a request to the console.
func (s *consoleSite) send(client *http.Client, req *http.Request) consolePage {
	s.t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return consolePage{resp.StatusCode, resp.Header, string(text)}
}

// get reads a page.
func (s *consoleSite) get(client *http.Client, path string) consolePage {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.console+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.send(client, req)
}

// as returns a browser that is signed in.
func (s *consoleSite) as(user string) *http.Client {
	s.t.Helper()
	client := browser(s.t)
	if p := s.get(client, "/?user.name="+url.QueryEscape(user)); p.status != http.StatusOK {
		s.t.Fatalf("%s cannot sign in: %d %s", user, p.status, p.text)
	}
	return client
}

// until reads a page until it has a text.
func (s *consoleSite) until(client *http.Client, path, text string) {
	s.t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		p := s.get(client, path)
		if strings.Contains(p.text, text) {
			return
		}
		if time.Since(began) > 20*time.Second {
			s.t.Fatalf("%s never shows %q: %s", path, text, p.text)
		}
	}
}

// wants reports texts that a page lacks, and texts after a "!" that it has.
func (p consolePage) wants(t *testing.T, status int, texts ...string) {
	t.Helper()
	if p.status != status {
		t.Errorf("status %d, want %d: %s", p.status, status, p.text)
	}
	for _, text := range texts {
		if rest, not := strings.CutPrefix(text, "!"); not {
			if strings.Contains(p.text, rest) {
				t.Errorf("the page has %q: %s", rest, p.text)
			}
		} else if !strings.Contains(p.text, text) {
			t.Errorf("the page lacks %q: %s", text, p.text)
		}
	}
}

// TestConsoleOverview: the first page shows readiness, checks, charts and facts, and each answer has the headers that
// keep a browser safe.
func TestConsoleOverview(t *testing.T) {
	s := startConsole(t, nil)
	for range 3 {
		kmstest.Get(t, s.kms, "/kms/v1/keys/names", "a")
	}
	alice := s.as("alice")
	p := s.get(alice, "/")
	p.wants(t, http.StatusOK, "This node is ready", "alice", `<caption>Checks of readiness`,
		`<th scope="col">Check</th>`, "any keys in the HSM", "SoftHSM",
		"Sessions in use", "Requests a second", "<polyline", " UTC", s.dir, "!style=",
		"!<script>", "!onclick")
	if n := len(p.text); n > 100<<10 {
		t.Errorf("the page has %d bytes", n)
	}
	for _, path := range []string{"/", "/static/live.js", "/favicon.ico", "/nothing"} {
		h := s.get(alice, path).header
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'", "Cache-Control": "no-store",
			"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
		} {
			if !strings.HasPrefix(h.Get(name), want) {
				t.Errorf("%s: %s is %q", path, name, h.Get(name))
			}
		}
		if strings.Contains(h.Get("Content-Security-Policy"), "unsafe") {
			t.Errorf("%s: %q", path, h)
		}
	}
	s.get(alice, "/nothing").wants(t, http.StatusNotFound, "There is no such page")
}

// TestConsoleSignIn: with simple authentication a page demands a name, keeps it in a cookie of the console that other
// sites cannot use and the KMS does not know, and admits only requests from this host to this host.
func TestConsoleSignIn(t *testing.T) {
	s := startConsole(t, nil)
	p := s.get(browser(t), "/")
	p.wants(t, http.StatusUnauthorized, `name="user.name"`, "!any keys in the HSM")
	p = s.get(browser(t), "/?user.name=alice")
	cookie := p.header.Get("Set-Cookie")
	if !strings.HasPrefix(cookie, "claviger.console=") || !strings.Contains(cookie, "; SameSite=Strict") ||
		!strings.Contains(cookie, "; HttpOnly") {
		t.Errorf("cookie %q", cookie)
	}
	value, _, _ := strings.Cut(cookie, ";")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.kms+"/v1/keys/names", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Cookie", value)
	s.send(browser(t), req).wants(t, http.StatusUnauthorized)

	req, err = http.NewRequestWithContext(t.Context(), http.MethodGet, s.console+"/?user.name=alice", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "evil.example:9601" // DNS rebinding
	s.send(browser(t), req).wants(t, http.StatusForbidden, "admits only this host", "!any keys in the HSM")
}

// TestConsoleOtherSites: a page of another site cannot sign the browser in, and cannot make it read a page in a user's
// name. It may have a link to the console.
func TestConsoleOtherSites(t *testing.T) {
	s := startConsole(t, nil)
	for _, c := range []struct {
		site, mode, dest, path string
		want                   int
	}{
		{"cross-site", "no-cors", "image", "/keys?user.name=victim", http.StatusForbidden},
		{"same-site", "no-cors", "script", "/keys?user.name=victim", http.StatusForbidden}, // another port of localhost
		{"cross-site", "navigate", "document", "/keys?user.name=victim", http.StatusForbidden},
		{"cross-site", "navigate", "document", "/keys?a=b;user%2Ename=victim", http.StatusForbidden},
		{"cross-site", "navigate", "document", "/keys?delegation=victim", http.StatusForbidden},
		{"cross-site", "navigate", "document", "/keys?DoAs=victim", http.StatusForbidden},
		{"cross-site", "navigate", "iframe", "/keys", http.StatusForbidden},
		{"cross-site", "navigate", "document", "/keys", http.StatusUnauthorized},
		{"same-origin", "navigate", "document", "/keys?user.name=alice", http.StatusOK},
		{"none", "navigate", "document", "/keys?user.name=alice", http.StatusOK},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.console+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Sec-Fetch-Site", c.site)
		req.Header.Set("Sec-Fetch-Mode", c.mode)
		req.Header.Set("Sec-Fetch-Dest", c.dest)
		p := s.send(browser(t), req)
		p.wants(t, c.want)
		if cookie := p.header.Get("Set-Cookie"); strings.Contains(cookie, "victim") {
			t.Errorf("%s %s %s: %s", c.site, c.dest, c.path, cookie)
		}
	}
	if lines := s.audited(`user=`); strings.Contains(strings.Join(lines, "\n"), "victim") {
		t.Errorf("audited %q", lines)
	}
}

// TestConsoleManyConnections: the connections of one address to the console leave room for others.
func TestConsoleManyConnections(t *testing.T) {
	s := startConsole(t, nil)
	other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
	for range consoleConnections {
		conn, err := other.DialContext(t.Context(), "tcp", strings.TrimPrefix(s.console, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	s.get(s.as("alice"), "/").wants(t, http.StatusOK)
}

// TestConsoleTLS: the console has the certificate of the KMS, and a cookie for https alone.
func TestConsoleTLS(t *testing.T) {
	dir := t.TempDir()
	authority := certtest.New(t, dir)
	stores := filepath.Join(dir, "ssl-server.xml")
	kmstest.WriteFile(t, stores, kmstest.SiteXML("ssl.server.keystore.type", "pem",
		"ssl.server.keystore.location", authority.Issue("server", "127.0.0.1")))
	s := startConsole(t, map[string]string{"hadoop.kms.ssl.enabled": "true", "hadoop.ssl.server.conf": stores})
	s.console = strings.Replace(s.console, "http:", "https:", 1)
	client := browser(t)
	client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool(),
		MinVersion: tls.VersionTLS12}}
	defer client.CloseIdleConnections()
	p := s.get(client, "/?user.name=alice")
	p.wants(t, http.StatusOK, "Certificates", "days left", "KMS</th><td>https://127.0.0.1:")
	if cookie := p.header.Get("Set-Cookie"); !strings.Contains(cookie, "; Secure") {
		t.Errorf("cookie %q", cookie)
	}
}

// TestConsoleDetails: the text of a failed check, and names of files, are shown to the addresses of
// claviger.console.details and to administrators, and to nobody else. Each failed check shows its section of a
// runbook.
func TestConsoleDetails(t *testing.T) {
	s := startConsole(t, map[string]string{"claviger.console.details": "10.9.8.7",
		"hadoop.security.authorization": "true", "hadoop.kms.http.administrators": "root"})
	root, alice := s.as("root"), s.as("alice")
	kmstest.WriteFile(t, filepath.Join(s.dir, "kms-acls.xml"), "<configuration><property>")
	s.until(root, "/", "kms-acls.xml:")
	const section = "What to do: docs/runbooks/clients.md, section “acls”"
	s.get(root, "/").wants(t, http.StatusOK, s.dir, section, "It means", "This node is ready", "<b>warning</b>")
	s.get(alice, "/").wants(t, http.StatusOK, "!"+s.dir, section, "the reason is not shown", "<b>warning</b>")
}

// TestConsoleListen: an address that cannot be used stops the start, and so does one that other hosts reach while
// authentication is simple.
func TestConsoleListen(t *testing.T) {
	for _, c := range []struct{ address, kind, want string }{
		{"9601", "simple", "HOST:PORT"}, {"127.0.0.1:", "simple", "HOST:PORT"},
		{"127.0.0.1:x y", "simple", "HOST:PORT"}, {":9601", "simple", "127.0.0.1, ::1 or localhost"},
		{"0.0.0.0:9601", "simple", "proves no user's name"},
		{"127.0.0.1:9601", "simple", ""}, {"[::1]:0", "simple", ""}, {" localhost:9601 ", "simple", ""},
		{"", "simple", ""}, {":9601", "kerberos", ""},
	} {
		dir := t.TempDir()
		kmstest.WriteSite(t, dir, map[string]string{hadoopconf.ProviderURI: "jceks://file@" + dir + "/k",
			consoleListenName: c.address, authType: c.kind})
		conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
		if err != nil {
			t.Fatal(err)
		}
		_, err = readSettings(conf)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), consoleListenName) ||
			!strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q with %s: %v, want %q", c.address, c.kind, err, c.want)
		}
	}
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	dir, all := kmstest.HSM(t)
	all[consoleListenName] = taken.Addr().String()
	kmstest.WriteSite(t, dir, all)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err = Serve(ctx, Options{Dir: dir, Port: 0, Log: slog.New(slog.NewTextHandler(&logtest.Buffer{}, nil)),
		Level: new(slog.LevelVar)})
	if err == nil || !strings.Contains(err.Error(), consoleListenName) ||
		!strings.Contains(err.Error(), "kms-site.xml:") {
		t.Errorf("the port is taken: %v", err)
	}
}
