package trustee

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
)

// fakeTrustee is a trustee whose answers a test chooses.
type fakeTrustee struct {
	*httptest.Server
	id       *Identity
	requests atomic.Int64
}

// startFake starts a trustee with the identity id. answer gets the verb and the digest of a request, whose
// signature by the client was checked.
func startFake(t *testing.T, id, client *Identity,
	answer func(w http.ResponseWriter, verb, digest string)) *fakeTrustee {
	t.Helper()
	p := &fakeTrustee{id: id}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		if kind := r.Header.Get("Content-Type"); kind != "application/json" {
			t.Errorf("a request of type %q", kind)
		}
		verb := strings.TrimPrefix(r.URL.Path, APIPath)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		req, err := id.ReadRequest(verb, body, time.Now(), known(client))
		if err != nil {
			t.Errorf("%s: %v", verb, err)
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, verb, req.Digest)
	}))
	p.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes are meant to fail
	p.StartTLS()
	t.Cleanup(p.Close)
	return p
}

// answer sends a signed result.
func (p *fakeTrustee) answer(t *testing.T, w http.ResponseWriter, digest string, result any, err error) {
	body, aerr := p.id.NewAnswer(digest, result, err, time.Now())
	if aerr != nil {
		t.Error(aerr)
	}
	_, _ = w.Write(body)
}

