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

// script is a Negotiation whose service proves itself by "proof".
type script struct {
	host   string
	steps  int
	fail   error           // of the first step
	hang   <-chan struct{} // what the first step waits for
	closed *atomic.Int32
}

func (s *script) Step(in []byte) ([]byte, bool, error) {
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

func (s *script) Close() error {
	s.closed.Add(1)
	return nil
}

func token(text string) string { return "Negotiate " + base64.StdEncoding.EncodeToString([]byte(text)) }

func TestKerberosLogin(t *testing.T) {
	const cookie = `hadoop.auth="u=mig&p=mig@R&t=kerberos&e=9&s=x="; HttpOnly`
	noKDC := errors.New("cannot contact any KDC")
	for name, c := range map[string]struct {
		answer func(h http.Header) int // to a token
		fail   error
		kind   claviger.Kind
		want   string // in the error; "" is success
	}{
		"let in": {func(h http.Header) int {
			h.Set("Set-Cookie", cookie)
			h.Set("WWW-Authenticate", token("proof"))
			return 200
		}, nil, 0, ""},
		"two schemes": {func(h http.Header) int {
			h.Set("Set-Cookie", cookie)
			h["Www-Authenticate"] = []string{"Basic realm=x", token("proof")}
			return 200
		}, nil, 0, ""},
		"no proof": {func(h http.Header) int { h.Set("Set-Cookie", cookie); return 200 }, nil, claviger.Denied,
			"no token that proves"},
		"a wrong proof": {func(h http.Header) int {
			h.Set("Set-Cookie", cookie)
			h.Set("WWW-Authenticate", token("x"))
			return 200
		}, nil, claviger.Denied, "did not prove"},
		"half a proof": {func(h http.Header) int {
			h.Set("Set-Cookie", cookie)
			h.Set("WWW-Authenticate", token("more"))
			return 200
		}, nil, claviger.Denied, "before it proved"},
		"no base64": {func(h http.Header) int { h.Set("WWW-Authenticate", "Negotiate ***"); return 200 }, nil,
			claviger.Denied, "no base64"},
		"a long token": {func(h http.Header) int {
			h.Set("WWW-Authenticate",
				token(strings.Repeat("x", 50_000)))
			return 200
		}, nil, claviger.Unavailable, "headers exceeded 65536 bytes"},
		"no cookie": {func(h http.Header) int { h.Set("WWW-Authenticate", token("proof")); return 200 }, nil,
			claviger.Denied, "no hadoop.auth cookie"},
		"refused": {func(http.Header) int { return 403 }, nil, claviger.Denied, "refuses the ticket: 403"},
		"asked again": {func(h http.Header) int { h.Set("WWW-Authenticate", "Negotiate"); return 401 }, nil,
			claviger.Denied, "refuses the ticket: 401"},
		"without end": {func(h http.Header) int { h.Set("WWW-Authenticate", token("more")); return 401 }, nil,
			claviger.Denied, "no end of the negotiation"},
		"starting":       {func(http.Header) int { return 503 }, nil, claviger.Unavailable, "503"},
		"no KDC answers": {nil, noKDC, claviger.Unavailable, noKDC.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			var open, closed, tokens atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Cookie"); got != "" {
					if c.want != "" {
						t.Errorf("%s %s with the cookie %s of a login that failed", r.Method, r.URL, got)
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
				return &script{host: host, fail: c.fail, closed: &closed}, nil
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
		})
	}
}

func openQuick(t *testing.T, s *httptest.Server, negotiate kmsclient.Negotiate) *kmsclient.Provider {
	return open(t, uriOf(s), kmsclient.Options{Negotiate: negotiate, MaxRetries: 1, SleepMax: time.Millisecond})
}

// A library that waits for a KDC cannot be told to stop; who waits for it can.
func TestKerberosHangs(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer s.Close()
	hang := make(chan struct{})
	var closed atomic.Int32
	p := openQuick(t, s, func(string) (kmsclient.Negotiation, error) {
		return &script{hang: hang, closed: &closed}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.Keys(ctx); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a KDC that hangs: %v", err)
	}
	close(hang)
	for deadline := time.Now().Add(30 * time.Second); closed.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the negotiation is left open")
		}
	}
}
