package main

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
)

// A changed kms-site.xml changes who may act for whom, as a whole or not at all;
// anything else in it waits for a start.
func TestSiteWatcher(t *testing.T) {
	dir := t.TempDir()
	const provider, hosts, users = hadoopconf.ProviderURI, authn.ProxyUserPrefix + "oozie.hosts", authn.ProxyUserPrefix + "oozie.users"
	writeSite(t, dir, map[string]string{provider: "jceks://file@/k.jceks"})
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	conf.Override("hadoop.kms.http.port", "1", "--http-port")
	var buf bytes.Buffer
	log := slog.New(slog.NewTextHandler(&buf, nil))
	none := func(string) []string { return nil }
	proxies, _ := authn.NewProxyUsers(nil, none, log)
	a, err := authn.New(authn.Config{Handler: authn.Simple{}, Validity: time.Hour, Secrets: authn.NewRandomSecrets(time.Hour, nil), ProxyUsers: proxies})
	if err != nil {
		t.Fatal(err)
	}
	allowed := func() bool {
		res := a.Authenticate(t.Context(), authn.Request{RawQuery: "user.name=oozie&doAs=alice", RemoteIP: netip.MustParseAddr("127.0.0.1")})
		return res.Principal != nil
	}
	w := newSiteWatcher(conf, proxies, none, log)
	later := time.Now().Add(time.Hour)
	w.check(later)
	if allowed() || buf.Len() > 0 {
		t.Fatalf("before any change: %s", buf.String())
	}

	writeSite(t, dir, map[string]string{provider: "jceks://file@/k.jceks", hosts: "*", users: "alice"})
	w.check(later)
	if !allowed() {
		t.Errorf("oozie may not act for alice after the change:\n%s", buf.String())
	}
	if strings.Contains(buf.String(), "started anew") {
		t.Errorf("nothing else has changed:\n%s", buf.String())
	}

	if err := os.WriteFile(filepath.Join(dir, "kms-site.xml"), []byte("<configuration><property>"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.check(later)
	w.check(later)
	if !allowed() {
		t.Error("a broken file took the rules away")
	}
	if n := strings.Count(buf.String(), "is not usable"); n != 1 {
		t.Errorf("the broken file is complained of %d times:\n%s", n, buf.String())
	}

	writeSite(t, dir, map[string]string{provider: "jceks://file@/other.jceks", hosts: "10.0.0.0/8", users: "alice"})
	w.check(later)
	if allowed() {
		t.Error("oozie may still act from anywhere")
	}
	if !strings.Contains(buf.String(), "started anew") || !strings.Contains(buf.String(), provider) {
		t.Errorf("the provider needs a start:\n%s", buf.String())
	}
	if strings.Contains(buf.String(), "http.port") {
		t.Errorf("a flag is no change of the files:\n%s", buf.String())
	}
	// Moved away by an editor: nothing changes, and it is told until it is back.
	writeSite(t, dir, map[string]string{provider: "jceks://file@/other.jceks", hosts: "*", users: "alice"})
	w.check(later)
	site := filepath.Join(dir, "kms-site.xml")
	if err := os.Rename(site, site+"~"); err != nil {
		t.Fatal(err)
	}
	w.check(later)
	w.check(later)
	if err := w.Err(); !allowed() || err == nil || !strings.Contains(err.Error(), "kms-site.xml is gone") {
		t.Errorf("without the file: %v", err)
	}
	if err := os.Rename(site+"~", site); err != nil {
		t.Fatal(err)
	}
	w.check(later)
	if err := w.Err(); !allowed() || err != nil {
		t.Errorf("with the file: %v", err)
	}
	writeSite(t, dir, map[string]string{provider: "jceks://file@/other.jceks", hosts: "10.0.0.0/8", users: "alice"})
	w.check(later)

	// Just written: the writer may not be done.
	writeSite(t, dir, map[string]string{provider: "jceks://file@/other.jceks", hosts: "*", users: "alice"})
	w.check(time.Now())
	if allowed() {
		t.Error("the file was read while it was being written")
	}
	w.check(time.Now().Add(siteSettleTime))
	if !allowed() {
		t.Error("the file was not read after it was written")
	}
}

// TestSiteChangedBeforeTheStart: what the files say is in force, too, where they were
// changed between their reading and the start, which waits for other machines.
func TestSiteChangedBeforeTheStart(t *testing.T) {
	dir := t.TempDir()
	const hosts, users = authn.ProxyUserPrefix + "oozie.hosts", authn.ProxyUserPrefix + "oozie.users"
	writeSite(t, dir, map[string]string{hadoopconf.ProviderURI: "jceks://file@/k.jceks", hosts: "*", users: "alice"})
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	conf.Override("hadoop.kms.http.port", "1", "--http-port")
	var buf bytes.Buffer
	log := slog.New(slog.NewTextHandler(&buf, nil))
	none := func(string) []string { return nil }
	proxies, _ := authn.NewProxyUsers(conf.Under(authn.ProxyUserPrefix), none, log)
	a, err := authn.New(authn.Config{Handler: authn.Simple{}, Validity: time.Hour, Secrets: authn.NewRandomSecrets(time.Hour, nil), ProxyUsers: proxies})
	if err != nil {
		t.Fatal(err)
	}
	allowed := func() bool {
		res := a.Authenticate(t.Context(), authn.Request{RawQuery: "user.name=oozie&doAs=alice", RemoteIP: netip.MustParseAddr("127.0.0.1")})
		return res.Principal != nil
	}
	if !allowed() {
		t.Fatal("oozie may not act for alice") // else this tests nothing
	}
	writeSite(t, dir, map[string]string{hadoopconf.ProviderURI: "jceks://file@/other.jceks"})
	w := newSiteWatcher(conf, proxies, none, log)
	w.check(time.Now().Add(time.Hour))
	if allowed() {
		t.Error("the rule that was taken away stays in force")
	}
	if text := buf.String(); !strings.Contains(text, "started anew") || !strings.Contains(text, hadoopconf.ProviderURI) || strings.Contains(text, "http.port") {
		t.Errorf("what needs a start:\n%s", text)
	}
}