// clientOf returns a client of these trustees, which trusts their certificates.
func clientOf(t *testing.T, id *Identity, change func(*ClientConfig), servers ...*fakeTrustee) *Client {
	t.Helper()
	roots := x509.NewCertPool()
	cfg := ClientConfig{Identity: id, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		Timeout: 5 * time.Second}
	for _, s := range servers {
		roots.AddCert(s.Certificate())
		cfg.Servers = append(cfg.Servers, Endpoint{URL: s.URL, Server: &s.id.Party})
	}
	if change != nil {
		change(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func sealedOf(t *testing.T, id *Identity, label string) Sealed {
	t.Helper()
	s, err := id.seal(Deposit{UUID: NewUUID(), Label: label, Content: []byte("sealed " + label)}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return *s
}

func uuidOf(t *testing.T, s Sealed) string {
	t.Helper()
	var st statement
	if err := json.Unmarshal(s.Statement, &st); err != nil {
		t.Fatal(err)
	}
	return st.UUID
}

// TestHostileTrustee: a client accepts no deposit that a trustee invents, mixes up with another, or sends
// without an end.
func TestHostileTrustee(t *testing.T) {
	client, server := pair()
	good, other := sealedOf(t, client, "key/a"), sealedOf(t, client, "key/b")
	foreign := sealedOf(t, server, "key/a") // the server's own
	uuid := uuidOf(t, good)
	now := time.Now()
	expired, err := client.seal(Deposit{UUID: uuid, Label: "key/a", Content: []byte("old"),
		Expires: now.Add(-time.Hour)}, now)
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*Sealed)) Sealed { s := good; change(&s); return s }
	var recorded []byte // an answer to an earlier request, of the same verb
	var trustee *fakeTrustee
	result := func(s Sealed) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, digest string) { trustee.answer(t, w, digest, s, nil) }
	}
	signedBy := func(id *Identity, digest string) []byte { return signedAnswer(t, id, digest, good) }
	// Invalid: the answer is wrong. Unavailable: the trustee may be down. KeyNotFound: the deposit does not
	// exist any more.
	cases := []struct {
		what   string
		kind   claviger.Kind
		answer func(w http.ResponseWriter, digest string)
	}{
		{"another deposit", claviger.Invalid, result(other)},
		{"another client's", claviger.Invalid, result(foreign)},
		{"another content", claviger.Invalid, result(with(func(s *Sealed) { s.Content = other.Content }))},
		{"another statement", claviger.Invalid, result(with(func(s *Sealed) { s.Statement = other.Statement }))},
		{"no content", claviger.Invalid, result(with(func(s *Sealed) { s.Content = nil }))},
		{"an altered content", claviger.Invalid,
			result(with(func(s *Sealed) { s.Content = append(bytes.Clone(s.Content), '!') }))},
		{"no signature", claviger.Invalid, result(with(func(s *Sealed) { s.Signature = nil }))},
		{"an expired deposit", claviger.KeyNotFound, result(*expired)},
		{"a deleted deposit", claviger.KeyNotFound, result(with(func(s *Sealed) { s.Deleted = &now }))},
		{"an earlier answer", claviger.Invalid, func(w http.ResponseWriter, _ string) { _, _ = w.Write(recorded) }},
		{"signed by another", claviger.Invalid,
			func(w http.ResponseWriter, digest string) { _, _ = w.Write(signedBy(client, digest)) }},
		{"a web page", claviger.Invalid, text(http.StatusOK, "<html>")},
		{"nothing", claviger.Invalid, text(http.StatusOK, "")},
		{"half an answer", claviger.Invalid, func(w http.ResponseWriter, digest string) {
			body := signedBy(trustee.id, digest)
			_, _ = w.Write(body[:len(body)/2])
		}},
		{"an answer that ends too early", claviger.Unavailable, func(w http.ResponseWriter, digest string) {
			body := signedBy(trustee.id, digest)
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		}},
		{"no end", claviger.Unavailable, endlessBody},
		{"a long refusal", claviger.Denied, text(http.StatusForbidden, strings.Repeat("no ", 1<<18))},
		{"a proxy's error", claviger.Unavailable, text(http.StatusBadGateway, "bad gateway")},
		{"a redirect", claviger.Unavailable, func(w http.ResponseWriter, _ string) {
			w.Header().Set("Location", trustee.URL+"/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}},
	}
	var answer func(w http.ResponseWriter, digest string)
	trustee = startFake(t, server, client, func(w http.ResponseWriter, _, digest string) { answer(w, digest) })
	c := clientOf(t, client, nil, trustee)

	answer = func(w http.ResponseWriter, digest string) {
		recorded = signedBy(trustee.id, digest)
		_, _ = w.Write(recorded)
	}
	if d, err := c.Get(t.Context(), uuid); err != nil || d.UUID != uuid || string(d.Content) != "sealed key/a" {
		t.Fatalf("%+v, %v", d, err)
	}
	if d, err := c.Find(t.Context(), "key/b"); !claviger.Is(err, claviger.Invalid) || d.UUID != "" {
		t.Errorf("key/a for key/b: %+v, %v", d, err)
	}
	for _, test := range cases {
		answer = test.answer
		getFails(t, c, uuid, test.what, test.kind)
	}
}

// getFails fails the test unless Get returns a short error of this kind, and no deposit.
func getFails(t *testing.T, c *Client, uuid, what string, kind claviger.Kind) {
	t.Helper()
	d, err := c.Get(t.Context(), uuid)
	if !claviger.Is(err, kind) || d.UUID != "" || d.Content != nil {
		t.Errorf("%s: %+v, %v; want kind %v", what, d, err, kind)
	}
	if err != nil && len(err.Error()) > 2000 {
		t.Errorf("%s: a message of %d bytes", what, len(err.Error()))
	}
}

// signedAnswer returns an answer that id has signed.
func signedAnswer(t *testing.T, id *Identity, digest string, result any) []byte {
	t.Helper()
	body, err := id.NewAnswer(digest, result, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// endlessBody writes until the client closes the connection.
func endlessBody(w http.ResponseWriter, _ string) {
	for block := make([]byte, 64<<10); ; {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// text sends a status and a body without a signature.
func text(status int, body string) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, _ string) { w.WriteHeader(status); _, _ = io.WriteString(w, body) }
}

// TestHostileLists: a client refuses a page that it did not request, and a list without an end.
func TestHostileLists(t *testing.T) {
	client, server := pair()
	list := func(labels ...string) (all []Sealed) {
		for _, l := range labels {
			s := sealedOf(t, client, l)
			s.Content = nil
			all = append(all, s)
		}
		return all
	}
	now := time.Now()
	deleted := list("key/a")
	deleted[0].Deleted = &now
	var page []Sealed
	var trustee *fakeTrustee
	trustee = startFake(t, server, client, func(w http.ResponseWriter, _,
		digest string) {
		trustee.answer(t, w, digest, page, nil)
	})
	c := clientOf(t, client, nil, trustee)
	page = list("key/a", "key/b")
	if got, err := c.List(t.Context(), "key/", false, "", 2); err != nil || len(got) != 2 || got[0].Label != "key/a" ||
		got[1].Label != "key/b" {
		t.Fatalf("%+v, %v", got, err)
	}
	for what, bad := range map[string][]Sealed{
		"out of order":   list("key/b", "key/a"),
		"another prefix": list("version/a"),
		"before after":   list("key/+"),
		"too many":       list("key/b", "key/c", "key/d"),
		"deleted":        deleted,
		"unsigned":       {{Statement: []byte(`{}`)}},
	} {
		page = bad
		if got, err := c.List(t.Context(), "key/", false, "key/0", 2); !claviger.Is(err, claviger.Invalid) ||
			got != nil {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

// down returns a trustee that was stopped.
func down(t *testing.T, id *Identity) *fakeTrustee {
	t.Helper()
	p := startFake(t, id, id, nil)
	p.Close()
	return p
}

// TestTwoServers: each server that answers gets reads, and only the active server gets changes.
func TestTwoServers(t *testing.T) {
	client, server := pair()
	s := sealedOf(t, client, "key/a")
	var promoted atomic.Bool
	start := func(passive bool) *fakeTrustee {
		var p *fakeTrustee
		p = startFake(t, server, client, func(w http.ResponseWriter, verb, digest string) {
			if verb == VerbFind {
				p.answer(t, w, digest, s, nil)
			} else if passive && !promoted.Load() {
				p.answer(t, w, digest, nil, claviger.E("x", claviger.Unavailable, "", ErrPassive))
			} else {
				p.answer(t, w, digest, nil, nil)
			}
		})
		return p
	}
	find := func(c *Client) {
		t.Helper()
		if d, err := c.Find(t.Context(), "key/a"); err != nil || d.Label != "key/a" {
			t.Errorf("%+v, %v", d, err)
		}
	}
	active, passive := start(false), start(true)
	c := clientOf(t, client, func(cfg *ClientConfig) { cfg.RoundRobin = true }, active, passive)
	for range 10 {
		find(c)
	}
	if a, p := active.requests.Load(), passive.requests.Load(); a != 5 || p != 5 {
		t.Errorf("the active server got %d requests, the passive %d", a, p)
	}
	c = clientOf(t, client, nil, active, passive)
	for range 5 {
		find(c)
	}
	if err := c.Delete(t.Context(), "u"); err != nil {
		t.Error(err)
	}
	if p := passive.requests.Load(); p != 5 {
		t.Errorf("the passive server got %d more requests", p-5)
	}
	for _, robin := range []bool{false, true} {
		c = clientOf(t, client, func(cfg *ClientConfig) { cfg.RoundRobin = robin }, down(t, server), passive)
		for range 4 {
			find(c)
		}
		promoted.Store(false)
		put := func() error {
			_, err := c.Put(t.Context(), Deposit{Label: "l", Content: []byte("x")}, "")
			return err
		}
		if err := put(); !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, ErrPassive) {
			t.Errorf("a change without the active: %v", err)
		}
		promoting := time.AfterFunc(100*time.Millisecond, func() { promoted.Store(true) })
		if err := put(); err != nil {
			t.Errorf("a change while the passive is made active: %v", err)
		}
		promoting.Stop()
		before := passive.requests.Load()
		if err := put(); err != nil || passive.requests.Load() != before+1 {
			t.Errorf("the next change: %v, after %d requests", err, passive.requests.Load()-before)
		}
		c = clientOf(t, client, func(cfg *ClientConfig) { cfg.RoundRobin = robin }, active, down(t, server))
		for range 4 {
			find(c)
		}
		c = clientOf(t, client, func(cfg *ClientConfig) { cfg.RoundRobin = robin }, down(t, server), down(t, server))
		if _, err := c.Find(t.Context(), "key/a"); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("both are down: %v", err)
		}
	}
}

// TestSlowServer: a server that does not answer delays one read by the timeout, and not every read.
func TestSlowServer(t *testing.T) {
	client, server := pair()
	s := sealedOf(t, client, "key/a")
	ctx, cancel := context.WithCancel(context.Background())
	slow := startFake(t, server, client, func(w http.ResponseWriter, _, _ string) { <-ctx.Done() })
	t.Cleanup(cancel) // before slow is closed, which waits
	var quick *fakeTrustee
	quick = startFake(t, server, client, func(w http.ResponseWriter, _, digest string) {
		quick.answer(t, w, digest, s, nil)
	})
	c := clientOf(t, client, func(cfg *ClientConfig) { cfg.Timeout = 2 * time.Second }, slow, quick)
	began := time.Now()
	for range 10 {
		if d, err := c.Find(t.Context(), "key/a"); err != nil || d.Label != "key/a" {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	if n := slow.requests.Load(); n != 1 {
		t.Errorf("the slow server got %d requests within %v", n, time.Since(began))
	}
}

// TestTLS: a client sends no request to a server whose certificate it does not trust.
func TestTLS(t *testing.T) {
	client, server := pair()
	p := startFake(t, server, client, nil)
	c := clientOf(t, client, func(cfg *ClientConfig) {
		cfg.TLS = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	}, p)
	if active, err := c.Register(t.Context(), "ORG", "secret", false); active ||
		!claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "truststore") ||
		strings.Contains(err.Error(), "secret") {
		t.Errorf("%v, %v", active, err)
	}
	if _, err := c.Introduce(t.Context(), p.URL); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "truststore") {
		t.Errorf("%v", err)
	}
	if n := p.requests.Load(); n != 0 {
		t.Errorf("%d requests came through", n)
	}
	if _, err := NewClient(ClientConfig{Identity: client, Servers: []Endpoint{{URL: strings.Replace(p.URL, "https",
		"http", 1)}}}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("http: %v", err)
	}
}

// TestTwoRefusals: two servers refuse a change, one of them because of the client's clock. The error says that
// the fault may be temporary.
func TestTwoRefusals(t *testing.T) {
	client, server := pair()
	unknown := startFake(t, server, client, func(w http.ResponseWriter, _, _ string) {
		http.Error(w, "the client is not registered here", http.StatusForbidden)
	})
	clock := startFake(t, server, client, func(w http.ResponseWriter, _, _ string) {
		w.Header().Set("Date", time.Now().Add(-MaxSkew).UTC().Format(http.TimeFormat))
		http.Error(w, "set the clocks of both by NTP", http.StatusBadRequest)
	})
	for _, servers := range [][]*fakeTrustee{{unknown, clock}, {clock, unknown}} {
		if err := clientOf(t, client, nil, servers...).Delete(t.Context(), "u"); !claviger.Is(err,
			claviger.Unavailable) {
			t.Error(err)
		}
	}
}

// TestOneServersFault: if one of two trustees has a fault, clients read from the other, and change what the
// other accepts. If no trustee answers, the error names both.
func TestOneServersFault(t *testing.T) {
	client, server := pair()
	good := sealedOf(t, client, "key/a")
	uuid := uuidOf(t, good)
	damaged := good
	damaged.Content = append([]byte("x"), good.Content...)
	var bad *fakeTrustee
	status := func(code int, text string) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, _ string) { http.Error(w, text, code) }
	}
	signed := func(kind claviger.Kind) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, digest string) {
			bad.answer(t, w, digest, nil, claviger.E("x", kind, "", nil))
		}
	}
	for name, tt := range map[string]struct {
		answer func(w http.ResponseWriter, digest string)
		read   claviger.Kind // of a read if both have the fault
		write  claviger.Kind // of a change if the other is passive
		takes  bool          // the change succeeds if the other is active
	}{
		"not registered": {status(http.StatusForbidden, "the client is not registered here"), claviger.Denied,
			claviger.Denied, true},
		"clocks differ": {func(w http.ResponseWriter, _ string) {
			w.Header().Set("Date", time.Now().Add(-MaxSkew).UTC().Format(http.TimeFormat))
			http.Error(w, "set the clocks of both by NTP", http.StatusBadRequest)
		}, claviger.Unavailable, claviger.Unavailable, true},
		"it refuses the request": {status(http.StatusBadRequest, "no JSON"), claviger.Invalid, claviger.Invalid,
			true},
		"it sends a web page": {status(http.StatusOK, "<html>"), claviger.Invalid, claviger.Unavailable, true},
		"it has failed":       {signed(claviger.Internal), claviger.Internal, claviger.Internal, false},
		"it denies":           {signed(claviger.Denied), claviger.Denied, claviger.Denied, false},
		"no store": {status(http.StatusServiceUnavailable, "its store does not answer"), claviger.Unavailable,
			claviger.Unavailable, true},
		"a damaged deposit": {nil, claviger.Invalid, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			bad = startFake(t, server, client, func(w http.ResponseWriter, _, digest string) {
				if tt.answer == nil {
					bad.answer(t, w, digest, damaged, nil)
					return
				}
				tt.answer(w, digest)
			})
			passive := false
			fine := startGood(t, server, client, good, &passive)
			for _, robin := range []bool{false, true} {
				c := clientOf(t, client, func(cfg *ClientConfig) { cfg.RoundRobin = robin }, bad, fine)
				reads(t, c, good)
			}
			if tt.answer == nil {
				return
			}
			c := clientOf(t, client, nil, bad, fine)
			if list, err := c.List(t.Context(), "key/", false, "", 10); err != nil || len(list) != 1 {
				t.Errorf("list: %v, %v", list, err)
			}
			if r, err := clientOf(t, client, nil, bad, fine).Clients(t.Context()); err != nil || r.Org != "ORG" {
				t.Errorf("clients: %+v, %v", r, err)
			}
			if _, err := clientOf(t, client, nil, bad, bad).Get(t.Context(), uuid); err == nil ||
				claviger.KindOf(err) != tt.read || strings.Count(err.Error(), bad.URL) != 2 {
				t.Errorf("get from two servers with the fault: %v", err)
			}
			if err := c.Delete(t.Context(), "u"); (err == nil) != tt.takes {
				t.Errorf("a change that the other accepts: %v", err)
			}
			passive = true
			err := clientOf(t, client, nil, bad, fine).Delete(t.Context(), "u")
			if err == nil || claviger.KindOf(err) != tt.write || !strings.Contains(err.Error(), bad.URL) {
				t.Errorf("a change that the other refuses: %v", err)
			}
		})
	}
}

// startGood starts a server without a fault. It refuses changes while passive is true.
func startGood(t *testing.T, server, client *Identity, good Sealed, passive *bool) *fakeTrustee {
	var fine *fakeTrustee
	fine = startFake(t, server, client, func(w http.ResponseWriter, verb, digest string) {
		switch {
		case verb == VerbList:
			fine.answer(t, w, digest, []Sealed{good}, nil)
		case verb == VerbClients:
			fine.answer(t, w, digest, ClientsResult{Org: "ORG"}, nil)
		case verb == VerbFind, verb == VerbGet:
			fine.answer(t, w, digest, good, nil)
		case *passive:
			fine.answer(t, w, digest, nil, claviger.E("x", claviger.Unavailable, "", ErrPassive))
		default:
			fine.answer(t, w, digest, nil, nil)
		}
	})
	return fine
}

// reads gets and finds a deposit, several times.
func reads(t *testing.T, c *Client, good Sealed) {
	t.Helper()
	uuid := uuidOf(t, good)
	for range 3 {
		if d, err := c.Get(t.Context(), uuid); err != nil || d.Label != "key/a" ||
			string(d.Content) != string(good.Content) {
			t.Errorf("get: %+v, %v", d, err)
		}
		if d, err := c.Find(t.Context(), "key/a"); err != nil || d.UUID != uuid {
			t.Errorf("find: %+v, %v", d, err)
		}
	}
}
