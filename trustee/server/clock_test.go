package server_test

import (
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// TestClockOfAClient: if the clock of a client is wrong, even before the creation of its identity, the error
// names the clocks and is of kind Unavailable, because another host of its KMS may have the right time.
func TestClockOfAClient(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	s.registered(server.Identity(1), "ORG")
	for _, off := range []time.Duration{time.Hour, -time.Hour, -20 * 365 * 24 * time.Hour} {
		c, err := trustee.NewClient(trustee.ClientConfig{Identity: server.Identity(1), TLS: s.tls,
			Servers: []trustee.Endpoint{{URL: s.url, Server: &s.id.Party}},
			Now:     func() time.Time { return time.Now().Add(off) }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, put := c.Put(ctx, trustee.Deposit{Label: "l", Content: []byte("x")}, "")
		_, find := c.Find(ctx, "l")
		for what, err := range map[string]error{"put": put, "find": find} {
			if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "by NTP") {
				t.Errorf("%v: %s: %v", off, what, err)
			}
		}
	}
	if _, err := s.client(server.Identity(1)).Find(ctx, "l"); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("a refused request: %v", err)
	}
}

// TestClock: while the clocks differ by an hour, the server accepts no registration and no deposit, and the error
// says why. When the clocks are right again, it accepts both.
func TestClock(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	c := s.client(server.Identity(1))
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		s.shift.Store(int64(off))
		_, err := c.Register(ctx, "ORG", "s3cret", false)
		if err == nil || !strings.Contains(err.Error(), "NTP") {
			t.Errorf("%v: register: %v", off, err)
		}
		if list, err := s.store.Clients(ctx, ""); err != nil || len(list) != 0 {
			t.Errorf("%v: %+v, %v", off, list, err)
		}
	}
	s.shift.Store(0)
	s.registered(server.Identity(1), "ORG")
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		s.shift.Store(int64(off))
		if _, err := c.Put(ctx, trustee.Deposit{Label: "l", Content: []byte("x")}, ""); err == nil ||
			!strings.Contains(err.Error(), "NTP") {
			t.Errorf("%v: put: %v", off, err)
		}
	}
	s.shift.Store(0)
	if _, err := c.Find(ctx, "l"); !claviger.Is(err, claviger.KeyNotFound) {
		t.Errorf("a refused deposit: %v", err)
	}
	if _, err := c.Put(ctx, trustee.Deposit{Label: "l", Content: []byte("x")}, ""); err != nil {
		t.Error(err)
	}
}
