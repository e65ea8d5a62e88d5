package kerberos

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/gssapi"
	"claviger/internal/kdctest"
	"claviger/test/hadoop"
)

const realm = "EXAMPLE.COM"

// kms is a server of type kerberos.
type kms struct {
	t       testing.TB
	url     string // of /kms
	audit   string // file
	process *hadoop.Process
}

// startKMS runs the program with a keytab and a krb5.conf.
func startKMS(t testing.TB, k *kdctest.KDC, krb5conf, keytab string) *kms {
	t.Helper()
	return startKMSWith(t, k, krb5conf, keytab, nil)
}

// startKMSWith is like startKMS, with further properties.
func startKMSWith(t testing.TB, k *kdctest.KDC, krb5conf, keytab string, further hadoop.Conf) *kms {
	t.Helper()
	dir := t.TempDir()
	s := &kms{t: t, audit: filepath.Join(dir, "audit.log")}
	conf := hadoop.Conf{
		"hadoop.kms.key.provider.uri":                  "jceks://file@" + filepath.Join(dir, "kms.keystore"),
		"hadoop.kms.authentication.type":               "kerberos",
		"hadoop.kms.authentication.kerberos.keytab":    keytab,
		"hadoop.kms.authentication.kerberos.principal": "HTTP/localhost",
		"hadoop.kms.authentication.kerberos.name.rules": "RULE:[2:$1@$0](nn@EXAMPLE\\.COM)s/.*/hdfs/ " +
			"RULE:[1:$1@$0](.*@EXAMPLE\\.COM)s/@.*//",
		"hadoop.kms.http.host": "127.0.0.1",
		"claviger.audit.file":  s.audit,
	}
	maps.Copy(conf, further)
	conf.Write(t, filepath.Join(dir, "kms-site.xml"))
	hadoop.Conf{"default.key.acl.READ": "*", "default.key.acl.MANAGEMENT": "*"}.Write(t, filepath.Join(dir,
		"kms-acls.xml"))
	ready := filepath.Join(dir, "ready")
	cmd := exec.Command(hadoop.Binary(t), "kms", "--conf", dir, "--http-port", "0", "--ready-file", ready)
	cmd.Env = append(k.Env(), "KRB5_CONFIG="+krb5conf)
	s.process = hadoop.Start(t, "claviger kms", cmd)
	s.process.WaitFor("it is ready", func() bool {
		url, err := os.ReadFile(ready)
		s.url = strings.Replace(strings.TrimSpace(string(url)), "127.0.0.1", "localhost", 1)
		return err == nil
	})
	return s
}

// names returns the URL of a request that every authenticated client may send.
func (s *kms) names() string { return s.url + "/v1/keys/names" }

// send sends a token and returns the status and the body.
func (s *kms) send(method, token string) (int, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, s.names(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Negotiate "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// negotiate logs in with our own initiator, and checks that the server authenticates itself.
func (s *kms) negotiate(conf gssapi.InitiatorConfig) error {
	i, err := gssapi.NewInitiator(conf)
	if err != nil {
		return err
	}
	defer func() { _ = i.Close() }()
	token, done, err := i.Step(nil)
	if err != nil || done {
		return fmt.Errorf("the first step: done is %v; %w", done, err)
	}
	r, err := http.NewRequest(http.MethodGet, s.names(), nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Negotiate "+base64.StdEncoding.EncodeToString(token))
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(r)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	answer, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(resp.Header.Get("WWW-Authenticate"),
		"Negotiate "))
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d; %w", resp.StatusCode, err)
	}
	// The answer has the form of the request: NegTokenResp, or a bare AP-REP.
	form := []byte{0x60}
	if conf.SPNEGO {
		form = []byte{0xa1}
	}
	if !bytes.HasPrefix(answer, form) {
		return fmt.Errorf("the server's token begins with %x, want %x", answer[:1], form)
	}
	if _, done, err = i.Step(answer); err != nil || !done {
		return fmt.Errorf("the server's token: done is %v; %w", done, err)
	}
	return nil
}

// since returns the text of a file after an offset.
func since(t testing.TB, file string, offset int) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[min(offset, len(b)):])
}

