package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
)

// takenSlots counts the slots that requests hold.
type takenSlots struct {
	bodies, unknown, slots, registrations, peers int
}

func takenSlotsOf(s *Server) takenSlots {
	s.bodies.mu.Lock()
	defer s.bodies.mu.Unlock()
	used, _ := s.slots.Figures()
	return takenSlots{s.bodies.all, s.bodies.unknown, int(used), len(s.registrationSlots), len(s.peerSlots)}
}

// slotRecorder is a server with a client, and a store and a replica that record the slots that are taken at each call.
type slotRecorder struct {
	Store // not called
	*Server
	key  []byte // of the client; nil: the client is unknown
	fail bool   // Current fails
	seen []string
}

func (l *slotRecorder) record(call string) {
	l.seen = append(l.seen, fmt.Sprint(call, takenSlotsOf(l.Server)))
}

func (l *slotRecorder) Client(context.Context, string) (Client, error) {
	l.record("Client")
	if l.key == nil {
		return Client{}, claviger.E("test", claviger.KeyNotFound, "", nil)
	}
	return Client{PublicKey: l.key, State: Active}, nil
}

func (l *slotRecorder) Clients(context.Context, string) ([]Client, error) {
	l.record("Clients")
	return nil, nil
}

func (l *slotRecorder) Org(context.Context, string) (Org, error) {
	l.record("Org")
	return Org{}, claviger.E("test", claviger.KeyNotFound, "", nil)
}

func (l *slotRecorder) Forget(context.Context, time.Time) error { return nil }

func (l *slotRecorder) Current(context.Context) (Knowledge, error) {
	l.record("Current")
	if l.fail {
		return Knowledge{}, claviger.E("test", claviger.Unavailable, "", ErrBehind)
	}
	return Knowledge{Sure: true, Lists: true}, nil
}

func (l *slotRecorder) Ready(context.Context) error { return nil }

func (l *slotRecorder) Do(context.Context, *trustee.Request) (any, error) {
	l.record("Do")
	return nil, nil
}

// fromAddress is the address of the sender of each request.
const fromAddress = "192.0.2.1"

// send sends a request of id, and returns the answer.
func (l *slotRecorder) send(t *testing.T, id *trustee.Identity, verb string, args any) *httptest.ResponseRecorder {
	t.Helper()
	body, _, err := id.NewRequest(verb, Identity(0).Fingerprint(), args, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return l.post(verb, bytes.NewReader(body))
}

func (l *slotRecorder) post(verb string, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, trustee.APIPath+verb, body)
	r.RemoteAddr = fromAddress + ":7"
	l.seen = nil
	w := httptest.NewRecorder()
	l.ServeHTTP(w, r)
	return w
}

func newSlotRecorder(t *testing.T) *slotRecorder {
	t.Helper()
	var public bytes.Buffer
	if err := Identity(1).Public(&public); err != nil {
		t.Fatal(err)
	}
	l := &slotRecorder{key: public.Bytes()}
	l.Server = New(Config{Identity: Identity(0), Store: l, Replica: l})
	return l
}

// brokenBody is a body that does not arrive.
type brokenBody struct{}

func (brokenBody) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestBodySlots: a body has a slot of its own until the sender is known. Then the request has a slot until the end. A
// registration has its slot instead of the slot of the body, and does not prove its address, because anybody can send
// one. No request keeps a slot.
func TestBodySlots(t *testing.T) {
	l := newSlotRecorder(t)
	server, client := Identity(0), Identity(1)
	register := trustee.RegisterArgs{PublicKey: l.key, Org: "NONE"}
	for _, tt := range []struct {
		what   string
		status int
		send   func() *httptest.ResponseRecorder
		seen   []string // calls, and the slots during each
		proves bool
	}{
		{"a body that does not arrive", 400, func() *httptest.ResponseRecorder {
			return l.post(trustee.VerbGet, brokenBody{})
		}, nil, false},
		{"a long body", 413, func() *httptest.ResponseRecorder {
			return l.post(trustee.VerbGet, bytes.NewReader(make([]byte, trustee.MaxBody+1)))
		}, nil, false},
		{"a server that is behind", 503, func() *httptest.ResponseRecorder {
			l.fail = true
			defer func() { l.fail = false }()
			return l.send(t, client, trustee.VerbClients, struct{}{})
		}, []string{"Current{1 1 0 0 0}"}, false},
		{"an unknown sender", 403, func() *httptest.ResponseRecorder {
			defer func(key []byte) { l.key = key }(l.key)
			l.key = nil
			return l.send(t, client, trustee.VerbClients, struct{}{})
		}, []string{"Current{1 1 0 0 0}", "Client{1 1 0 0 0}"}, false},
		{"a registration", 200, func() *httptest.ResponseRecorder {
			return l.send(t, client, trustee.VerbRegister, register)
		}, []string{"Current{0 0 0 1 0}", "Org{0 0 0 1 0}"}, false},
		{"a client", 200, func() *httptest.ResponseRecorder {
			return l.send(t, client, trustee.VerbClients, struct{}{})
		}, []string{"Current{1 1 0 0 0}", "Client{1 1 0 0 0}", "Client{0 0 1 0 0}", "Clients{0 0 1 0 0}"}, true},
		{"the other server", 200, func() *httptest.ResponseRecorder {
			return l.send(t, server, trustee.VerbPeerHello, struct{}{})
		}, []string{"Do{0 0 0 0 1}"}, true},
	} {
		l.bodies.proved = map[string]time.Time{}
		w := tt.send()
		if w.Code != tt.status || !slices.Equal(l.seen, tt.seen) {
			t.Errorf("%s gets status %d, want %d; the calls are %s, want %s", tt.what, w.Code, tt.status, l.seen,
				tt.seen)
		}
		if left := takenSlotsOf(l.Server); left != (takenSlots{}) || len(l.bodies.open) > 0 {
			t.Errorf("%s leaves the slots %v, by address %v", tt.what, left, l.bodies.open)
		}
		if _, proved := l.bodies.proved[fromAddress]; proved != tt.proves {
			t.Errorf("%s proves its address: %t", tt.what, proved)
		}
	}
}

