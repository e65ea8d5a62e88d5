package authn_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"html"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/authn"
	"claviger/secret"
)

// fixedSecret is a provider of one secret.
type fixedSecret string

func (f fixedSecret) Secrets() (secret.Bytes, []secret.Bytes) {
	return secret.Bytes(f), []secret.Bytes{secret.Bytes(f)}
}

func (f fixedSecret) sign(text string) string {
	mac := hmac.New(sha256.New, []byte(f))
	mac.Write([]byte(text))
	return text + "&s=" + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// invalidCookie has the recordings whose cookie was changed, or signed with an expired secret.
var invalidCookie = map[string]bool{
	"auth-cookie-bad-signature": true, "auth-cookie-bad-signature-options": true, "auth-cookie-bad-with-username": true,
	"auth-token-type": true, "auth-cookie-garbage": true, "auth-cookie-unsigned": true, "auth-cookie-empty-value": true,
	"expired-cookie-secret-rolled": true,
}

// actsAs has the user and the real user of each recorded request. The recordings show it only by what was allowed.
var actsAs = map[string]string{
	"auth-cookie": "alice", "auth-cookie-and-username": "alice", "auth-cookie-bad-with-username": "alice",
	"auth-two-cookies": "alice", "auth-cookie-unquoted": "alice", "auth-other-cookies": "alice",
	"auth-username-get": "alice", "auth-username-options": "alice",
	"auth-username-slash-realm": "alice/h1@EXAMPLE.COM", "cookie-attributes": "alice",
	"expired-cookie-with-username": "alice",
	"doas-allowed":                 "alice via migr", "doas-case": "alice via migr", "doas-twice": "alice via migr",
	"doas-options-allowed": "alice via migr", "doas-username": "alice via migr",
	"anonymous-get": "anonymous", "anonymous-options": "anonymous",
}

var (
	recordedCookie = regexp.MustCompile(`(u=[^;"]*?&e=(\d+))&s=[^;"\s]*`)
	volatile       = regexp.MustCompile(`&e=\d+&s=[A-Za-z0-9+/=]{44}`)
	expires        = regexp.MustCompile(`Expires=\w{3}, \d\d-\w{3}-\d{4} \d\d:\d\d:\d\d GMT`)
	errorPage      = regexp.MustCompile(`<tr><th>MESSAGE:</th><td>java\.lang\.IllegalArgumentException: (.*)</td></tr>`)
	remoteMessage  = regexp.MustCompile(`"message" : "(.*)"`)
)

// TestAsRecorded: the answers to recorded requests are those of the recorded Java KMS. The secret of that KMS is not
// known, so valid cookies are signed again with another secret first.
func TestAsRecorded(t *testing.T) {
	files, err := filepath.Glob("testdata/wire/*.http")
	if err != nil || len(files) < 45 {
		t.Fatalf("%d recordings, %v", len(files), err)
	}
	const key = fixedSecret("the server's secret")
	proxyUsers, _ := authn.NewProxyUsers(map[string]string{
		"migr.users": "alice,bob", "migr.hosts": "127.0.0.1",
		"hdfs.users": "*", "hdfs.hosts": "*",
		"far.users": "*", "far.hosts": "10.1.2.3",
	}, nil, slog.New(slog.DiscardHandler))
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".http")
		t.Run(name, func(t *testing.T) {
			now := time.UnixMilli(1795400000000) // before any recorded cookie expires
			req, resp, body := readRecording(t, file, func(text string) string {
				m := recordedCookie.FindAllStringSubmatch(text, -1)
				if m != nil && strings.HasPrefix(name, "expired") {
					e, _ := strconv.ParseInt(m[0][2], 10, 64)
					now = time.UnixMilli(e + 1)
				}
				if invalidCookie[name] {
					return text
				}
				return recordedCookie.ReplaceAllStringFunc(text, func(s string) string {
					return key.sign(recordedCookie.FindStringSubmatch(s)[1])
				})
			})
			conf := authn.Config{Validity: 10 * time.Hour, Secrets: key, ProxyUsers: proxyUsers,
				Now: func() time.Time { return now }}
			conf.Handler = authn.Simple{Anonymous: strings.HasPrefix(name, "anonymous") || name == "cookie-attributes"}
			if name == "cookie-attributes" {
				conf.Cookie = authn.CookieAttributes{Domain: "localhost", Path: "/kms", Persistent: true}
			}
			a, err := authn.New(conf)
			if err != nil {
				t.Fatal(err)
			}
			res := a.Authenticate(t.Context(), authn.RequestOf(req))
			compareHeaders(t, res, resp)
			compareRefusal(t, res, resp, body)
			if who := userOf(res); who != actsAs[name] {
				t.Errorf("acts as %q, want %q", who, actsAs[name])
			}
		})
	}
}

