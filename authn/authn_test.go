package authn_test

import (
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/authn"
)

// javaSecret is the secret with which the Signer of hadoop-auth 3.4.2 signed javaTokens.
const javaSecret = fixedSecret("a secret of the test\n")

var javaTokens = []string{
	`u=alice&p=alice/h1@EXAMPLE.COM&t=simple-dt&e=1795478610857&s=rjb5ej+4b+MTv1c6CAj+BgPSvgHf+/Iv8LyF6O3czXE=`,
	`u=ünïcode&p=ünïcode&t=simple-dt&e=1795478610857&s=GINYeQ46MwcnXRSbgiLTY6VDOnvWWj/4S1++6ya9AC0=`,
}

var someTime = time.UnixMilli(1795478610857).Add(-time.Hour)

func newAuthenticator(t testing.TB, conf authn.Config) *authn.Authenticator {
	t.Helper()
	if conf.Secrets == nil {
		conf.Secrets = javaSecret
	}
	if conf.Validity == 0 {
		conf.Validity = time.Hour
	}
	if conf.Now == nil {
		conf.Now = func() time.Time { return someTime }
	}
	a, err := authn.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func request(query string, cookies ...string) authn.Request {
	return authn.Request{Header: http.Header{"Cookie": cookies}, RawQuery: query,
		RemoteIP: netip.MustParseAddr("127.0.0.1")}
}

// TestCookiesOfJava: cookies that hadoop-auth signed are accepted, with and without quotes, and ours have the same
// bytes.
func TestCookiesOfJava(t *testing.T) {
	a := newAuthenticator(t, authn.Config{})
	for i, want := range []string{"alice/h1@EXAMPLE.COM", "ünïcode"} {
		for _, quote := range []string{``, `"`} {
			res := a.Authenticate(t.Context(), request("", "hadoop.auth="+quote+javaTokens[i]+quote))
			if res.Principal == nil || res.Principal.Name != want || res.SetCookie != "" {
				t.Errorf("%s: %+v, refusal %+v", javaTokens[i], res, res.Refusal)
			}
		}
	}
	// Go's cookie has the same bytes.
	res := a.Authenticate(t.Context(), request("user.name="+url.QueryEscape("ünïcode")))
	if want := `hadoop.auth="` + javaTokens[1] + `"; HttpOnly`; res.SetCookie != want {
		t.Errorf("Set-Cookie %q, want %q", res.SetCookie, want)
	}
	if res := a.Authenticate(t.Context(), request("", "hadoop.auth="+javaTokens[0])); res.Principal.Short != "alice" {
		t.Errorf("short name %q", res.Principal.Short)
	}
}

// TestCookieFaults: a wrong cookie is refused with hadoop-auth's reason, and the answer removes the cookie.
func TestCookieFaults(t *testing.T) {
	a := newAuthenticator(t, authn.Config{})
	const signer = "org.apache.hadoop.security.authentication.util.SignerException: "
	good := "u=alice&p=alice&t=simple-dt&e=1795478610857"
	for _, c := range []struct{ cookie, want string }{
		{"hadoop.auth=", "Unauthorized access"},
		{`hadoop.auth=""`, "Authentication required"},
		{"Hadoop.Auth=" + javaSecret.sign(good), "Authentication required"},
		{"xhadoop.auth=" + javaSecret.sign(good), "Authentication required"},
		{"hadoop.auth", "Authentication required"},
		{`x="; hadoop.auth=` + javaSecret.sign(good) + `"`, "Authentication required"}, // in another cookie's quotes
		{"hadoop.auth=" + good, signer + "Invalid signed text: " + good},
		{"hadoop.auth=" + good + "&s=", signer + "Invalid signature"},
		{"hadoop.auth=" + javaSecret.sign(good) + "=", signer + "Invalid signature"},
		{"hadoop.auth=" + fixedSecret("another").sign(good), signer + "Invalid signature"},
		{"hadoop.auth=" + strings.TrimRight(javaSecret.sign(good), "="), signer + "Invalid signature"},
		{"hadoop.auth=" + good + "&s=x&s=" + strings.SplitAfter(javaSecret.sign(good), "&s=")[1], signer +
			"Invalid signature"},
		{"hadoop.auth=" + javaSecret.sign("u=alice&p=alice&t=kerberos-dt&e=1795478610857"),
			"Invalid AuthenticationToken type"},
		{"hadoop.auth=" + javaSecret.sign("u=alice&p=alice&t=simple&e=1795478610857"),
			"Invalid AuthenticationToken type"},
		{"hadoop.auth=" + javaSecret.sign("u=alice&p=alice&t=simple-dt&e=1"), "AuthenticationToken expired"},
		{"hadoop.auth=" + javaSecret.sign("u=alice&p=alice&t=simple-dt&i=5&e=1795478610857"),
			"AuthenticationToken expired"},
		{"hadoop.auth=" + javaSecret.sign("u=alice&p=alice&t=simple-dt"), "Invalid token string, missing attributes"},
		{"hadoop.auth=" + javaSecret.sign("u=alice&p=alice&t=simple-dt&e=1795478610857&x"),
			"Invalid authentication token"},
		{"hadoop.auth=" + javaSecret.sign("u=&p=&t=simple-dt&e=1795478610857"), "userName is NULL, empty or " +
			"contains a '&'"},
		{"hadoop.auth=" + javaSecret.sign("u=alice&p=alice&t=simple-dt&e=y"), `For input string: "y"`},
	} {
		res := a.Authenticate(t.Context(), request("", c.cookie))
		if res.Refusal == nil || res.Refusal.Reason != c.want || res.Refusal.Kind != authn.Unauthenticated ||
			!slices.Equal(res.Refusal.Challenges, []string{authn.PseudoAuth}) {
			t.Errorf("%s: %+v, refusal %+v, want %q", c.cookie, res, res.Refusal, c.want)
		}
		if res.SetCookie != "hadoop.auth=; HttpOnly" {
			t.Errorf("%s: Set-Cookie %q", c.cookie, res.SetCookie)
		}
	}
	// A good cookie in a second header, after others.
	if res := a.Authenticate(t.Context(),
		request("", "a=b", `c="d;e" ; hadoop.auth = "`+javaSecret.sign(good)+`" ;f=g`)); res.Principal == nil {
		t.Errorf("refused: %+v", res.Refusal)
	}
}

// TestUserName: the parameter user.name is decoded and checked as Hadoop's pseudo authentication does it.
func TestUserName(t *testing.T) {
	a := newAuthenticator(t, authn.Config{})
	for _, c := range []struct{ query, name, short, refused string }{
		{"user.name=alice", "alice", "alice", ""},
		{"a=b&user.name=alice&user.name=bob", "alice", "alice", ""},
		{"a=b;user.name=alice", "alice", "alice", ""},
		{"user%2Ename=a+b%20c", "a b c", "a b c", ""},
		{"user.name=%zz", "%zz", "%zz", ""},
		{"user.name=a+%zz%41%4", "a %zzA%4", "a %zzA%4", ""},
		{"user.name=a%+1", "a% 1", "a% 1", ""},
		{"user.name=a=b", "a=b", "a=b", ""},
		{"&&=x&user.name=a", "a", "a", ""},
		{"user.name&user.name=alice", "", "", "Authentication required"},
		{"user.name=alice@EXAMPLE.COM", "alice@EXAMPLE.COM", "alice", ""},
		{"user.name=nn/h1", "nn/h1", "nn", ""},
		{"user.name=a/b/c", "a/b/c", "a/b/c", ""},
		{"user.name=a/b/c@R", "", "", "Malformed Kerberos name: a/b/c@R"},
		{"", "", "", "Authentication required"},
		{"user.name", "", "", "Authentication required"},
		{"User.Name=alice", "", "", "Authentication required"},
		{"user.name=", "", "", "userName is NULL, empty or contains a '&'"},
		{"user.name=a%26b", "", "", "userName is NULL, empty or contains a '&'"},
		{"user.name=a%0d%0aSet-Cookie:x", "", "", "userName is NULL, empty or contains a '&'"},
		{"user.name=a%22b", "", "", "userName is NULL, empty or contains a '&'"},
		{"user.name=a%c2%85b", "", "", "userName is NULL, empty or contains a '&'"},
		{"user.name=a%ffb", "", "", "userName is NULL, empty or contains a '&'"},
		{"user.name=" + strings.Repeat("a", 513), "", "", "userName is NULL, empty or contains a '&'"},
	} {
		res := a.Authenticate(t.Context(), request(c.query))
		switch {
		case c.refused != "":
			if res.Refusal == nil || res.Refusal.Reason != c.refused || res.Principal != nil {
				t.Errorf("%q: %+v, refusal %+v, want %q", c.query, res, res.Refusal, c.refused)
			}
		case res.Refusal != nil || res.Principal.Name != c.name || res.Principal.Short != c.short ||
			res.SetCookie == "":
			t.Errorf("%q: %+v, refusal %+v", c.query, res, res.Refusal)
		}
	}
}

// TestCookieLife: a request renews a cookie's time without use (i=), not its expiry (e=). A cookie that was not used in
// that time is refused.
func TestCookieLife(t *testing.T) {
	now := someTime
	clock := func() time.Time { return now }
	a := newAuthenticator(t, authn.Config{Now: clock, Validity: time.Hour, MaxInactive: time.Minute})
	res := a.Authenticate(t.Context(), request("user.name=alice"))
	cookie, _, _ := strings.Cut(res.SetCookie, ";")
	if !strings.Contains(cookie, "&i=1795475070857&e=1795478610857&s=") {
		t.Errorf("cookie %s", cookie)
	}
	now = now.Add(40 * time.Second)
	res = a.Authenticate(t.Context(), request("", cookie))
	if res.Principal == nil || !strings.Contains(res.SetCookie, "&i=1795475110857&e=1795478610857&s=") {
		t.Errorf("not renewed: %+v", res)
	}
	now = now.Add(21 * time.Second)
	if res := a.Authenticate(t.Context(), request("", cookie)); res.Refusal == nil ||
		res.Refusal.Reason != "AuthenticationToken expired" {
		t.Errorf("an idle cookie is accepted: %+v", res)
	}
	cookie, _, _ = strings.Cut(res.SetCookie, ";")
	if res := a.Authenticate(t.Context(), request("", cookie)); res.Principal == nil {
		t.Errorf("the renewed cookie is refused: %+v", res.Refusal)
	}
}

// TestSetCookie: the attributes of a new and of a removed cookie are those of the configuration, which may not contain
// a separator or a line end.
func TestSetCookie(t *testing.T) {
	a := newAuthenticator(t, authn.Config{Cookie: authn.CookieAttributes{Domain: "example.com", Path: "/kms",
		Persistent: true}})
	r := request("user.name=alice")
	r.HTTPS = true
	res := a.Authenticate(t.Context(), r)
	want := `hadoop.auth="` + javaSecret.sign("u=alice&p=alice&t=simple-dt&e=1795478610857") +
		`"; Path=/kms; Domain=example.com; Expires=Tue, 24-Nov-2026 00:03:30 GMT; Secure; HttpOnly`
	if res.SetCookie != want {
		t.Errorf("%s, want %s", res.SetCookie, want)
	}
	r.RawQuery = ""
	res = a.Authenticate(t.Context(), r)
	want = "hadoop.auth=; Path=/kms; Domain=example.com; Expires=Thu, 01-Jan-1970 00:00:00 GMT; Secure; HttpOnly"
	if res.SetCookie != want {
		t.Errorf("%s, want %s", res.SetCookie, want)
	}
	for _, c := range []authn.CookieAttributes{{Domain: "a;b"}, {Path: "/kms\r\nX: y"}, {Path: "/ü"}} {
		if _, err := authn.New(authn.Config{Secrets: javaSecret, Validity: time.Hour, Cookie: c}); err == nil ||
			!strings.Contains(err.Error(), "hadoop.kms.authentication.cookie.") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestRandomSecrets: secrets of one node roll over after each period. The secret of the period before is still valid.
func TestRandomSecrets(t *testing.T) {
	now := someTime
	s := authn.NewRandomSecrets(time.Hour, func() time.Time { return now })
	first, valid := s.Secrets()
	if len(first) != 32 || len(valid) != 1 || !valid[0].Equal(first) {
		t.Fatalf("%d bytes, %d valid", len(first), len(valid))
	}
	now = now.Add(time.Hour - time.Millisecond)
	if same, _ := s.Secrets(); !same.Equal(first) {
		t.Error("rolled too early")
	}
	now = now.Add(time.Millisecond)
	second, valid := s.Secrets()
	if second.Equal(first) || len(valid) != 2 || !valid[0].Equal(second) || !valid[1].Equal(first) {
		t.Error("not rolled, or the previous secret is not valid")
	}
	now = now.Add(90 * time.Minute)
	third, valid := s.Secrets()
	if third.Equal(second) || len(valid) != 2 || !valid[1].Equal(second) {
		t.Error("half a period late: the previous secret must still be valid")
	}
	now = now.Add(30 * time.Minute) // a late rollover does not move the end of the period
	fourth, valid := s.Secrets()
	if fourth.Equal(third) || !valid[1].Equal(third) {
		t.Error("the periods have shifted")
	}
	now = now.Add(5 * time.Hour)
	if _, valid := s.Secrets(); len(valid) != 1 || valid[0].Equal(fourth) {
		t.Error("a secret is valid for more than two periods")
	}
}

// TestFileSecret: the whole file is the secret, and is closed after it was read. An error names the file and the
// property.
func TestFileSecret(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s, err := authn.NewFileSecret(write("good", string(javaSecret)))
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthenticator(t, authn.Config{Secrets: s})
	if res := a.Authenticate(t.Context(), request("", "hadoop.auth="+javaTokens[0])); res.Principal == nil {
		t.Errorf("the newline at the end is not part of the secret: %+v", res.Refusal)
	}
	if open := openFiles(t); slices.Contains(open, filepath.Join(dir, "good")) {
		t.Error("the file stays open")
	}
	for path, want := range map[string]string{
		dir:                         "is a directory",
		filepath.Join(dir, "none"):  "no such file",
		write("empty", ""):          "is empty",
		write("binary", "\xff\xfe"): "is not UTF-8",
		write("long", strings.Repeat("x", 64<<10+1)): "is longer than",
	} {
		_, err := authn.NewFileSecret(path)
		if err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "signature.secret.file") ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// openFiles returns the paths of the files that this process has open.
func openFiles(t *testing.T) []string {
	t.Helper()
	const folder = "/proc/self/fd"
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Skip(err)
	}
	var paths []string
	for _, e := range entries {
		if path, err := os.Readlink(filepath.Join(folder, e.Name())); err == nil { // ReadDir's own file is closed
			paths = append(paths, path)
		}
	}
	return paths
}

// TestNewRefuses: New refuses a Config without secrets or without a validity.
func TestNewRefuses(t *testing.T) {
	if _, err := authn.New(authn.Config{Validity: time.Hour}); err == nil {
		t.Error("New accepts a Config without secrets")
	}
	if _, err := authn.New(authn.Config{Secrets: javaSecret}); err == nil ||
		!strings.Contains(err.Error(), "token.validity") {
		t.Errorf("validity 0: %v", err)
	}
}
