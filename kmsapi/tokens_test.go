package kmsapi_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger/audit"
	"claviger/authn"
)

const badToken = "org.apache.hadoop.security.authentication.client.AuthenticationException"

// wantTokenRefusals checks the answers to wrong operations on tokens, which are Hadoop's. token
// belongs to alice, and yarn may renew it.
func wantTokenRefusals(t *testing.T, addr, token string) {
	t.Helper()
	for _, c := range []struct {
		what, method, target string
		status               int
		class, message       string
	}{
		{"no user", "GET", "/kms/v1/?op=GETDELEGATIONTOKEN", 403, "", ""},
		{"a token for a token", "GET", "/kms/v1/?op=GETDELEGATIONTOKEN&delegation=" + token, 403, "", ""},
		{"the wrong method", "GET", "/kms/v1/?op=RENEWDELEGATIONTOKEN&user.name=yarn&token=" + token, 400,
			"java.lang.IllegalArgumentException",
			"Wrong HTTP method [GET] for operation [RENEWDELEGATIONTOKEN], it should be [PUT]"},
		{"no token", "PUT", "/kms/v1/?op=RENEWDELEGATIONTOKEN&user.name=yarn", 400,
			"java.lang.IllegalArgumentException", "Operation [RENEWDELEGATIONTOKEN] requires the parameter [token]"},
		{"not the renewer", "PUT", "/kms/v1/?op=RENEWDELEGATIONTOKEN&user.name=alice&token=" + token, 403,
			"java.io.IOException", "alice tries to renew a token (kms-dt owner=alice, renewer=yarn"},
		{"rubbish", "PUT", "/kms/v1/?op=RENEWDELEGATIONTOKEN&user.name=yarn&token=AAAA", 403, "java.io.IOException",
			"java.io.EOFException"},
		{"rubbish, used", "GET", "/kms/v1/keys/names?delegation=AAAA", 403, badToken, "java.io.EOFException"},
		{"rubbish, cancelled", "PUT", "/kms/v1/?op=CANCELDELEGATIONTOKEN&token=AAAA", 404, "java.io.IOException",
			"Invalid delegation token, cannot cancel"},
		{"another op", "GET", "/kms/v1/?op=FOO&user.name=alice", 405, "javax.ws.rs.WebApplicationException", ""},
	} {
		a := sendAs(t, addr, c.method, c.target, "")
		if a.status != c.status {
			t.Errorf("%s: %d %s", c.what, a.status, a.body)
			continue
		}
		if c.class == "" {
			if len(a.body) > 0 || a.header("WWW-Authenticate") != authn.PseudoAuth ||
				a.header("Content-Type") != "text/plain;charset=utf-8" {
				t.Errorf("%s: %v %s", c.what, a.headers, a.body)
			}
			continue
		}
		if class, message := a.thrown(t); class != c.class || !strings.Contains(message, c.message) {
			t.Errorf("%s: %s %q", c.what, class, message)
		}
	}
}

// TestDelegationTokens has the cases of the recordings dt-*. Only the recorded server accepts the
// tokens of these, so the test gets its own token.
func TestDelegationTokens(t *testing.T) {
	tokens, err := authn.NewDelegations(authn.DelegationConfig{KeyUpdate: time.Hour, MaxLife: 2 * time.Hour,
		Renewal: time.Hour, Scan: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	tr := &trail{}
	addr := withKey(t, stack{Trail: tr, Auth: authn.Config{Delegations: tokens}})
	a := send(t, addr, "GET", "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=yarn", "")
	var issued struct{ Token struct{ URLString string } }
	if err := json.Unmarshal(a.body, &issued); err != nil || a.status != 200 ||
		a.header("Content-Type") != "application/json" || a.headers["Set-Cookie"] != nil {
		t.Fatalf("%d %v %s, %v", a.status, a.headers, a.body, err)
	}
	token := issued.Token.URLString
	use := func() answer {
		return sendAs(t, addr, "GET", "/kms/v1/keys/names", "", "X-Hadoop-Delegation-Token: "+token)
	}
	if a := use(); a.status != 200 || string(a.body) != `["k"]` || a.headers["Set-Cookie"] != nil {
		t.Errorf("with the token: %d %v %s", a.status, a.headers, a.body)
	}
	wantTokenRefusals(t, addr, token)
	a = sendAs(t, addr, "PUT", "/kms/v1/?op=RENEWDELEGATIONTOKEN&user.name=yarn&token="+token, "")
	var renewed struct{ Long int64 }
	if err := json.Unmarshal(a.body, &renewed); err != nil || a.status != 200 ||
		time.Until(time.UnixMilli(renewed.Long)) < 30*time.Minute {
		t.Errorf("renewed: %d %s, %v", a.status, a.body, err)
	}
	if a := sendAs(t, addr, "PUT", "/kms/v1/?op=CANCELDELEGATIONTOKEN&token="+token, ""); a.status != 200 ||
		len(a.body) > 0 {
		t.Errorf("cancelled: %d %s", a.status, a.body)
	}
	if class, message := use().thrown(t); class != badToken || !strings.Contains(message, "can't be found in cache") {
		t.Errorf("after it was cancelled: %s %s", class, message)
	}
	unauthenticated := 0
	var done []string
	for _, e := range tr.all() {
		if e.Token != 0 || e.Caller.Token != 0 {
			done = append(done, fmt.Sprintf("%s by %q token %d authenticated by %d", e.Op, e.Caller.Name, e.Token,
				e.Caller.Token))
		}
		if strings.Contains(e.URL, token) {
			t.Errorf("the audit log holds a token: %+v", e)
		}
		if e.Status == audit.Unauthenticated {
			unauthenticated++
		}
	}
	if want := []string{
		`GETDELEGATIONTOKEN by "alice" token 1 authenticated by 0`, `GET_KEYS by "alice" token 0 authenticated by 1`,
		`RENEWDELEGATIONTOKEN by "yarn" token 1 authenticated by 0`,
		`CANCELDELEGATIONTOKEN by "" token 1 authenticated by 0`,
	}; !slices.Equal(done, want) {
		t.Errorf("the audit events of tokens are\n%q\nwant\n%q", done, want)
	}
	if unauthenticated != 4 {
		t.Errorf("%d events of status UNAUTHENTICATED, want 4", unauthenticated)
	}
}
