package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
)

// TestRegistrationsTakeNoSlots: however many registrations there are, requests of
// registered clients are worked on; and where those are refused, the server says so.
func TestRegistrationsTakeNoSlots(t *testing.T) {
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
	for range maxRegistrations {
		s.registrationSlots <- struct{}{}
	}
	if got := post(trustee.VerbRegister); got != http.StatusServiceUnavailable {
		t.Errorf("a registration beyond %d is answered %d", maxRegistrations, got)
	}
	if got := post(trustee.VerbGet); got != http.StatusBadRequest { // {} is no request
		t.Errorf("a read is answered %d", got)
	}
	if err := s.CheckSlots(t.Context()); err != nil {
		t.Errorf("with registrations refused: %v", err)
	}
	// Strangers need no turn to be refused, neither one of clients nor one of the other
	// server: they would keep these out.
	for i := range maxRequests {
		if _, ok := s.acquire(httptest.NewRecorder(), fmt.Sprint("client", i)); !ok {
			t.Fatalf("%d turns of %d clients", i, i)
		}
	}
	for range maxPeerRequests {
		s.peerSlots <- struct{}{}
	}
	for _, verb := range []string{trustee.VerbGet, trustee.VerbPeerAppend} {
		if got := post(verb); got != http.StatusBadRequest {
			t.Errorf("a stranger's %s, while all turns are taken, is answered %d", verb, got)
		}
	}
	if err := s.CheckSlots(t.Context()); err != nil {
		t.Errorf("with maxUnknown refused: %v", err)
	}
	if _, ok := s.acquire(httptest.NewRecorder(), "late"); ok {
		t.Errorf("more than %d turns", maxRequests)
	}
	if err := s.CheckSlots(t.Context()); err == nil {
		t.Error("with reads refused: no error")
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestSlotsByClient: a client that sends more than the server works on leaves turns to the
// others, and what it is refused is no want of others.
func TestSlotsByClient(t *testing.T) {
	id, err := trustee.NewIdentity("keytrustee", "", "kts@h.example.com", 2048, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Identity: id})
	take := func(client string) (got int) {
		for range maxRequests {
			if _, ok := s.acquire(httptest.NewRecorder(), client); ok {
				got++
			}
		}
		return got
	}
	if got := take("greedy"); got != maxRequests/2 {
		t.Errorf("one client has %d turns, want %d", got, maxRequests/2)
	}
	if err := s.CheckSlots(t.Context()); err != nil {
		t.Errorf("a client was refused what it may not have: %v", err)
	}
	leave, ok := s.acquire(httptest.NewRecorder(), "other")
	if !ok {
		t.Fatal("another client has no turn")
	}
	leave()
	if used, most := s.slots.Figures(); used != maxRequests/2 || most != maxRequests/2 {
		t.Errorf("%d turns are taken, %d of one client", used, most)
	}
}

// TestStrangersLines: what strangers send is a bounded number of lines in the log.
func TestStrangersLines(t *testing.T) {
	id, err := trustee.NewIdentity("keytrustee", "", "kts@h.example.com", 2048, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var lines bytes.Buffer
	now := time.Now()
	s := New(Config{Identity: id, Log: slog.New(slog.NewTextHandler(&lines, nil)),
		Now: func() time.Time { return now }})
	send := func() {
		r := httptest.NewRequest(http.MethodPost, trustee.APIPath+trustee.VerbGet, bytes.NewReader([]byte("{}")))
		s.ServeHTTP(httptest.NewRecorder(), r)
	}
	for range 500 {
		send()
	}
	if n := bytes.Count(lines.Bytes(), []byte("a request was refused")); n != refusedLines {
		t.Errorf("%d lines for 500 requests, want %d", n, refusedLines)
	}
	now = now.Add(time.Minute)
	lines.Reset()
	send()
	if lines.Len() == 0 {
		t.Error("no line a minute later")
	}
}

// TestWrongRegistrationsByAddress: a stranger's wrong registrations keep nobody at another
// address from registering, and addresses without number are no way around the limit.
func TestWrongRegistrationsByAddress(t *testing.T) {
	f, now := newGuesses(), time.Now()
	for range guessBurst {
		if f.tooMany("10.0.0.1", now) {
			t.Fatal("too early")
		}
		f.record("10.0.0.1", now)
	}
	if !f.tooMany("10.0.0.1", now) || f.tooMany("10.0.0.2", now) {
		t.Error("the limit is not that of the address which failed")
	}
	if f.tooMany("10.0.0.1", now.Add(2*guessEvery)) {
		t.Error("the limit stays")
	}
	for i := range 2 * maxGuessers {
		f.record(fmt.Sprint("host", i), now)
	}
	if len(f.byAddress) > maxGuessers || !f.tooMany("another", now) || f.tooMany("host5", now) {
		t.Errorf("%d addresses are remembered", len(f.byAddress))
	}
	if f.record("yet another", now.Add(guessEvery-1)); !f.swept.Equal(now) {
		t.Errorf("the table is searched %v after the last search", f.swept.Sub(now))
	}
	f.record("another", now.Add(time.Hour)) // all have recovered
	if len(f.byAddress) != 1 {
		t.Errorf("%d addresses are remembered after an hour", len(f.byAddress))
	}
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
	if err := s.first("greedy again", "greedy", later.Add(time.Minute), later); err != nil || len(s.reads) != 1 ||
		s.byClient["greedy"] != 1 || len(s.byClient) != 1 {
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