// java runs the Java class Login with a ticket.
func java(t testing.TB, k *kdctest.KDC, ccache, principal string, args ...string) string {
	t.Helper()
	cp := hadoop.RuntimeClassPath(t)
	src, err := filepath.Abs("java")
	if err != nil {
		t.Fatal(err)
	}
	classes := hadoop.Javac(t, cp, src)
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	all := append([]string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m", "-Djava.security.krb5.conf=" +
		k.Krb5Conf,
		"-cp", classes + string(os.PathListSeparator) + cp, "Login", ccache, principal}, args...)
	cmd := exec.CommandContext(ctx, "java", all...)
	cmd.Env = k.Env()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("Login %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// TestAcceptedLogins: clients of the JDK, of Hadoop, of Go, and curl log in with a ticket.
func TestAcceptedLogins(t *testing.T) {
	hadoop.Require(t)
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal("curl is not installed: run `make setup`")
	}
	k := kdctest.StartRealm(t, realm)
	users := k.Keytab("users.keytab", "alice", "nn/localhost")
	s := startKMS(t, k, k.Krb5Conf, k.Keytab("http.keytab", "HTTP/localhost"))
	alice := k.Login(users, "alice")
	nn := k.Login(users, "nn/localhost")

	curl := exec.Command("curl", "-sS", "-i", "--max-time", "30", "--negotiate", "-u", ":", s.names())
	curl.Env = append(k.Env(), "KRB5CCNAME=FILE:"+alice)
	out, err := curl.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "HTTP/1.1 200 OK") ||
		!strings.Contains(string(out), `hadoop.auth="u=alice&p=alice@EXAMPLE.COM&t=kerberos-dt&`) {
		t.Errorf("curl: %v\n%s", err, out)
	}
	// The client "raw" prints "proved" if the server's token authenticates the server.
	for _, c := range []struct{ what, ccache, principal, want string }{
		{"jdk", alice, "alice", "u=alice&p=alice@EXAMPLE.COM&t=kerberos-dt&"},
		{"hadoop", alice, "alice", "u=alice&p=alice@EXAMPLE.COM&t=kerberos-dt&"},
		{"hadoop", nn, "nn/localhost", "u=hdfs&p=nn/localhost@EXAMPLE.COM&t=kerberos-dt&"},
		{"raw", alice, "alice", " proved"},
	} {
		if got := java(t, k, c.ccache, c.principal, c.what, s.names()); !strings.HasPrefix(got, "200 []") ||
			!strings.Contains(got, c.want) || strings.Contains(got, "not proved") {
			t.Errorf("%s as %s: %s", c.what, c.principal, got)
		}
	}
	t.Setenv("KRB5_CONFIG", k.Krb5Conf)
	for _, conf := range []gssapi.InitiatorConfig{
		{Keytab: users, Principal: "alice", Target: "HTTP@localhost", SPNEGO: true, Mutual: true},
		{Keytab: users, Principal: "alice", Target: "HTTP/localhost", Mutual: true},
		{CCache: "FILE:" + nn, Target: "HTTP/localhost@" + realm, SPNEGO: true, Mutual: true},
	} {
		if err := s.negotiate(conf); err != nil {
			t.Errorf("a Go client with %+v: %v", conf, err)
		}
	}
	if log := since(t, s.audit, 0); strings.Contains(log, "Exception") ||
		!strings.Contains(log, "user=nn/localhost@EXAMPLE.COM") {
		t.Errorf("audit log:\n%s", log)
	}
}