// compareHeaders compares the cookie, without its time and signature, and the challenge.
func compareHeaders(t *testing.T, res authn.Result, resp *http.Response) {
	t.Helper()
	mask := func(cookie string) string {
		return expires.ReplaceAllString(volatile.ReplaceAllString(cookie, "&e=E&s=S"), "Expires=D")
	}
	if got, want := mask(res.SetCookie), mask(resp.Header.Get("Set-Cookie")); got != want {
		t.Errorf("Set-Cookie %q, want %q", got, want)
	}
	challenge := ""
	if res.Refusal != nil {
		challenge = strings.Join(res.Refusal.Challenges, ", ")
	}
	if want := resp.Header.Get("WWW-Authenticate"); challenge != want {
		t.Errorf("challenge %q, want %q", challenge, want)
	}
}

// compareRefusal compares the refusal with the status and the message of the answer.
func compareRefusal(t *testing.T, res authn.Result, resp *http.Response, body string) {
	t.Helper()
	reason, kind := "", authn.RefusalKind(-1)
	if res.Refusal != nil {
		reason, kind = res.Refusal.Reason, res.Refusal.Kind
	}
	wantReason, wantKind := "", authn.RefusalKind(-1)
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		wantReason, wantKind = strings.TrimPrefix(resp.Status, "401 "), authn.Unauthenticated
	case resp.StatusCode == http.StatusForbidden:
		wantReason, wantKind = remoteMessage.FindStringSubmatch(body)[1], authn.NotAllowed
	case resp.StatusCode == http.StatusInternalServerError && !res.Anonymous:
		wantReason, wantKind = html.UnescapeString(errorPage.FindStringSubmatch(body)[1]), authn.Malformed
	}
	if reason != wantReason || kind != wantKind {
		t.Errorf("refusal kind %d %q, want %d %q", kind, reason, wantKind, wantReason)
	}
}

// userOf returns the user of a result in the form of actsAs.
func userOf(res authn.Result) string {
	switch {
	case res.Anonymous:
		return "anonymous"
	case res.Principal != nil && res.Principal.Real != nil:
		return res.Principal.Name + " via " + res.Principal.Real.Name
	case res.Principal != nil:
		return res.Principal.Name
	}
	return ""
}

// readRecording reads a request and its answer; edit may change the request.
func readRecording(t *testing.T, file string, edit func(string) string) (*http.Request, *http.Response, string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for bytes.HasPrefix(data, []byte("#")) {
		_, data, _ = bytes.Cut(data, []byte("\n"))
	}
	cut := bytes.Index(data, []byte("\nHTTP/1.1 "))
	head := regexp.MustCompile(`Content-Length: \d+\n`).ReplaceAllString(edit(string(data[:cut+1])), "")
	head = strings.TrimRight(head, "\n") + "\n\n"
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(head, "\n", "\r\n"))))
	if err != nil {
		t.Fatalf("%v in %q", err, head)
	}
	req.RemoteAddr = "127.0.0.1:40000"
	answer := regexp.MustCompile(`(Transfer-Encoding|Content-Length): .*\n`).ReplaceAll(data[cut+1:], nil)
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return req, resp, string(body)
}
