package authn

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger/secret"
)

// rollingSecret is a provider whose secrets the test sets.
type rollingSecret struct {
	valid atomic.Pointer[[]secret.Bytes]
}

func (r *rollingSecret) Secrets() (secret.Bytes, []secret.Bytes) {
	v := *r.valid.Load()
	return v[0], v
}

func (r *rollingSecret) set(names ...string) {
	var v []secret.Bytes
	for _, n := range names {
		v = append(v, secret.Bytes(n))
	}
	r.valid.Store(&v)
}

// TestRememberedCookies: a cookie that was opened is opened from memory, until it expires or other secrets are valid.
func TestRememberedCookies(t *testing.T) {
	now := time.UnixMilli(1795442630957)
	secrets := &rollingSecret{}
	secrets.set("first")
	a, err := New(Config{Validity: time.Hour, Secrets: secrets, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	open := func(cookie string) string {
		r := Request{Header: http.Header{"Cookie": {strings.TrimSuffix(cookie, "; HttpOnly")}}}
		res := a.Authenticate(t.Context(), r)
		if res.Refusal != nil {
			return res.Refusal.Reason
		}
		return res.Principal.Name
	}
	login := func() string { return a.Authenticate(t.Context(), Request{RawQuery: "user.name=alice"}).SetCookie }
	want := func(when, cookie, want string) {
		t.Helper()
		for range 3 {
			if got := open(cookie); !strings.HasSuffix(got, want) {
				t.Errorf("%s: %s, want %s", when, got, want)
			}
		}
	}
	cookie := login()
	want("new", cookie, "alice")
	if _, ok := a.signer.opened.Load().get(digestOf(strings.Trim(cookie[len(CookieName)+1:len(cookie)-10], `"`))); !ok {
		t.Error("the cookie is not remembered")
	}
	want("with another signature", strings.Replace(cookie, "&s=", "&s=A", 1), "Invalid signature")
	secrets.set("second", "first")
	want("after a roll", cookie, "alice")
	secrets.set("third", "second")
	want("after another roll", cookie, "Invalid signature")
	second := login()
	want("by the third secret", second, "alice")
	now = now.Add(time.Hour)
	want("at its end", second, "alice")
	now = now.Add(time.Millisecond)
	want("a millisecond later", second, "AuthenticationToken expired")
	if opened := a.signer.opened.Load(); bytes.Contains(fmt.Appendf(nil, "%+v", opened), []byte("&s=")) {
		t.Error("the memory holds a cookie")
	}
}

// TestRandomSecretsEndCookies: a remembered cookie is refused when its secret has expired, one period after the secret
// was replaced.
func TestRandomSecretsEndCookies(t *testing.T) {
	now := time.UnixMilli(1795442630957)
	clock := func() time.Time { return now }
	a, err := New(Config{Validity: 10 * time.Hour, Secrets: NewRandomSecrets(time.Hour, clock), Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	r := Request{Header: http.Header{"Cookie": {a.Authenticate(t.Context(),
		Request{RawQuery: "user.name=alice"}).SetCookie}}}
	for i, valid := range []bool{true, true, false} {
		if res := a.Authenticate(t.Context(), r); (res.Principal != nil) != valid {
			t.Errorf("after %d hours: %+v", i, res)
		}
		now = now.Add(time.Hour)
	}
}

// TestCookieWithoutShortName: a cookie with a good signature is refused each time if the rules map its principal to no
// user. Another node has other rules, or the rules have changed since.
func TestCookieWithoutShortName(t *testing.T) {
	rules, err := ParseRules("DEFAULT", MechanismHadoop, "EXAMPLE.COM")
	if err != nil {
		t.Fatal(err)
	}
	now := time.UnixMilli(1795442630957)
	a, err := New(Config{Validity: time.Hour, Secrets: oneSecret{}, Rules: rules, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for principal, known := range map[string]bool{"alice@EXAMPLE.COM": true, "alice@ELSEWHERE.COM": false} {
		tok := token{user: "alice", principal: principal, kind: simpleTokenType, expires: now.Add(time.Hour)}
		cookie := http.Header{"Cookie": {CookieName + `="` + a.signer.sign(tok.text()) + `"`}}
		for range 3 {
			res := a.Authenticate(t.Context(), Request{Header: cookie})
			switch {
			case known && (res.Principal == nil || res.Principal.Short != "alice"):
				t.Errorf("%s: %+v", principal, res)
			case !known && (res.Principal != nil || res.Refusal == nil ||
				!strings.Contains(res.Refusal.Reason, "Illegal principal name")):
				t.Errorf("%s: %+v, %+v", principal, res.Principal, res.Refusal)
			}
		}
	}
}
