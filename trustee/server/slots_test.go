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

// TestRegistrationsTakeNoSlots: registrations and unknown senders take no request slots of registered clients. If
// the server refuses requests of registered clients, CheckSlots returns an error.
func TestRegistrationsTakeNoSlots(t *testing.T) {
	s := New(Config{Identity: Identity(0)})
	web := httptest.NewServer(s)
	defer web.Close()
	post := func(verb string) int {
		t.Helper()
		body := bytes.NewReader([]byte("{}"))
		resp, err := http.Post(web.URL+trustee.APIPath+verb, "application/json", body) //nolint:noctx // own server
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
		t.Errorf("a registration beyond %d gets status %d", maxRegistrations, got)
	}
	if got := post(trustee.VerbGet); got != http.StatusBadRequest { // {} is not a request
		t.Errorf("a read gets status %d", got)
	}
	if err := s.CheckSlots(t.Context()); err != nil {
		t.Errorf("with registrations refused: %v", err)
	}
	// The server refuses unknown senders even if all slots of clients and of the other server are taken, because
	// unknown senders need no slot.
	for i := range maxRequests {
		if _, ok := s.acquire(httptest.NewRecorder(), fmt.Sprint("client", i)); !ok {
			t.Fatalf("only %d clients have a slot", i)
		}
	}
	for range maxPeerRequests {
		s.peerSlots <- struct{}{}
	}
	for _, verb := range []string{trustee.VerbGet, trustee.VerbPeerAppend} {
		if got := post(verb); got != http.StatusBadRequest {
			t.Errorf("%s of an unknown sender, while all slots are taken, gets status %d", verb, got)
		}
	}
	if err := s.CheckSlots(t.Context()); err != nil {
		t.Errorf("after refusals of unknown senders: %v", err)
	}
	if _, ok := s.acquire(httptest.NewRecorder(), "late"); ok {
		t.Errorf("more than %d slots", maxRequests)
	}
	if err := s.CheckSlots(t.Context()); err == nil {
		t.Error("no error after a refused read")
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestSlotsByClient: a client with too many requests leaves slots to the others. A refusal of its requests is no
// error of CheckSlots.
func TestSlotsByClient(t *testing.T) {
	s := New(Config{Identity: Identity(0)})
	take := func(client string) (got int) {
		for range maxRequests {
			if _, ok := s.acquire(httptest.NewRecorder(), client); ok {
				got++
			}
		}
		return got
	}
	if got := take("greedy"); got != maxRequests/2 {
		t.Errorf("one client has %d slots, want %d", got, maxRequests/2)
	}
	if err := s.CheckSlots(t.Context()); err != nil {
		t.Errorf("after refusals of a client with too many requests: %v", err)
	}
	leave, ok := s.acquire(httptest.NewRecorder(), "other")
	if !ok {
		t.Fatal("another client has no slot")
	}
	leave()
	if used, most := s.slots.Figures(); used != maxRequests/2 || most != maxRequests/2 {
		t.Errorf("%d slots are taken, %d of one client", used, most)
	}
}

// TestUnknownSendersLines: the requests of unknown senders make a limited number of lines in the log.
func TestUnknownSendersLines(t *testing.T) {
	var lines bytes.Buffer
	now := time.Now()
	s := New(Config{Identity: Identity(0), Log: slog.New(slog.NewTextHandler(&lines, nil)),
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

// TestWrongRegistrationsByAddress: failed registrations of one address do not stop registrations of another
// address. A sender with very many addresses cannot bypass the limit.
func TestWrongRegistrationsByAddress(t *testing.T) {
	f, now := newGuesses(), time.Now()
	for range guessBurst {
		if f.tooMany("10.0.0.1", now) {
			t.Fatal("too early")
		}
		f.record("10.0.0.1", now)
	}
	if !f.tooMany("10.0.0.1", now) || f.tooMany("10.0.0.2", now) {
		t.Error("the limit is not for the address that failed")
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
	f.record("another", now.Add(time.Hour)) // no other address has a limit any more
	if len(f.byAddress) != 1 {
		t.Errorf("%d addresses are remembered after an hour", len(f.byAddress))
	}
}

// TestReadsByClient: a client with very many reads leaves room for the reads of others.
func TestReadsByClient(t *testing.T) {
	var s seenReads
	now := time.Unix(1, 0)
	until := now.Add(2 * trustee.MaxSkew)
	greedy := 0
	for i := range maxSeen {
		if err := s.add(fmt.Sprint("greedy", i), "greedy", until, now); err == nil {
			greedy++
		} else if !claviger.Is(err, claviger.Unavailable) {
			t.Fatal(err)
		}
	}
	if greedy != maxSeen/2 {
		t.Errorf("one client has %d reads, want %d", greedy, maxSeen/2)
	}
	if err := s.add("other", "other", until, now); err != nil {
		t.Errorf("another client: %v", err)
	}
	if err := s.add("greedy0", "greedy", until, now); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("a replay: %v", err)
	}
	later := until.Add(time.Second)
	if err := s.add("greedy again", "greedy", later.Add(time.Minute), later); err != nil || len(s.reads) != 1 ||
		s.byClient["greedy"] != 1 || len(s.byClient) != 1 {
		t.Errorf("after its reads have expired: %v, %d are in the table, %v", err, len(s.reads), s.byClient)
	}
}

// TestAddressOf: all addresses of an IPv6 network count as one, because one host may use them all.
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