// TestMultiScheme: Hadoop's multi-scheme handler with the scheme negotiate accepts the same clients.
func TestMultiScheme(t *testing.T) {
	hadoop.Require(t)
	const scheme = "hadoop.kms.authentication.multi-scheme-auth-handler."
	k := kdctest.StartRealm(t, realm)
	users := k.Keytab("users.keytab", "alice")
	s := startKMSWith(t, k, k.Krb5Conf, k.Keytab("http.keytab", "HTTP/localhost"), hadoop.Conf{
		"hadoop.kms.authentication.type": "org.apache.hadoop.security.token.delegation.web." +
			"MultiSchemeDelegationTokenAuthenticationHandler",
		scheme + "schemes":                   "negotiate",
		scheme + "schemes.negotiate.handler": "kerberos",
		scheme + "delegation.schemes":        "negotiate",
	})
	alice := k.Login(users, "alice")
	for _, client := range []string{"jdk", "hadoop"} {
		if got := java(t, k, alice, "alice", client, s.names()); !strings.HasPrefix(got, "200 []") ||
			!strings.Contains(got, "u=alice&p=alice@EXAMPLE.COM&t=") {
			t.Errorf("%s: %s", client, got)
		}
	}
	resp, err := http.Get(s.names()) //nolint:noctx // of a server of this test
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") != "Negotiate" {
		t.Errorf("an unknown user: %d %v", resp.StatusCode, resp.Header)
	}
}

// refused fails the test unless the server refuses a token: the client and one line of the audit log get reason,
// and only the log gets explanation.
func refused(t *testing.T, s *kms, method, token string, status int, reason, explanation string) {
	t.Helper()
	lines, logged := len(since(t, s.audit, 0)), len(since(t, s.process.Log, 0))
	got, body := s.send(method, token)
	if got != status || method == http.MethodGet && !strings.Contains(body, reason) {
		t.Errorf("status %d, want %d and %s:\n%s", got, status, reason, body)
	}
	line := since(t, s.audit, lines)
	if !strings.Contains(line,
		"UNAUTHENTICATED RemoteHost:127.0.0.1 Method:"+method+" URL:"+s.names()+" ErrorMsg:'"+reason) ||
		strings.Count(line, "\n") != 1 {
		t.Errorf("audit lines %q, want one with %s", line, reason)
	}
	// The same warning is logged once a minute.
	if log := since(t, s.process.Log, 0); !strings.Contains(log, explanation) {
		t.Errorf("log %q, want %q", log[logged:], explanation)
	}
	if strings.Contains(body, explanation) {
		t.Errorf("the answer shows the explanation for the operator: %s", body)
	}
}

