package kms

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/authn"
	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// watchedSite is a site file that a server has read at its start, with an authenticator that
// uses its rules of proxy users.
type watchedSite struct {
	conf    *hadoopconf.Conf
	auth    *authn.Authenticator
	proxies *authn.ProxyUsers
	logged  bytes.Buffer
	log     *slog.Logger
}

func newWatchedSite(t *testing.T, dir string, props map[string]string) *watchedSite {
	t.Helper()
	kmstest.WriteSite(t, dir, props)
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	conf.Override("hadoop.kms.http.port", "1", "--http-port")
	s := &watchedSite{conf: conf}
	s.log = slog.New(slog.NewTextHandler(&s.logged, nil))
	s.proxies, _ = authn.NewProxyUsers(conf.WithPrefix(authn.ProxyUserPrefix), noGroups, s.log)
	s.auth, err = authn.New(authn.Config{Handler: authn.Simple{}, Validity: time.Hour,
		Secrets: authn.NewRandomSecrets(time.Hour, nil), ProxyUsers: s.proxies})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func noGroups(string) []string { return nil }

func (s *watchedSite) watch() *siteWatcher { return newSiteWatcher(s.conf, s.proxies, noGroups, s.log) }

// allowed reports whether oozie may act for alice.
func (s *watchedSite) allowed(t *testing.T) bool {
	t.Helper()
	res := s.auth.Authenticate(t.Context(), authn.Request{RawQuery: "user.name=oozie&doAs=alice",
		RemoteIP: netip.MustParseAddr("127.0.0.1")})
	return res.Principal != nil
}

// TestSiteWatcher: after a change of kms-site.xml, the rules of proxy users are those of the new
// file, or all old rules stay if the file is broken. Other changes take effect at the next start.
func TestSiteWatcher(t *testing.T) {
	dir := t.TempDir()
	const provider, hosts, users = hadoopconf.ProviderURI, authn.ProxyUserPrefix + "oozie.hosts",
		authn.ProxyUserPrefix + "oozie.users"
	site := newWatchedSite(t, dir, map[string]string{provider: "jceks://file@/k.jceks"})
	w := site.watch()
	later := time.Now().Add(time.Hour)
	w.check(later)
	if site.allowed(t) || site.logged.Len() > 0 {
		t.Fatalf("before any change: %s", site.logged.String())
	}

	kmstest.WriteSite(t, dir, map[string]string{provider: "jceks://file@/k.jceks", hosts: "*", users: "alice"})
	w.check(later)
	if !site.allowed(t) {
		t.Errorf("oozie may not act for alice after the change:\n%s", site.logged.String())
	}
	if strings.Contains(site.logged.String(), "is restarted") {
		t.Errorf("nothing else has changed:\n%s", site.logged.String())
	}

	if err := os.WriteFile(filepath.Join(dir, "kms-site.xml"), []byte("<configuration><property>"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.check(later)
	w.check(later)
	if !site.allowed(t) {
		t.Error("a broken file removed the rules")
	}
	if n := strings.Count(site.logged.String(), "cannot be used"); n != 1 {
		t.Errorf("the broken file is logged %d times:\n%s", n, site.logged.String())
	}

	kmstest.WriteSite(t, dir, map[string]string{provider: "jceks://file@/other.jceks", hosts: "10.0.0.0/8",
		users: "alice"})
	w.check(later)
	if site.allowed(t) {
		t.Error("oozie may still act from anywhere")
	}
	if !strings.Contains(site.logged.String(), "is restarted") || !strings.Contains(site.logged.String(), provider) {
		t.Errorf("the log does not say that the provider needs a restart:\n%s", site.logged.String())
	}
	if strings.Contains(site.logged.String(), "http.port") {
		t.Errorf("a property that a flag sets is reported as a change of the files:\n%s", site.logged.String())
	}
	// An editor has renamed the file: nothing changes, and the error remains until the file is back.
	kmstest.WriteSite(t, dir, map[string]string{provider: "jceks://file@/other.jceks", hosts: "*", users: "alice"})
	w.check(later)
	file := filepath.Join(dir, "kms-site.xml")
	if err := os.Rename(file, file+"~"); err != nil {
		t.Fatal(err)
	}
	w.check(later)
	w.check(later)
	if err := w.Err(); !site.allowed(t) || err == nil ||
		!strings.Contains(err.Error(), "kms-site.xml does not exist any more") {
		t.Errorf("without the file: %v", err)
	}
	if err := os.Rename(file+"~", file); err != nil {
		t.Fatal(err)
	}
	w.check(later)
	if err := w.Err(); !site.allowed(t) || err != nil {
		t.Errorf("with the file: %v", err)
	}
	kmstest.WriteSite(t, dir, map[string]string{provider: "jceks://file@/other.jceks", hosts: "10.0.0.0/8",
		users: "alice"})
	w.check(later)

	// The file was written just now: the writer may not have finished.
	kmstest.WriteSite(t, dir, map[string]string{provider: "jceks://file@/other.jceks", hosts: "*", users: "alice"})
	w.check(time.Now())
	if site.allowed(t) {
		t.Error("the file was read while it was being written")
	}
	w.check(time.Now().Add(siteSettleTime))
	if !site.allowed(t) {
		t.Error("the file was not read after it was written")
	}
}

// TestSiteChangedBeforeTheStart: a change of the files takes effect even if it is made after
// they were read, while the start waits for other machines.
func TestSiteChangedBeforeTheStart(t *testing.T) {
	dir := t.TempDir()
	const hosts, users = authn.ProxyUserPrefix + "oozie.hosts", authn.ProxyUserPrefix + "oozie.users"
	site := newWatchedSite(t, dir, map[string]string{hadoopconf.ProviderURI: "jceks://file@/k.jceks", hosts: "*",
		users: "alice"})
	if !site.allowed(t) {
		t.Fatal("oozie may not act for alice") // otherwise the rest tests nothing
	}
	kmstest.WriteSite(t, dir, map[string]string{hadoopconf.ProviderURI: "jceks://file@/other.jceks"})
	w := site.watch()
	w.check(time.Now().Add(time.Hour))
	if site.allowed(t) {
		t.Error("the removed rule stays in force")
	}
	if text := site.logged.String(); !strings.Contains(text, "is restarted") ||
		!strings.Contains(text, hadoopconf.ProviderURI) || strings.Contains(text, "http.port") {
		t.Errorf("properties that need a restart:\n%s", text)
	}
}
