package authn_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger/authn"
)

// acceptor accepts the token "ticket of <principal>".
type acceptor struct{}

func (acceptor) Accept(token []byte) (client string, reply []byte, err error) {
	client, ok := strings.CutPrefix(string(token), "ticket of ")
	if !ok {
		return "", nil, &authn.NegotiationError{Reason: "GSSException: for the caller", Explanation: "for the operator",
			Err: errors.New("cause")}
	}
	return client, []byte("proof"), nil
}

func (acceptor) Check() error { return nil }

func newKerberos(t testing.TB, whitelist ...string) *authn.Kerberos {
	t.Helper()
	k, err := authn.NewKerberos(acceptor{}, whitelist)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rules(t testing.TB, text string) *authn.Rules {
	t.Helper()
	r, err := authn.ParseRules(text, authn.MechanismHadoop, "EXAMPLE.COM")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ticketOf(principal string) string {
	return "Negotiate " + base64.StdEncoding.EncodeToString([]byte("ticket of "+principal))
}

func negotiating(query, authorization string) authn.Request {
	r := request(query)
	r.Header = http.Header{"Authorization": {authorization}}
	return r
}

// TestKerberosCookiesOfJava: cookies that testdata/java/Cookies.java signed are accepted, and the same ticket gives a
// cookie with the same bytes.
func TestKerberosCookiesOfJava(t *testing.T) {
	data, err := os.ReadFile("testdata/java/cookies.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) != 6 {
		t.Fatalf("%d cookies", len(lines))
	}
	for i, who := range []string{"alice@EXAMPLE.COM", "nn/h1.example.com@EXAMPLE.COM", "ünï/x@EXAMPLE.COM"} {
		handler := newKerberos(t)
		if i == 2 {
			handler = authn.MultiScheme(handler)
		}
		conf := authn.Config{Handler: handler, Rules: rules(t, `RULE:[2:$1](nn)s/.*/hdfs/ DEFAULT`)}
		for j, idle := range []time.Duration{0, time.UnixMilli(1795475310857).Sub(someTime)} {
			conf.MaxInactive = idle
			a := newAuthenticator(t, conf)
			res := a.Authenticate(t.Context(), negotiating("", ticketOf(who)))
			if want := `hadoop.auth="` + lines[2*i+j] + `"; HttpOnly`; res.SetCookie != want {
				t.Errorf("Set-Cookie %q (%+v), want %q", res.SetCookie, res.Refusal, want)
			}
			if want := "Negotiate " + base64.StdEncoding.EncodeToString([]byte("proof")); res.ServerToken != want {
				t.Errorf("server's token %q, want %q", res.ServerToken, want)
			}
			res = a.Authenticate(t.Context(), request("", `hadoop.auth="`+lines[2*i+j]+`"`))
			if res.Principal == nil || res.Principal.Name != who || res.ServerToken != "" ||
				(res.SetCookie == "") != (idle == 0) {
				t.Errorf("%s: %+v, refusal %+v", lines[2*i+j], res, res.Refusal)
			}
		}
	}
}

// TestTokenInBase64: a token is decoded as hadoop-auth's decoder does. testdata/java/Base64.java wrote that decoder's
// results. (libhdfs3 uses the URL-safe alphabet.)
func TestTokenInBase64(t *testing.T) {
	data, err := os.ReadFile("testdata/java/base64.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) < 15 {
		t.Fatalf("only %d lines", len(lines))
	}
	for _, line := range lines {
		text, want, _ := strings.Cut(line, "\t")
		var got []byte
		k, err := authn.NewKerberos(acceptFunc(func(token []byte) { got = token }), nil)
		if err != nil {
			t.Fatal(err)
		}
		newAuthenticator(t, authn.Config{Handler: k}).Authenticate(t.Context(), negotiating("", "Negotiate "+text))
		if hex.EncodeToString(got) != want {
			t.Errorf("%s is decoded to %x, want %s", text, got, want)
		}
	}
}

type acceptFunc func(token []byte)

func (f acceptFunc) Accept(token []byte) (client string, reply []byte, err error) {
	f(token)
	return "alice@EXAMPLE.COM", nil, nil
}

func (acceptFunc) Check() error { return nil }

// TestKerberosRefusals: each refused login has Hadoop's reason, and the server's token if the ticket was accepted.
func TestKerberosRefusals(t *testing.T) {
	a := newAuthenticator(t, authn.Config{Handler: newKerberos(t, "/jmx"),
		Rules: rules(t, `RULE:[2:$1](odd)s/odd// RULE:[2:$1](amp)s/amp/a&b/ DEFAULT`)})
	good := "u=alice&p=alice@EXAMPLE.COM&t=kerberos-dt&e=1795478610857"
	for _, c := range []struct {
		name, query, authorization, cookie string
		kind                               authn.RefusalKind
		reason                             string
		replied                            bool
	}{
		{"no credential", "", "", "", authn.Unauthenticated, "Authentication required", false},
		{"user.name", "user.name=alice", "", "", authn.Unauthenticated, "Authentication required", false},
		{"another scheme", "", "Basic YTpi", "", authn.Unauthenticated, "Authentication required", false},
		{"lower case", "", "negotiate" + strings.TrimPrefix(ticketOf("alice@EXAMPLE.COM"), "Negotiate"), "",
			authn.Unauthenticated, "Authentication required", false},
		{"no token", "", "Negotiate", "", authn.BadTicket, "java.nio.BufferUnderflowException", false},
		{"not base64", "", "Negotiate ?", "", authn.BadTicket, "java.nio.BufferUnderflowException", false},
		{"refused", "", "Negotiate AAAA", "", authn.BadTicket, "GSSException: for the caller", false},
		{"refused, with an old cookie", "", "Negotiate AAAA", "hadoop.auth=" +
			javaSecret.sign(strings.Replace(good, "1795478610857", "1", 1)), authn.BadTicket,
			"GSSException: for the caller", false},
		{"no rule", "", ticketOf("alice@OTHER.ORG"), "", authn.NoShortName,
			"org.apache.hadoop.security.authentication.util.KerberosName$NoMatchingRule: No rules applied to " +
				"alice@OTHER.ORG",
			true},
		{"three components", "", ticketOf("a/b/c@EXAMPLE.COM"), "", authn.BadTicket,
			"java.lang.IllegalArgumentException: Malformed Kerberos name: a/b/c@EXAMPLE.COM", true},
		{"a rule makes an empty name", "", ticketOf("odd/x@EXAMPLE.COM"), "", authn.BadTicket,
			"java.lang.IllegalArgumentException: userName is NULL, empty or contains a '&'", true},
		{"a rule makes a name that breaks a cookie", "", ticketOf("amp/x@EXAMPLE.COM"), "", authn.BadTicket,
			"java.lang.IllegalArgumentException: userName is NULL, empty or contains a '&'", true},
		{"line break", "", ticketOf("a\nb@EXAMPLE.COM"), "", authn.BadTicket,
			"java.lang.IllegalArgumentException: userName is NULL, empty or contains a '&'", true},
		{"cookie of type simple", "", "", "hadoop.auth=" +
			javaSecret.sign(strings.Replace(good, "kerberos-dt", "simple-dt", 1)),
			authn.Unauthenticated, "Invalid AuthenticationToken type", false},
		{"cookie of multi-scheme", "", "", "hadoop.auth=" +
			javaSecret.sign(strings.Replace(good, "kerberos-dt", "kerberos", 1)),
			authn.Unauthenticated, "Invalid AuthenticationToken type", false},
		{"expired cookie", "", "", "hadoop.auth=" + javaSecret.sign(strings.Replace(good, "1795478610857", "1", 1)),
			authn.Unauthenticated, "AuthenticationToken expired", false},
		{"foreign cookie", "", "", "hadoop.auth=" + fixedSecret("another").sign(good), authn.Unauthenticated,
			"org.apache.hadoop.security.authentication.util.SignerException: Invalid signature", false},
	} {
		r := negotiating(c.query, c.authorization)
		if c.cookie != "" {
			r.Header.Set("Cookie", c.cookie)
		}
		res := a.Authenticate(t.Context(), r)
		if res.Refusal == nil || res.Refusal.Kind != c.kind || res.Refusal.Reason != c.reason {
			t.Errorf("%s: %+v, refusal %+v", c.name, res, res.Refusal)
			continue
		}
		if want := c.kind == authn.Unauthenticated; slices.Equal(res.Refusal.Challenges,
			[]string{"Negotiate"}) != want {
			t.Errorf("%s: challenges %q", c.name, res.Refusal.Challenges)
		}
		if want := c.kind != authn.NoShortName; (res.SetCookie == "hadoop.auth=; HttpOnly") != want {
			t.Errorf("%s: Set-Cookie %q", c.name, res.SetCookie)
		}
		if (res.ServerToken != "") != c.replied {
			t.Errorf("%s: server's token %q", c.name, res.ServerToken)
		}
		if c.reason == "GSSException: for the caller" && res.Refusal.Explanation != "for the operator" {
			t.Errorf("%s: explanation %q", c.name, res.Refusal.Explanation)
		}
	}

	// A good ticket is accepted although the cookie is invalid, and a new cookie is set.
	r := negotiating("", ticketOf("alice@EXAMPLE.COM"))
	r.Header.Set("Cookie", "hadoop.auth=x")
	if res := a.Authenticate(t.Context(), r); res.Principal == nil || res.Principal.Short != "alice" ||
		!strings.Contains(res.SetCookie, "u=alice&p=alice@EXAMPLE.COM&t=kerberos-dt&") {
		t.Errorf("a ticket beside a bad cookie: %+v, refusal %+v", res, res.Refusal)
	}
}

// TestKerberosWhitelist: the whitelist applies to a servlet's exact path.
func TestKerberosWhitelist(t *testing.T) {
	a := newAuthenticator(t, authn.Config{Handler: newKerberos(t, "/jmx")})
	for path, anonymous := range map[string]bool{"/jmx": true, "/jmx2": false, "/jmx/x": false, "/kms/jmx": false,
		"/kms/v1/jmx": false} {
		r := negotiating("", "")
		r.Path = path
		if res := a.Authenticate(t.Context(), r); res.Anonymous != anonymous {
			t.Errorf("%s: anonymous is %v", path, res.Anonymous)
		}
	}
	for _, path := range []string{"jmx", "/", "/kms/jmx", "/a-b", ""} {
		if _, err := authn.NewKerberos(acceptor{}, []string{path}); err == nil {
			t.Errorf("%q is accepted as a servlet", path)
		}
	}
}

// refusing refuses each token except "good", like a server with a wrong keytab.
type refusing struct{ serverSide bool }

var errCause = errors.New("cause")

func (n refusing) Accept(token []byte) (client string, reply []byte, err error) {
	if string(token) == "good" {
		return "alice@EXAMPLE.COM", nil, nil
	}
	return "", nil, &authn.NegotiationError{Reason: "Checksum failed", Explanation: "the keytab lacks the key",
		ServerSide: n.serverSide, Err: errCause}
}

func (refusing) Check() error { return errors.New("no keytab") }

// TestCheckLogins: CheckLogins reports refusals that may be the server's fault, until a login is accepted. It never
// reports refusals that are only the client's fault.
func TestCheckLogins(t *testing.T) {
	k, err := authn.NewKerberos(refusing{serverSide: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthenticator(t, authn.Config{Handler: authn.MultiScheme(k), Rules: rules(t, "DEFAULT")})
	login := func(a *authn.Authenticator, token string) {
		a.Authenticate(t.Context(), negotiating("", "Negotiate "+base64.StdEncoding.EncodeToString([]byte(token))))
	}
	for i := range 3 {
		if err := k.CheckLogins(); err != nil {
			t.Fatalf("after %d refusals: %v", i, err)
		}
		login(a, "bad")
	}
	if err := k.CheckLogins(); err == nil || !strings.Contains(err.Error(), "the last 3 logins") ||
		!strings.Contains(err.Error(), "the keytab lacks the key") || !errors.Is(err, errCause) {
		t.Errorf("after three refusals: %v", err)
	}
	login(a, "good")
	login(a, "bad")
	if err := k.CheckLogins(); err != nil {
		t.Errorf("after an accepted login: %v", err)
	}
	if err := k.CheckKeytab(); err == nil || err.Error() != "no keytab" {
		t.Errorf("CheckKeytab: %v", err)
	}

	k, err = authn.NewKerberos(refusing{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a = newAuthenticator(t, authn.Config{Handler: k, Rules: rules(t, "DEFAULT")})
	for range 5 {
		login(a, "bad")
	}
	if err := k.CheckLogins(); err != nil {
		t.Errorf("after refusals that are the client's fault: %v", err)
	}
}

// TestCheckLoginsSince: CheckLogins says when the first of the refused logins was.
func TestCheckLoginsSince(t *testing.T) {
	k, err := authn.NewKerberos(refusing{serverSide: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthenticator(t, authn.Config{Handler: k, Rules: rules(t, "DEFAULT")})
	synctest.Test(t, func(t *testing.T) {
		first := time.Now().UTC().Format(time.RFC3339)
		for range 3 {
			a.Authenticate(t.Context(), negotiating("", "Negotiate YmFk"))
			time.Sleep(time.Minute)
		}
		if err := k.CheckLogins(); err == nil || !strings.Contains(err.Error(), "since "+first) {
			t.Errorf("%v, want since %s", err, first)
		}
	})
}

// TestNoDelegator: a caller that no handler authenticates gets Hadoop's text, which depends on the handler.
func TestNoDelegator(t *testing.T) {
	tokens, err := authn.NewDelegations(authn.DelegationConfig{KeyUpdate: time.Hour, MaxLife: time.Hour,
		Renewal: time.Hour, Scan: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for want, handler := range map[string]authn.Handler{"Unauthorized": newKerberos(t), "Forbidden": authn.Simple{}} {
		a := newAuthenticator(t, authn.Config{Handler: handler, Delegations: tokens, Rules: rules(t, "DEFAULT")})
		res, _ := a.Delegation(t.Context(), "GET", request("op=GETDELEGATIONTOKEN"))
		if res.Refusal == nil || res.Refusal.Kind != authn.NoDelegator || res.Refusal.Reason != want {
			t.Errorf("%+v, want %s", res.Refusal, want)
		}
	}
}

// TestKerberosDoAs: the rules also apply to the user in doAs.
func TestKerberosDoAs(t *testing.T) {
	proxies, _ := authn.NewProxyUsers(map[string]string{"oozie.users": "*", "oozie.hosts": "*"}, nil, nil)
	a := newAuthenticator(t, authn.Config{Handler: newKerberos(t), ProxyUsers: proxies,
		Rules: rules(t, `RULE:[1:$1](root)s/.*/nobody/ DEFAULT`)})
	for doAs, want := range map[string]string{
		"alice":               "alice = alice via oozie/h@EXAMPLE.COM",
		"alice%40EXAMPLE.COM": "alice@EXAMPLE.COM = alice via oozie/h@EXAMPLE.COM",
		"root%40EXAMPLE.COM":  "root@EXAMPLE.COM = nobody via oozie/h@EXAMPLE.COM",
		"foo%2Fbar": "Illegal principal name foo/bar: " +
			"org.apache.hadoop.security.authentication.util.KerberosName$NoMatchingRule: No rules applied to foo/bar",
		"a%40b%40c": "Malformed Kerberos name: a@b@c",
	} {
		res := a.Authenticate(t.Context(), negotiating("doAs="+doAs, ticketOf("oozie/h@EXAMPLE.COM")))
		var got string
		if res.Refusal != nil {
			got = res.Refusal.Reason
		} else {
			got = res.Principal.Name + " = " + res.Principal.Short + " via " + res.Principal.Real.Name
		}
		if got != want {
			t.Errorf("doAs=%s: %s, want %s", doAs, got, want)
		}
		if !strings.Contains(res.SetCookie, "u=oozie&p=oozie/h@EXAMPLE.COM&t=kerberos-dt&") {
			t.Errorf("doAs=%s: Set-Cookie %q", doAs, res.SetCookie)
		}
	}
}

// TestSchemes: the schemes of multi-scheme authentication are parsed, and only Negotiate with Kerberos is supported.
func TestSchemes(t *testing.T) {
	for list, want := range map[string]string{"negotiate": "Negotiate", " BASIC, negotiate ,": "Basic Negotiate",
		"": "", "digest,kerberos": "", "basic,Basic": ""} {
		got, err := authn.ParseSchemes(list)
		if strings.Join(got, " ") != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", list, got, err)
		}
	}
	for _, c := range []struct{ scheme, handler, want string }{
		{"Negotiate", "kerberos", ""},
		{"Negotiate", "org.apache.hadoop.security.authentication.server.KerberosAuthenticationHandler", ""},
		{"Negotiate", "simple", "it must be kerberos"},
		{"Negotiate", "", "no handler is configured for scheme Negotiate"},
		{"Basic", "ldap", "passwords checked by LDAP are not supported"},
		{"Basic", "org.apache.hadoop.security.authentication.server.LdapAuthenticationHandler",
			"passwords checked by LDAP are not supported"},
		{"Digest", "kerberos", "scheme Digest is not supported"},
	} {
		err := authn.CheckScheme(c.scheme, c.handler)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %q: %v, want %q", c.scheme, c.handler, err, c.want)
		}
	}
}
