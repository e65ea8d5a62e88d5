package diagnosis

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/certtest"
	"claviger/kms/kmstest"
)

// secureSource starts a source with TLS and the key payroll, whose files have these properties and rules in addition.
func (l *lab) secureSource(props, acls map[string]string) {
	l.t.Helper()
	a := certtest.NewUntil(l.t, l.t.TempDir(), time.Now().Add(year))
	src := &lab{t: l.t, dir: l.t.TempDir()}
	all := map[string]string{
		hadoopconf.ProviderURI: "jceks://file@" + src.path("k.jceks"),
		"hadoop.kms.http.host": "127.0.0.1", "hadoop.kms.http.port": "0", "hadoop.kms.ssl.enabled": "true",
		"claviger.audit.file":             src.path("audit.log"),
		"hadoop.kms.proxyuser.root.users": "*",
		"hadoop.kms.proxyuser.root.hosts": "*",
	}
	maps.Copy(all, props)
	kmstest.WriteSite(l.t, src.dir, all)
	rules := map[string]string{"default.key.acl.READ": "*", "default.key.acl.GENERATE_EEK": "*",
		"default.key.acl.DECRYPT_EEK": "*"}
	maps.Copy(rules, acls)
	kmstest.WriteFile(l.t, src.path("kms-acls.xml"), siteXML(rules))
	kmstest.WriteFile(l.t, src.path("ssl-server.xml"), kmstest.SiteXML(
		"ssl.server.keystore.location", a.Keystore("source", "127.0.0.1"),
		"ssl.server.keystore.password", certtest.Password))
	src.keys("payroll")
	url := serve(l.t, src.dir)
	l.props["claviger.ssl.truststore"] = a.CA
	set(hadoopconf.SourceURI, "kms://"+strings.Replace(strings.TrimSuffix(url, "/"), "://", "@", 1))(l)
	l.o.AsUser = "alice"
}

// strange makes the source a web server.
func (l *lab) strange(answer http.HandlerFunc) {
	l.t.Helper()
	server := httptest.NewServer(answer)
	l.t.Cleanup(server.Close)
	l.set(hadoopconf.SourceURI, "kms://"+strings.Replace(server.URL, "://", "@", 1)+"/kms")
}

// late answers as a server whose clock is ten minutes late.
func late(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-10*time.Minute).UTC().Format(http.TimeFormat))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body) // a client that gets no body fails the test
	}
}

// broken answers as a KMS that logs its clients in, and whose keystore is broken.
func broken(w http.ResponseWriter, r *http.Request) {
	switch _, err := r.Cookie("hadoop.auth"); {
	case r.Method == http.MethodOptions:
		http.SetCookie(w, &http.Cookie{Name: "hadoop.auth", Value: "u=root"})
	case err != nil:
		w.WriteHeader(http.StatusUnauthorized)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"RemoteException": {"exception": "IOException",
			"message": "Keystore was tampered with, or password was incorrect",
			"javaClassName": "java.io.IOException"}}`) // as in late
	}
}

// brokenMetadata is broken, but lists one key.
func brokenMetadata(w http.ResponseWriter, r *http.Request) {
	if _, err := r.Cookie("hadoop.auth"); err == nil && strings.HasSuffix(r.URL.Path, "/keys/names") &&
		r.Method == http.MethodGet {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `["payroll"]`) // as in late
		return
	}
	broken(w, r)
}

// sourceFailures are failures of the source of a migration.
var sourceFailures = []failure{
	{"no TLS", "D-source-reach", false, func(l *lab) { l.source() }},
	{"nothing answers", "D-source-reach", false, set(hadoopconf.SourceURI, "kms://https@127.0.0.1:1/kms")},
	{"one of two hosts answers", "D-source-reach", false, func(l *lab) {
		l.secureSource(nil, nil)
		uri := l.props[hadoopconf.SourceURI]
		set(hadoopconf.SourceURI, strings.Replace(uri, "@127.0.0.1:", "@127.0.0.1;localhost:", 1))(l)
	}},
	{"another certificate", "D-source-reach", false, func(l *lab) {
		l.secureSource(nil, nil)
		set("claviger.ssl.truststore", certtest.New(l.t, l.t.TempDir()).CA)(l)
	}},
	{"far away", "D-source-reach", false, func(l *lab) {
		l.secureSource(nil, nil)
		replace(l.t, &sourceLatency, 0)
	}},
	{"another path", "D-source-reach", false, func(l *lab) { l.strange(http.NotFound) }},
	{"a web server", "D-source-reach", false, func(l *lab) {
		l.strange(late(http.StatusOK, "<html>Welcome</html>"))
	}},
	{"500 after the login", "D-source-reach", false, func(l *lab) { l.strange(broken) }},
	{"500 after the login is not active", "D-seed-active", false, func(l *lab) { l.strange(broken) }},
	{"500 for the list of keys", "D-source-read", false, func(l *lab) { l.strange(broken) }},
	{"no login", "D-source-read", false, func(l *lab) { l.strange(late(http.StatusForbidden, "")) }},
	{"nobody listens", "D-source-read", false, set(hadoopconf.SourceURI, "kms://http@127.0.0.1:1/kms")},
	{"500 for the metadata of a key", "D-source-read", false, func(l *lab) { l.strange(brokenMetadata) }},
	{"another time", "D-source-clock", false, func(l *lab) {
		l.strange(late(http.StatusUnauthorized, ""))
	}},
	{"no right to list keys", "D-source-read", false, func(l *lab) {
		l.secureSource(nil, map[string]string{"hadoop.kms.acl.GET_KEYS": "bob"})
	}},
	{"no right to metadata", "D-source-read", false, func(l *lab) {
		l.secureSource(nil, map[string]string{"hadoop.kms.acl.GET_METADATA": "bob"})
	}},
	{"no right to open EDEKs", "D-source-decrypt", false, func(l *lab) {
		l.secureSource(nil, map[string]string{"hadoop.kms.blacklist.DECRYPT_EEK": "root"})
	}},
	{"no proxy user", "D-source-users", false, func(l *lab) {
		l.secureSource(map[string]string{"hadoop.kms.proxyuser.root.users": "bob"}, nil)
	}},
	{"a user without rights", "D-source-users", false, func(l *lab) {
		l.secureSource(nil, map[string]string{"default.key.acl.DECRYPT_EEK": "root"})
	}},
}

// TestSourceFailures provokes each finding about the source.
func TestSourceFailures(t *testing.T) {
	asRoot(t)
	provokeAll(t, "source.golden", sourceFailures)
}

// asRoot skips a test in which the source knows this process as root.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the rules of the source name the user root; `make test` as root runs this test")
	}
}

// TestHealthySource: a source with TLS that admits this server has no warning, and keeps its keys as they are.
func TestHealthySource(t *testing.T) {
	asRoot(t)
	l := newLab(t)
	l.secureSource(nil, nil)
	text, err := l.check("D-source-reach", "D-source-clock", "D-source-read", "D-source-decrypt", "D-source-users")
	for _, want := range []string{"answers in", "clock agrees", "all 1 keys are readable",
		"as root, an EDEK was opened for 1 of 1 keys", "on behalf of alice, an EDEK was opened for 1 of 1 keys",
		"no failure, no warning"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, text)
		}
	}
}
