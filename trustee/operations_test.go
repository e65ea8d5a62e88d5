package trustee

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
)

// operations are all requests of a client.
func operations(c *Client) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Register": func(ctx context.Context) error { _, err := c.Register(ctx, "ORG", "secret", false); return err },
		"Clients":  func(ctx context.Context) error { _, err := c.Clients(ctx); return err },
		"Put": func(ctx context.Context) error {
			_, err := c.Put(ctx, Deposit{Label: "key/a", Content: []byte("x")}, "")
			return err
		},
		"Get":      func(ctx context.Context) error { _, err := c.Get(ctx, "u"); return err },
		"Find":     func(ctx context.Context) error { _, err := c.Find(ctx, "key/a"); return err },
		"List":     func(ctx context.Context) error { _, err := c.List(ctx, "", false, "", 1); return err },
		"Delete":   func(ctx context.Context) error { return c.Delete(ctx, "u") },
		"Undelete": func(ctx context.Context) error { return c.Undelete(ctx, "u") },
		"Purge":    func(ctx context.Context) error { return c.Purge(ctx, "u") },
		"Request":  func(ctx context.Context) error { return c.Request(ctx, VerbStatus, struct{}{}, nil) },
	}
}

// TestEachOperationFails: each operation returns the error that ends it, and never a success.
func TestEachOperationFails(t *testing.T) {
	client, server := pair()
	var p *fakeTrustee
	p = startFake(t, server, client, func(w http.ResponseWriter, _, digest string) {
		p.answer(t, w, digest, nil, claviger.Errorf("x", claviger.Denied, "", "the client is disabled"))
	})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for what, tt := range map[string]struct {
		ctx      context.Context
		change   func(*ClientConfig)
		kind     claviger.Kind
		want     string
		requests int64
	}{
		"the server denies it": {t.Context(), nil, claviger.Denied, "the client is disabled", 1},
		"a clock before the identity": {t.Context(), func(cfg *ClientConfig) {
			cfg.Now = func() time.Time { return time.Unix(0, 0) }
		}, claviger.Unavailable, "set the clock by NTP", 0},
		"no key of the server": {t.Context(), func(cfg *ClientConfig) { cfg.Servers[0].Server = nil }, claviger.Invalid,
			"is not known yet", 0},
		"an invalid URL": {t.Context(), func(cfg *ClientConfig) { cfg.Servers[0].URL = "https://%zz" },
			claviger.Invalid, "invalid URL escape", 0},
		"a cancelled context": {cancelled, nil, claviger.Unavailable, context.Canceled.Error(), 0},
	} {
		for name, do := range operations(clientOf(t, client, tt.change, p)) {
			before := p.requests.Load()
			if err := do(tt.ctx); !claviger.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %s: %v", what, name, err)
			}
			if n := p.requests.Load() - before; n != tt.requests {
				t.Errorf("%s: %s: %d requests", what, name, n)
			}
		}
	}
}

// TestServerDown: the error of a server that does not answer says why.
func TestServerDown(t *testing.T) {
	client, server := pair()
	p := down(t, server)
	c := clientOf(t, client, nil, p)
	_, introduce := c.Introduce(t.Context(), p.URL)
	for what, err := range map[string]error{"Delete": c.Delete(t.Context(), "u"), "Introduce": introduce} {
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestUnwritableIdentity: a client whose public key cannot be written does not register.
func TestUnwritableIdentity(t *testing.T) {
	client, server := pair()
	p := startFake(t, server, client, nil)
	id := &Identity{Party: *unwritable(client), private: client.private}
	if _, err := clientOf(t, id, nil, p).Register(t.Context(), "ORG", "secret", false); !claviger.Is(err,
		claviger.Internal) || p.requests.Load() > 0 {
		t.Errorf("%v, %d requests", err, p.requests.Load())
	}
}

// TestIntroduce: a client reads the key of a server, keeps the connection, and refuses the answer of another server.
func TestIntroduce(t *testing.T) {
	client, server := pair()
	var public bytes.Buffer
	if err := server.Public(&public); err != nil {
		t.Fatal(err)
	}
	status := http.StatusOK
	var connections []string
	p := &fakeTrustee{id: server, Server: httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		if !slices.Contains(connections, r.RemoteAddr) {
			connections = append(connections, r.RemoteAddr)
		}
		if r.URL.Path != "/" || r.FormValue("a") != "publickey" {
			t.Errorf("a request to %s", r.URL)
		}
		w.WriteHeader(status)
		_, _ = io.Copy(w, bytes.NewReader(public.Bytes()))
	}))}
	t.Cleanup(p.Close)
	c := clientOf(t, client, nil, p)
	for range 2 {
		if got, err := c.Introduce(t.Context(), p.URL); err != nil || got.Fingerprint() != server.Fingerprint() {
			t.Errorf("%v, %v", got, err)
		}
	}
	if len(connections) != 1 {
		t.Errorf("two requests took %d connections", len(connections))
	}
	c.Close()
	status = http.StatusNotFound
	if got, err := c.Introduce(t.Context(), p.URL); !claviger.Is(err, claviger.Invalid) || got != nil ||
		!strings.Contains(err.Error(), "answers 404 to /?a=publickey") {
		t.Errorf("a 404: %v, %v", got, err)
	}
	if len(connections) != 2 {
		t.Errorf("Close left the connection open: %d connections", len(connections))
	}
	if _, err := c.Introduce(t.Context(), "https://%zz"); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("an invalid URL: %v", err)
	}
}