// TestNoFreeSlot: a request that finds no free slot gets status 503 and is not handled. CheckSlots counts a refusal of
// a client or of the other server for a minute, but not that of a registration.
func TestNoFreeSlot(t *testing.T) {
	server, client := Identity(0), Identity(1)
	for what, tt := range map[string]struct {
		fill    func(*slotRecorder)
		from    *trustee.Identity
		verb    string
		seen    int    // calls
		close   string // the header Connection
		counted bool
	}{
		"no slot for a body": {func(l *slotRecorder) {
			for range perAddress {
				l.bodies.enter(fromAddress)
			}
		}, client, trustee.VerbClients, 0, "close", false},
		"no slot for a registration": {func(l *slotRecorder) {
			for range maxRegistrations {
				l.registrationSlots <- struct{}{}
			}
		}, client, trustee.VerbRegister, 0, "close", false},
		"no slot for the client": {func(l *slotRecorder) {
			for range maxRequests / 2 {
				l.slots.Try(client.Fingerprint(), 1)
			}
		}, client, trustee.VerbClients, 2, "", false},
		"no slot for any client": {func(l *slotRecorder) {
			for i := range maxRequests {
				l.slots.Try(fmt.Sprint(i), 1)
			}
		}, client, trustee.VerbClients, 2, "close", true},
		"no slot for the other server": {func(l *slotRecorder) {
			for range maxPeerRequests {
				l.peerSlots <- struct{}{}
			}
		}, server, trustee.VerbPeerHello, 0, "close", true},
	} {
		l := newSlotRecorder(t)
		now := time.Now()
		l.now = func() time.Time { return now }
		l.bodies.now = l.now
		tt.fill(l)
		before := takenSlotsOf(l.Server)
		w := l.send(t, tt.from, tt.verb, trustee.RegisterArgs{PublicKey: l.key})
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" ||
			w.Header().Get("Connection") != tt.close || len(l.seen) != tt.seen {
			t.Errorf("%s: status %d, %v, after %s", what, w.Code, w.Header(), l.seen)
		}
		if after := takenSlotsOf(l.Server); after != before {
			t.Errorf("%s: %v slots are taken, before %v", what, after, before)
		}
		now = now.Add(fullFor - 1)
		if err := l.CheckSlots(t.Context()); (err != nil) != tt.counted {
			t.Errorf("%s: %v", what, err)
		}
		now = now.Add(1)
		if err := l.CheckSlots(t.Context()); err != nil {
			t.Errorf("%s, a minute later: %v", what, err)
		}
	}
}

// TestSeenReadsAreSwept: with the expired records of the store, the server removes the reads that it need not remember.
func TestSeenReadsAreSwept(t *testing.T) {
	l := newSlotRecorder(t)
	now := time.Now()
	l.now = func() time.Time { return now }
	for range 3 {
		l.send(t, Identity(1), trustee.VerbClients, struct{}{})
	}
	if n := len(l.Server.seen.reads); n != 3 {
		t.Errorf("%d reads are remembered", n)
	}
	now = now.Add(sweepStoreEvery + trustee.MaxSkew)
	l.sweep(t.Context())
	if n := len(l.Server.seen.reads); n != 0 {
		t.Errorf("%d reads are remembered after they have expired", n)
	}
}

// TestPageBytes: a page of a list ends before its statements are too long for an answer. It has at least one deposit.
func TestPageBytes(t *testing.T) {
	for _, tt := range []struct {
		sizes []int
		want  int
	}{
		{[]int{pageBytes + 1}, 1}, {[]int{pageBytes + 1, 2}, 1}, {[]int{2, pageBytes}, 1},
		{[]int{pageBytes / 2, pageBytes / 2}, 2}, {[]int{pageBytes / 2, pageBytes / 2, 2}, 2}, {nil, 0},
	} {
		var rows rowsStore
		for _, n := range tt.sizes {
			rows.list = append(rows.list, Row{Sealed: trustee.Sealed{Statement: make([]byte, n/2),
				Signature: make([]byte, n-n/2)}})
		}
		args, err := json.Marshal(trustee.ListArgs{Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		got, err := New(Config{Store: &rows}).list(t.Context(), &trustee.Request{Args: args,
			Client: &Identity(1).Party})
		if list, ok := got.([]trustee.Sealed); err != nil || !ok || len(list) != tt.want {
			t.Errorf("deposits of %d bytes: %d in a page, %v", tt.sizes, len(list), err)
		}
	}
}

// rowsStore is a store whose lists have these rows.
type rowsStore struct {
	Store
	list []Row
}

func (s *rowsStore) List(context.Context, string, trustee.ListArgs) ([]Row, error) {
	return s.list, nil
}
