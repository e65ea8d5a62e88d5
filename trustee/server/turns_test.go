package server

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
)

// TestRegistrationsTakeNoTurns: however many registrations there are, requests of
// registered clients are worked on; and where those are refused, the server says so.
func TestRegistrationsTakeNoTurns(t *testing.T) {
	id, err := trustee.NewIdentity("keytrustee", "", "kts@h.example.com", 2048, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Identity: id})
	web := httptest.NewServer(s)
	defer web.Close()
	post := func(verb string) int {
		t.Helper()
		resp, err := http.Post(web.URL+trustee.APIPath+verb, "application/json", bytes.NewReader([]byte("{}"))) //nolint:noctx // a server of this test
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for range newcomers {
		s.joining <- struct{}{}
	}
	if got := post(trustee.VerbRegister); got != http.StatusServiceUnavailable {
		t.Errorf("a registration beyond %d is answered %d", newcomers, got)
	}
	if got := post(trustee.VerbGet); got != http.StatusBadRequest { // {} is no request
		t.Errorf("a read is answered %d", got)
	}
	if err := s.CheckTurns(t.Context()); err != nil {
		t.Errorf("with registrations refused: %v", err)
	}
	for range concurrent {
		s.turns <- struct{}{}
	}
	if got := post(trustee.VerbGet); got != http.StatusServiceUnavailable {
		t.Errorf("a read beyond %d is answered %d", concurrent, got)
	}
	if err := s.CheckTurns(t.Context()); err == nil {
		t.Error("with reads refused: no error")
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestReadsByClient: a client that reads without end leaves room for the reads of others.
func TestReadsByClient(t *testing.T) {
	var s seenReads
	now := time.Unix(1, 0)
	until := now.Add(2 * trustee.MaxSkew)
	greedy := 0
	for i := range remembered {
		if err := s.first(fmt.Sprint("greedy", i), "greedy", until, now); err == nil {
			greedy++
		} else if !claviger.Is(err, claviger.Unavailable) {
			t.Fatal(err)
		}
	}
	if greedy != remembered/2 {
		t.Errorf("one client has %d reads, want %d", greedy, remembered/2)
	}
	if err := s.first("other", "other", until, now); err != nil {
		t.Errorf("another client: %v", err)
	}
	if err := s.first("greedy0", "greedy", until, now); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("a replay: %v", err)
	}
	later := until.Add(time.Second)
	if err := s.first("greedy again", "greedy", later.Add(time.Minute), later); err != nil || len(s.reads) != 1 || s.byClient["greedy"] != 1 || len(s.byClient) != 1 {
		t.Errorf("when its reads are past: %v, %d are remembered, %v", err, len(s.reads), s.byClient)
	}
}

// TestAddressOf: one host has all addresses of its IPv6 network.
func TestAddressOf(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.7:1234":            "192.0.2.7",
		"[::ffff:192.0.2.7]:1234":   "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:80": "2001:db8:1:2::/64",
		"[2001:db8:1:2::9]:81":      "2001:db8:1:2::/64",
		"[fe80::1%eth0]:81":         "fe80::/64",
		"@":                         "@",
	} {
		if got := addressOf(&http.Request{RemoteAddr: remote}); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}