// TestClientConfig: a client needs a server, and has limits if none are given.
func TestClientConfig(t *testing.T) {
	client, _ := pair()
	if c, err := NewClient(ClientConfig{Identity: client}); c != nil || !claviger.Is(err, claviger.Invalid) {
		t.Errorf("no server: %v, %v", c, err)
	}
	for _, tt := range []struct {
		conns, wantConns     int
		timeout, wantTimeout time.Duration
	}{{0, 5, 0, 10 * time.Second}, {2, 2, time.Minute, time.Minute}} {
		c, err := NewClient(ClientConfig{Identity: client, Servers: []Endpoint{{URL: "https://h"}}, MaxConns: tt.conns,
			Timeout: tt.timeout})
		if err != nil {
			t.Fatal(err)
		}
		transport, ok := c.http.Transport.(*http.Transport)
		if !ok || transport.MaxConnsPerHost != tt.wantConns || transport.MaxIdleConnsPerHost != tt.wantConns ||
			c.cfg.Timeout != tt.wantTimeout || transport.ResponseHeaderTimeout != tt.wantTimeout {
			t.Errorf("%+v: %+v", tt, c.cfg)
		}
	}
}

// answers starts a server that sends these answers one after the other, and the last one from then on. An error is
// sent as a signed answer, and a number as the status of an unsigned one.
func answers(t *testing.T, client, server *Identity, list ...any) *fakeTrustee {
	t.Helper()
	var p *fakeTrustee
	p = startFake(t, server, client, func(w http.ResponseWriter, _, digest string) {
		switch a := list[min(int(p.requests.Load()), len(list))-1].(type) {
		case int:
			text(a, "")(w, "")
		case error:
			kind := claviger.Unavailable
			if errors.Is(a, ErrReplay) {
				kind = claviger.Invalid
			}
			p.answer(t, w, digest, nil, claviger.E("x", kind, "", a))
		default:
			p.answer(t, w, digest, RegisterResult{Active: true}, nil)
		}
	})
	return p
}

