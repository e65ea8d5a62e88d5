package kmsclient_test

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/provider/kmsclient"
)

// fakeNegotiation is a Negotiation. The token "proof" proves the identity of its service.
type fakeNegotiation struct {
	host   string
	steps  int
	fail   error           // error of the first step
	hang   <-chan struct{} // the first step waits until it is closed
	closed *atomic.Int32
}

func (s *fakeNegotiation) Step(in []byte) ([]byte, bool, error) {
	s.steps++
	switch {
	case s.steps == 1 && s.hang != nil:
		<-s.hang
		return nil, false, errors.New("no KDC")
	case s.steps == 1:
		return []byte("ticket for " + s.host), false, s.fail
	case string(in) == "proof":
		return nil, true, nil
	case string(in) == "more":
		return []byte("more of it"), false, nil
	}
	return nil, false, errors.New("not by that key")
}

func (s *fakeNegotiation) Close() error {
	s.closed.Add(1)
	return nil
}

func token(text string) string { return "Negotiate " + base64.StdEncoding.EncodeToString([]byte(text)) }

// loginCase is one login by Kerberos.
type loginCase struct {
	answer func(h http.Header) int // answer to a token
	fail   error                   // error of the first step
	kind   claviger.Kind
	want   string // in the error; "" for success
}

const kerberosCookie = `hadoop.auth="u=mig&p=mig@R&t=kerberos&e=9&s=x="; HttpOnly`

// accepted is the answer that accepts a login, with these values of WWW-Authenticate.
func accepted(challenges ...string) func(http.Header) int {
	return func(h http.Header) int {
		h.Set("Set-Cookie", kerberosCookie)
		h["Www-Authenticate"] = challenges
		return 200
	}
}

// answered is an answer with this value of WWW-Authenticate and without a cookie.
func answered(status int, challenge string) func(http.Header) int {
	return func(h http.Header) int { h.Set("WWW-Authenticate", challenge); return status }
}

// TestKerberosLogin: a login succeeds only if the KMS accepts the ticket, proves its identity and sets a cookie. A
// refused login is not tried again.
func TestKerberosLogin(t *testing.T) {
	noKDC := errors.New("cannot contact any KDC")
	status := func(code int) func(http.Header) int { return func(http.Header) int { return code } }
	for name, c := range map[string]loginCase{
		"accepted":            {accepted(token("proof")), nil, 0, ""},
		"two schemes":         {accepted("Basic realm=x", token("proof")), nil, 0, ""},
		"no proof":            {accepted(), nil, claviger.Denied, "no token that proves"},
		"a wrong proof":       {accepted(token("x")), nil, claviger.Denied, "did not prove"},
		"an unfinished proof": {accepted(token("more")), nil, claviger.Denied, "before it proved"},
		"no base64":           {answered(200, "Negotiate ***"), nil, claviger.Denied, "not base64"},
		"a long token": {answered(200, token(strings.Repeat("x", 50_000))), nil, claviger.Unavailable,
			"headers exceeded 65536 bytes"},
		"no cookie": {answered(200, token("proof")), nil, claviger.Denied, "no hadoop.auth cookie"},
		"refused":   {status(403), nil, claviger.Denied, "refuses the ticket: 403"},
		"no token":  {answered(401, "Negotiate"), nil, claviger.Denied, "refuses the ticket: 401"},
		"no end": {answered(401, token("more")), nil, claviger.Denied,
			"the negotiation did not end"},
		"starting":       {status(503), nil, claviger.Unavailable, "503"},
		"no KDC answers": {nil, noKDC, claviger.Unavailable, noKDC.Error()},
	} {
		t.Run(name, c.run)
	}
}

func (c loginCase) run(t *testing.T) {
	var open, closed, tokens atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Cookie"); got != "" {
			if c.want != "" {
				t.Errorf("%s %s with the cookie %s of a failed login", r.Method, r.URL, got)
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte("[]"))
			return
		}
		given := r.Header.Get("Authorization")
		if given == "" {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		tokens.Add(1)
		if r.Method != http.MethodOptions || r.URL.Query().Has("user.name") ||
			!slices.Contains([]string{token("ticket for 127.0.0.1"), token("more of it")}, given) {
			t.Errorf("%s %s with %s", r.Method, r.URL, given)
		}
		w.WriteHeader(c.answer(w.Header()))
	}))
	defer s.Close()
	p := openQuick(t, s, func(host string) (kmsclient.Negotiation, error) {
		open.Add(1)
		return &fakeNegotiation{host: host, fail: c.fail, closed: &closed}, nil
	})
	_, err := p.Keys(t.Context())
	if c.want == "" && err != nil || c.want != "" && (!claviger.Is(err, c.kind) ||
		!strings.Contains(err.Error(), c.want)) {
		t.Errorf("%v, want %q", err, c.want)
	}
	if open.Load() == 0 || open.Load() != closed.Load() {
		t.Errorf("%d negotiations, %d closed", open.Load(), closed.Load())
	}
	if c.kind == claviger.Denied && open.Load() != 1 || tokens.Load() > 3*open.Load() {
		t.Errorf("%d negotiations, %d tokens", open.Load(), tokens.Load())
	}
}

func openQuick(t *testing.T, s *httptest.Server, negotiate kmsclient.Negotiate) *kmsclient.Provider {
	return open(t, uriOf(s), kmsclient.Options{Negotiate: negotiate, MaxRetries: 1, SleepMax: time.Millisecond})
}

// TestKerberosHangs checks that a call ends with its context although the Kerberos library still waits for a KDC.
func TestKerberosHangs(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer s.Close()
	hang := make(chan struct{})
	var closed atomic.Int32
	p := openQuick(t, s, func(string) (kmsclient.Negotiation, error) {
		return &fakeNegotiation{hang: hang, closed: &closed}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.Keys(ctx); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a KDC that hangs: %v", err)
	}
	close(hang)
	for deadline := time.Now().Add(30 * time.Second); closed.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the negotiation was not closed")
		}
	}
}