// TestRefusedLogins: the server refuses forged, old, replayed and misdirected tickets, and logs each refusal.
func TestRefusedLogins(t *testing.T) {
	hadoop.Require(t)
	k := kdctest.StartRealm(t, realm)
	users := k.Keytab("users.keytab", "alice", "foo/localhost")
	keytab := k.Keytab("http.keytab", "HTTP/localhost", "ftp/localhost")
	s := startKMS(t, k, k.Krb5Conf, keytab)
	alice := k.Login(users, "alice")
	token := func(service string, more ...string) string {
		return java(t, k, alice, "alice", append([]string{"token", service}, more...)...)
	}
	// This token expires while the other tokens are tried.
	const life = 15 * time.Second
	begun := time.Now()
	shortLived := java(t, k, k.LoginFor(users, "alice", life), "alice", "token", "HTTP/localhost@"+realm)
	const failure = "GSSException: Failure unspecified at GSS-API level (Mechanism level: "

	t.Run("a replayed token", func(t *testing.T) {
		for _, form := range [][]string{nil, {"spnego"}} {
			one := token("HTTP/localhost@"+realm, form...)
			if status, body := s.send(http.MethodGet, one); status != http.StatusOK {
				t.Fatalf("a fresh token: %d %s", status, body)
			}
			refused(t, s, http.MethodGet, one, http.StatusForbidden, failure+"Request is a replay (34))",
				"the same token came twice")
			refused(t, s, http.MethodOptions, one, http.StatusForbidden, failure+"Request is a replay (34))",
				"the same token came twice")
		}
	})
	t.Run("a ticket for another service", func(t *testing.T) {
		refused(t, s, http.MethodGet, token("ftp/localhost@"+realm), http.StatusForbidden,
			"GSSException: No valid credentials provided",
			"the ticket of alice@EXAMPLE.COM is for ftp/localhost@EXAMPLE.COM")
	})
	t.Run("a principal that no rule names", func(t *testing.T) {
		foo := java(t, k, k.Login(users, "foo/localhost"), "foo/localhost", "token", "HTTP/localhost@"+realm)
		refused(t, s, http.MethodGet, foo, http.StatusInternalServerError,
			"org.apache.hadoop.security.authentication.util.KerberosName$NoMatchingRule: No rules applied to "+
				"foo/localhost@EXAMPLE.COM", "the ticket of foo/localhost@EXAMPLE.COM is good, but")
	})
	t.Run("a forged realm", func(t *testing.T) {
		// A KDC of an attacker, with the same realm name.
		evil := kdctest.StartRealm(t, realm)
		own := evil.Keytab("own.keytab", "hdfs", "HTTP/localhost")
		forged := java(t, evil, evil.Login(own, "hdfs"), "hdfs", "token", "HTTP/localhost@"+realm)
		refused(t, s, http.MethodGet, forged, http.StatusForbidden, failure+"Checksum failed",
			"the keytab lacks the key")
		other := kdctest.StartRealm(t, "EVIL.ORG")
		own = other.Keytab("own.keytab", "alice", "HTTP/localhost")
		forged = java(t, other, other.Login(own, "alice"), "alice", "token", "HTTP/localhost@EVIL.ORG")
		refused(t, s, http.MethodGet, forged, http.StatusForbidden, failure+"Checksum failed",
			"the keytab lacks the key")
	})
	t.Run("an expired ticket", func(t *testing.T) {
		strict := startKMS(t, k, k.Conf("strict.conf", time.Second), keytab)
		time.Sleep(time.Until(begun.Add(life + 2*time.Second))) // the clock of another process decides
		refused(t, strict, http.MethodGet, shortLived, http.StatusForbidden, failure+"Ticket expired (32))",
			"the client must log in again")
	})
	t.Run("a key that has changed", func(t *testing.T) {
		k.Admin("change_password -randkey HTTP/localhost")
		refused(t, s, http.MethodGet, java(t, k, k.LoginFor(users, "alice", 30*time.Minute), "alice", "token",
			"HTTP/localhost@"+realm), http.StatusForbidden, failure+"Checksum failed", "the keytab lacks the key")
		// The server reads the new key from the keytab without a restart.
		k.Admin("ktadd -norandkey -k " + keytab + " HTTP/localhost")
		if status, body := s.send(http.MethodGet, java(t, k, k.LoginFor(users, "alice", 29*time.Minute), "alice",
			"token", "HTTP/localhost@"+realm)); status != http.StatusOK {
			t.Errorf("after the keytab got the new key: %d %s", status, body)
		}
	})
}

// readyz returns whether the server says that it is ready, and the fault of one check.
func (s *kms) readyz(check string) (ready bool, wrong string) {
	s.t.Helper()
	r, err := http.Get(strings.TrimSuffix(s.url, "/kms") + "/readyz") //nolint:noctx // of a server of this test
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	var answer struct {
		Ready  bool
		Checks []struct{ Name, Error string }
	}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		s.t.Fatal(err)
	}
	for _, c := range answer.Checks {
		if c.Name == check {
			return answer.Ready, c.Error
		}
	}
	s.t.Fatalf("/readyz has no check %q", check)
	return false, ""
}

// keytabKMS is a KMS whose keytab the test changes.
type keytabKMS struct {
	t             *testing.T
	realm         *kdctest.KDC
	kms           *kms
	keytab, users string
	life          time.Duration
}