// TestChanges: a client makes each change once, at the server that accepts it, and remembers that server.
func TestChanges(t *testing.T) {
	client, server := pair()
	const lost, refused, done = http.StatusBadGateway, http.StatusForbidden, true
	for what, tt := range map[string]struct {
		first, second []any
		changes       int
		requests      [2]int64
		fails         bool // the last change fails
	}{
		"the second is active":       {[]any{ErrPassive}, []any{done}, 2, [2]int64{1, 2}, false},
		"a lost answer":              {[]any{lost}, []any{ErrReplay, done}, 2, [2]int64{1, 2}, false},
		"a replay without a request": {[]any{ErrReplay}, []any{done}, 1, [2]int64{1, 0}, true},
		"one refuses, one loses":     {[]any{refused}, []any{lost, ErrReplay}, 1, [2]int64{2, 2}, false},
		"a promotion":                {[]any{ErrPassive, done}, []any{ErrPassive}, 1, [2]int64{2, 1}, false},
		"no answers":                 {[]any{lost}, []any{lost}, 1, [2]int64{2, 2}, true},
		"refused":                    {[]any{refused}, []any{refused}, 1, [2]int64{1, 1}, true},
	} {
		first, second := answers(t, client, server, tt.first...), answers(t, client, server, tt.second...)
		c := clientOf(t, client, nil, first, second)
		for i := range tt.changes {
			if err := c.Delete(t.Context(), "u"); (err != nil) != (tt.fails && i == tt.changes-1) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if got := [2]int64{first.requests.Load(), second.requests.Load()}; got != tt.requests {
			t.Errorf("%s: %d requests, not %d", what, got, tt.requests)
		}
	}
}

// TestLostRegistration: if the answer to a registration was lost, its result is unknown, and the error says so.
func TestLostRegistration(t *testing.T) {
	client, server := pair()
	c := clientOf(t, client, nil, answers(t, client, server, http.StatusBadGateway),
		answers(t, client, server, ErrReplay))
	if active, err := c.Register(t.Context(), "ORG", "secret", false); active || !claviger.Is(err,
		claviger.Unavailable) || !strings.Contains(err.Error(), "answers 502") {
		t.Errorf("%t, %v", active, err)
	}
}

// TestOtherIdentities: a change goes only to servers of one identity.
func TestOtherIdentities(t *testing.T) {
	client, server := pair()
	first := answers(t, client, server, http.StatusBadGateway)
	other, unknown := answers(t, client, client, true), answers(t, client, server, true)
	c := clientOf(t, client, func(cfg *ClientConfig) { cfg.Servers[2].Server = nil }, first, other, unknown)
	if err := c.Delete(t.Context(), "u"); !claviger.Is(err, claviger.Unavailable) || other.requests.Load() > 0 ||
		unknown.requests.Load() > 0 {
		t.Errorf("%v, %d and %d requests", err, other.requests.Load(), unknown.requests.Load())
	}
}

// TestCancelledPause: a change that is cancelled between two rounds fails.
func TestCancelledPause(t *testing.T) {
	client, server := pair()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var p *fakeTrustee
	p = startFake(t, server, client, func(w http.ResponseWriter, _, digest string) {
		p.answer(t, w, digest, nil, claviger.E("x", claviger.Unavailable, "", ErrPassive))
		if p.requests.Load() == 3 {
			time.AfterFunc(2*roundTime, cancel) // the pause is 4 times roundTime
		}
	})
	err := clientOf(t, client, nil, p).Delete(ctx, "u")
	if !claviger.Is(err, claviger.Unavailable) || ctx.Err() == nil {
		t.Errorf("%v, %d requests", err, p.requests.Load())
	}
}

// TestBackoffEnds: a server that answers again is preferred to one that does not.
func TestBackoffEnds(t *testing.T) {
	client, server := pair()
	s := sealedOf(t, client, "key/a")
	first := answers(t, client, server, http.StatusBadGateway)
	var second *fakeTrustee
	second = startFake(t, server, client, func(w http.ResponseWriter, _, digest string) {
		if second.requests.Load() == 1 {
			text(http.StatusBadGateway, "")(w, "")
			return
		}
		second.answer(t, w, digest, s, nil)
	})
	now := time.Now()
	c := clientOf(t, client, func(cfg *ClientConfig) { cfg.Now = func() time.Time { return now } }, first, second)
	if _, err := c.Find(t.Context(), "key/a"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("neither answers: %v", err)
	}
	for range 3 {
		if _, err := c.Find(t.Context(), "key/a"); err != nil {
			t.Error(err)
		}
	}
	if n := first.requests.Load(); n != 2 {
		t.Errorf("the server that does not answer got %d requests", n)
	}
}

// TestUnsignedList: a client takes no deposit from a list whose statement it cannot verify.
func TestUnsignedList(t *testing.T) {
	client, server := pair()
	var p *fakeTrustee
	p = startFake(t, server, client, func(w http.ResponseWriter, _, digest string) {
		p.answer(t, w, digest, []Sealed{{Statement: []byte(`{}`)}}, nil)
	})
	if list, err := clientOf(t, client, nil, p).List(t.Context(), "", false, "", 1); !claviger.Is(err,
		claviger.Invalid) || list != nil || !strings.Contains(err.Error(), "does not have the signature") {
		t.Errorf("%v, %v", list, err)
	}
}