// put replaces the keytab.
func (l *keytabKMS) put(from string) {
	t := l.t
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(l.keytab, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// login logs alice in with a new ticket.
func (l *keytabKMS) login() (status int, body string) {
	t := l.t
	t.Helper()
	l.life -= time.Minute // a new ticket file: its ticket has the KDC's current key
	i, err := gssapi.NewInitiator(gssapi.InitiatorConfig{CCache: "FILE:" + l.realm.LoginFor(l.users, "alice", l.life),
		Target: "HTTP@localhost", SPNEGO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = i.Close() }()
	token, _, err := i.Step(nil)
	if err != nil {
		t.Fatal(err)
	}
	return l.kms.send(http.MethodGet, base64.StdEncoding.EncodeToString(token))
}

// check waits until a check of /readyz has a result. The server keeps a result for a second.
func (l *keytabKMS) check(what, name string, ready bool, want string) {
	t := l.t
	t.Helper()
	var got string
	var is bool
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		is, got = l.kms.readyz(name)
		if is == ready && (want == "") == (got == "") && strings.Contains(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: ready is %v, check %s says %q; want %v and %q", what, is, name, got, ready, want)
		}
	}
}

// TestReadinessOfLogins: a server at which no client can log in is not ready, because of its keytab or because the
// last logins failed. Its refusals name no file of its host.
func TestReadinessOfLogins(t *testing.T) {
	hadoop.Require(t)
	k := kdctest.StartRealm(t, realm)
	keytab := filepath.Join(k.Dir, "served.keytab")
	good := k.Keytab("good.keytab", "HTTP/localhost")
	l := &keytabKMS{t: t, realm: k, keytab: keytab, users: k.Keytab("users.keytab", "alice"), life: 30 * time.Minute}
	l.put(good)
	l.kms = startKMS(t, k, k.Krb5Conf, keytab)
	t.Setenv("KRB5_CONFIG", k.Krb5Conf)
	check, login, put := l.check, l.login, l.put
	if status, body := login(); status != http.StatusOK {
		t.Fatalf("a good login: %d %s", status, body)
	}
	check("at first", "keytab", true, "")
	check("at first", "logins of clients", true, "")

	for what, change := range map[string]struct {
		do   func()
		want string
	}{
		"removed":         {func() { _ = os.Remove(keytab) }, "no such file"},
		"emptied":         {func() { _ = os.Truncate(keytab, 0) }, keytab},
		"another service": {func() { put(k.Keytab("other.keytab", "ftp/localhost")) }, "has no key of HTTP/localhost"},
	} {
		change.do()
		status, body := login()
		if status != http.StatusForbidden || strings.Contains(body, keytab) ||
			strings.Contains(body, filepath.Base(keytab)) {
			t.Errorf("keytab %s: %d %s", what, status, body)
		}
		check("keytab "+what, "keytab", false, change.want)
		put(good)
		check("keytab "+what+", put back", "keytab", true, "")
		if status, body := login(); status != http.StatusOK {
			t.Errorf("keytab %s, put back: %d %s", what, status, body)
		}
	}

	// The KDC has a newer key than the keytab. The keytab has the service, but no client can log in.
	k.Admin("change_password -randkey HTTP/localhost")
	for range 3 {
		check("before three refusals", "logins of clients", true, "")
		if status, _ := login(); status != http.StatusForbidden {
			t.Fatalf("a ticket by a key that the keytab lacks: %d", status)
		}
	}
	check("a key version that the keytab lacks", "keytab", true, "")
	check("a key version that the keytab lacks", "logins of clients", true, "the keytab lacks the key")
	k.Admin("ktadd -norandkey -k " + keytab + " HTTP/localhost")
	if status, body := login(); status != http.StatusOK {
		t.Fatalf("with the new key: %d %s", status, body)
	}
	check("with the new key", "logins of clients", true, "")
}
