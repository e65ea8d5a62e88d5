package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
)

// TestArguments: the server refuses arguments that it does not know, and says so.
func TestArguments(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	unknown := struct {
		UUID   string   `json:"uuid"`
		UUIDs  []string `json:"uuids"`
		Nobody string   `json:"nobody"`
	}{"u", []string{"u"}, "x"}
	for _, verb := range []string{trustee.VerbPut, trustee.VerbGet, trustee.VerbFind, trustee.VerbList,
		trustee.VerbDelete, trustee.VerbUndelete, trustee.VerbPurge} {
		got := b.send(id, verb, unknown, nil)
		if want := "the arguments of " + verb + " cannot be read"; got.status != http.StatusOK ||
			!claviger.Is(got.err, claviger.Invalid) || !strings.Contains(got.err.Error(), want) {
			t.Errorf("%s: %+v", verb, got)
		}
	}
	got := b.send(id, trustee.VerbRegister, unknown, nil)
	if got.status != http.StatusBadRequest || !strings.Contains(got.text, "the arguments of register cannot be read") {
		t.Errorf("register: %+v", got)
	}
}

// TestLimits: a page has 1 to MaxPage deposits, and a list of uuids has 1 to MaxUUIDs uuids.
func TestLimits(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	for n, ok := range map[int]bool{-1: false, 0: false, 1: true, trustee.MaxPage: true, trustee.MaxPage + 1: false} {
		got := b.send(id, trustee.VerbList, trustee.ListArgs{Limit: n}, nil)
		if refused := claviger.Is(got.err, claviger.Invalid); refused == ok || !refused && got.err != nil {
			t.Errorf("a page of %d: %+v", n, got)
		}
	}
	for _, verb := range []string{trustee.VerbDelete, trustee.VerbUndelete, trustee.VerbPurge} {
		for n, kind := range map[int]claviger.Kind{0: claviger.Invalid, 1: claviger.KeyNotFound,
			server.MaxUUIDs: claviger.KeyNotFound, server.MaxUUIDs + 1: claviger.Invalid} {
			got := b.send(id, verb, trustee.UUIDArgs{UUIDs: make([]string, n)}, nil)
			wantKind(t, fmt.Sprintf("%s of %d", verb, n), got.err, kind)
		}
	}
}

// TestExpiry: a deposit is readable until the time of its expiry, and a new deposit must expire in the future.
func TestExpiry(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	b.now = b.now.Truncate(time.Millisecond)
	expires := b.now.Add(time.Minute)
	deposit, uuid := sealed(t, id, trustee.Deposit{Label: "l", Content: []byte("x"), Expires: expires})
	late, _ := sealed(t, id, trustee.Deposit{Label: "late", Content: []byte("x"), Expires: expires})
	empty, _ := sealed(t, id, trustee.Deposit{Label: "empty"})
	put := func(s trustee.Sealed) error {
		return b.send(id, trustee.VerbPut, trustee.PutArgs{Deposit: s}, nil).err
	}
	if err := put(deposit); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{-time.Millisecond, 0} {
		b.now = expires.Add(after)
		for verb, args := range map[string]any{trustee.VerbGet: trustee.GetArgs{UUID: uuid},
			trustee.VerbFind: trustee.FindArgs{Label: "l"}} {
			var got trustee.Sealed
			err := b.send(id, verb, args, &got).err
			if after < 0 && (err != nil || string(got.Content) != "x") || after == 0 && (!claviger.Is(err,
				claviger.KeyNotFound) || got.Content != nil) {
				t.Errorf("%s, %v after the expiry: %q, %v", verb, after, got.Content, err)
			}
		}
	}
	for what, s := range map[string]trustee.Sealed{"already expired": late, "the deposit is empty": empty} {
		if err := put(s); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if list, err := b.store.List(t.Context(), id.Fingerprint(), trustee.ListArgs{Limit: 10}); err != nil ||
		len(list) != 1 {
		t.Errorf("the store has %d deposits, %v", len(list), err)
	}
}

// TestForgedDeposit: a deposit that its sender has not signed is refused, and the answer says why.
func TestForgedDeposit(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	others, _ := sealed(t, server.Identity(2), trustee.Deposit{Label: "l", Content: []byte("x")})
	changed, _ := sealed(t, id, trustee.Deposit{Label: "l", Content: []byte("x")})
	changed.Content = []byte("y")
	for why, s := range map[string]trustee.Sealed{"does not have the signature of": others,
		"does not have the digest that its owner signed": changed} {
		err := b.send(id, trustee.VerbPut, trustee.PutArgs{Deposit: s}, nil).err
		if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), why) {
			t.Errorf("%v does not say that it %s", err, why)
		}
	}
}

// TestOpened: a deposit is stored as the Key HSM wraps it, and returned as the owner sent it. A deposit that this
// server cannot unwrap may be readable at the other server, so the error is of kind Unavailable.
func TestOpened(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	uuid := b.put(id, trustee.Deposit{Label: "l", Content: []byte("x")})
	row, err := b.store.Get(t.Context(), uuid)
	if err != nil || !row.Wrapped || string(row.Sealed.Content) != keeperWord+"x" {
		t.Fatalf("the store has %q, %v", row.Sealed.Content, err)
	}
	var got trustee.Sealed
	if a := b.send(id, trustee.VerbGet, trustee.GetArgs{UUID: uuid}, &got); a.err != nil || string(got.Content) != "x" {
		t.Errorf("%q, %v", got.Content, a.err)
	}
	b.before = func(method string) error {
		if method == "Unwrap" {
			return claviger.Errorf("test", claviger.Invalid, "", "a damaged content")
		}
		return nil
	}
	refused := func(b *tracedServer, why string) {
		t.Helper()
		b.log.Reset()
		a := b.send(id, trustee.VerbGet, trustee.GetArgs{UUID: uuid}, nil)
		if !claviger.Is(a.err, claviger.Unavailable) || !strings.Contains(b.log.String(), why) {
			t.Errorf("%v; the log has %s", a.err, b.log.String())
		}
	}
	refused(b, "cannot be unwrapped here")

	// A server without a Key HSM cannot unwrap a deposit, but it can store and return other deposits.
	without := newTracedServer(t, func(c *server.Config) { c.Keeper = nil })
	without.add(id, "ORG")
	if err := without.store.Put(t.Context(), row, "", server.Once{Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	refused(without, "started without --keyhsm")
	plain := without.put(id, trustee.Deposit{Label: "plain", Content: []byte("y")})
	if row, err := without.store.Get(t.Context(), plain); err != nil || row.Wrapped ||
		string(row.Sealed.Content) != "y" {
		t.Errorf("the store has %q, %v", row.Sealed.Content, err)
	}
	if a := without.send(id, trustee.VerbGet, trustee.GetArgs{UUID: plain}, &got); a.err != nil ||
		string(got.Content) != "y" {
		t.Errorf("%q, %v", got.Content, a.err)
	}
}

// TestUnsure: a server that may lack records does not answer that a record does not exist, and sends no list that may
// lack deposits.
func TestUnsure(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	uuid := b.put(id, trustee.Deposit{Label: "l", Content: []byte("x")})
	missing, there, list := trustee.GetArgs{UUID: "none"}, trustee.GetArgs{UUID: uuid}, trustee.ListArgs{Limit: 1}
	for what, tt := range map[string]struct {
		knows  server.Knowledge
		verb   string
		args   any
		unsure bool
		kind   claviger.Kind // of an error in an answer that is sure; 0: none
	}{
		"a missing deposit": {server.Knowledge{Sure: true}, trustee.VerbGet, missing, false,
			claviger.KeyNotFound},
		"a deposit that may be there":  {server.Knowledge{Lists: true}, trustee.VerbGet, missing, true, 0},
		"a deposit that is there":      {server.Knowledge{}, trustee.VerbGet, there, false, 0},
		"a list":                       {server.Knowledge{Lists: true}, trustee.VerbList, list, false, 0},
		"a list that may lack some":    {server.Knowledge{Sure: true}, trustee.VerbList, list, true, 0},
		"another verb without lists":   {server.Knowledge{Sure: true}, trustee.VerbClients, struct{}{}, false, 0},
		"a refused list without lists": {server.Knowledge{}, trustee.VerbList, missing, false, claviger.Invalid},
	} {
		b.knowledge = tt.knows
		got := b.send(id, tt.verb, tt.args, nil)
		switch {
		case tt.unsure != errors.Is(got.err, trustee.ErrUnsure),
			tt.unsure && !claviger.Is(got.err, claviger.Unavailable),
			!tt.unsure && tt.kind == 0 && got.err != nil, tt.kind != 0 && !claviger.Is(got.err, tt.kind):
			t.Errorf("%s: %v", what, got.err)
		}
	}
	for sure, want := range map[bool]string{true: "403 the client " + server.Identity(2).Fingerprint() +
		" is not registered here\n", false: "503 " + trustee.ErrUnsure.Error() + "\n"} {
		b.knowledge = server.Knowledge{Sure: sure, Lists: true}
		got := b.send(server.Identity(2), trustee.VerbGet, missing, nil)
		if text := fmt.Sprintf("%d %s", got.status, got.text); text != want {
			t.Errorf("an unknown client, sure: %t: %q, want %q", sure, text, want)
		}
	}
}

// TestRefusedByReplica: while the replica cannot answer, the server sends clients to the other server. Only the log
// has the text of an unknown error.
func TestRefusedByReplica(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	for want, err := range map[string]error{
		server.ErrBehind.Error():             server.ErrBehind,
		server.ErrLacking.Error():            server.ErrLacking,
		"the server's store does not answer": errInjected,
	} {
		var calls []string
		b.before = func(method string) error {
			calls = append(calls, method)
			return claviger.E("test", claviger.Unavailable, "", err)
		}
		b.log.Reset()
		got := b.send(id, trustee.VerbClients, struct{}{}, nil)
		if got.status != http.StatusServiceUnavailable || got.text != want+"\n" ||
			got.header.Get("Retry-After") != "1" || len(calls) != 1 ||
			strings.Contains(b.log.String(), errInjected.Error()) != errors.Is(err, errInjected) {
			t.Errorf("%v: %+v after %s; the log has %s", err, got, calls, b.log.String())
		}
	}
}

// TestShown: the sender of a request sees the reason for which it was refused, but not a fault of the server.
func TestShown(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	b.add(id, "ORG")
	const masked = "the server cannot do this now"
	for _, tt := range []struct {
		err  error
		kind claviger.Kind
		want string // in the error of a client
		log  string
	}{
		{claviger.E("t", claviger.Unavailable, "", server.ErrAway), claviger.Unavailable, server.ErrAway.Error(),
			"ERROR"},
		{claviger.E("t", claviger.Unavailable, "", trustee.ErrPassive), claviger.Unavailable,
			trustee.ErrPassive.Error(), "DEBUG"},
		{claviger.E("t", claviger.KeyNotFound, "", trustee.ErrUnsure), claviger.Unavailable, trustee.ErrUnsure.Error(),
			"WARN"},
		{claviger.E("t", claviger.Unavailable, "", errInjected), claviger.Unavailable, masked, "ERROR"},
		{claviger.E("t", claviger.Internal, "", errInjected), claviger.Internal, "the server has failed", "ERROR"},
		{claviger.E("t", claviger.KeyExists, "", errInjected), claviger.KeyExists, errInjected.Error(), "INFO"},
		{nil, 0, "", "DEBUG"},
	} {
		b.log.Reset()
		b.before = func(method string) error {
			if method == "Ready" || method == "Do" {
				return tt.err
			}
			return nil
		}
		get := b.send(id, trustee.VerbDelete, trustee.UUIDArgs{UUIDs: []string{"none"}}, nil)
		peer := b.send(server.Identity(0), trustee.VerbPeerHello, struct{}{}, nil)
		if tt.err == nil {
			if !claviger.Is(get.err, claviger.KeyNotFound) || peer.err != nil {
				t.Errorf("without an error: %v and %v", get.err, peer.err)
			}
			continue
		}
		peerWant := strings.Replace(tt.want, masked, errInjected.Error(), 1)
		if !claviger.Is(get.err, tt.kind) || !strings.Contains(get.err.Error(), tt.want) || get.status != 200 ||
			!claviger.Is(peer.err, tt.kind) || !strings.Contains(peer.err.Error(), peerWant) || peer.status != 200 {
			t.Errorf("%v: a client gets %v, the other server %v", tt.err, get.err, peer.err)
		}
		if strings.Count(b.log.String(), "level="+tt.log) != 2 {
			t.Errorf("%v: the log has %s", tt.err, b.log.String())
		}
	}
}

// TestSingle: the errors of a server that is not one of two say so to an operator. The error of a status request also
// has the reason why the store accepts no changes.
func TestSingle(t *testing.T) {
	b := newTracedServer(t, func(c *server.Config) { c.Replica = nil })
	fault := error(nil)
	b.before = func(method string) error {
		if method == "CheckWrites" {
			return fault
		}
		return nil
	}
	for _, tt := range []struct {
		verb, want string
		fault      error
	}{
		{trustee.VerbPromote, "", errInjected},
		{trustee.VerbStatus, errInjected.Error(), errInjected},
		{trustee.VerbStatus, errInjected.Error(), nil}, // of the last probe
	} {
		fault = tt.fault
		err := b.send(server.Identity(0), tt.verb, struct{}{}, nil).err
		if !server.IsSingle(err) || server.SingleFault(err) != tt.want {
			t.Errorf("%s: %v", tt.verb, err)
		}
	}
	b = newTracedServer(t, func(c *server.Config) { c.Replica = nil })
	if err := b.send(server.Identity(0), trustee.VerbStatus, struct{}{}, nil).err; !server.IsSingle(err) ||
		server.SingleFault(err) != "" || strings.Contains(err.Error(), "its store takes no changes") {
		t.Errorf("a store that accepts changes: %v", err)
	}
	text := b.send(server.Identity(0), trustee.VerbStatus, struct{}{}, nil).err.Error()
	for _, err := range []error{claviger.Errorf("t", claviger.Unavailable, "", "%s", text),
		claviger.Errorf("t", claviger.Invalid, "", "another error"), errors.New(text)} {
		if server.IsSingle(err) {
			t.Errorf("IsSingle(%v)", err)
		}
	}
	b.add(server.Identity(1), "ORG")
	got := b.send(server.Identity(1), trustee.VerbStatus, struct{}{}, nil)
	if got.status != http.StatusForbidden || !strings.Contains(got.text, "only the identity of the Key Trustee") {
		t.Errorf("a client: %+v", got)
	}
}

// TestUnsignable: if the server cannot sign an answer, the sender gets status 500, and only the log has the reason.
func TestUnsignable(t *testing.T) {
	b := newTracedServer(t)
	b.result = func() {}
	got := b.send(server.Identity(0), trustee.VerbPeerHello, struct{}{}, nil)
	if got.status != http.StatusInternalServerError || got.text != "the server has failed\n" ||
		!strings.Contains(b.log.String(), "an answer cannot be signed") {
		t.Errorf("%+v; the log has %s", got, b.log.String())
	}
	b.result = []int{7}
	var result []int
	got = b.send(server.Identity(0), trustee.VerbPeerHello, struct{}{}, &result)
	if got.err != nil || len(result) != 1 || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("%+v, %v", got, result)
	}
}

// TestDamagedClient: a client whose public key in the store is damaged gets an error.
func TestDamagedClient(t *testing.T) {
	b, id := newTracedServer(t), server.Identity(1)
	if _, err := b.store.AddClient(t.Context(), server.Client{Fingerprint: id.Fingerprint(), Org: "ORG",
		PublicKey: []byte("x"), State: server.Active}, server.Once{Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	got := b.send(id, trustee.VerbClients, struct{}{}, nil)
	if got.status != http.StatusBadRequest || !strings.Contains(b.log.String(), "in the store") {
		t.Errorf("%+v; the log has %s", got, b.log.String())
	}
}

// observed is a call of Config.Observe.
type observed struct{ verb, result string }

// TestObserve: Observe is called with the result of each request, also if the sender is unknown.
func TestObserve(t *testing.T) {
	var got []observed
	b := newTracedServer(t, func(c *server.Config) {
		c.Observe = func(verb, result string, took time.Duration) {
			if took <= 0 || took > time.Hour {
				t.Errorf("%s took %v", verb, took)
			}
			got = append(got, observed{verb, result})
		}
	})
	id := server.Identity(1)
	b.add(id, "ORG")
	want := func(verb, result string, status int, a answer) {
		t.Helper()
		if len(got) != 1 || got[0] != (observed{verb, result}) || a.status != status {
			t.Errorf("%s is observed as %v with status %d, want %s and %d", verb, got, a.status, result, status)
		}
		got = nil
	}
	want("clients", "ok", 200, b.send(id, trustee.VerbClients, struct{}{}, nil))
	want("get", claviger.KeyNotFound.String(), 200, b.send(id, trustee.VerbGet, trustee.GetArgs{UUID: "none"}, nil))
	want("get", "denied", 403, b.send(server.Identity(2), trustee.VerbGet, trustee.GetArgs{UUID: "none"}, nil))
	want("get", "invalid", 400, b.post(trustee.VerbGet, []byte("{}"), "", nil))
	want("get", "invalid", 413, b.post(trustee.VerbGet, make([]byte, trustee.MaxBody+1), "", nil))
	b.before = func(string) error { return claviger.E("t", claviger.Unavailable, "", errInjected) }
	want("get", "unavailable", 503, b.send(id, trustee.VerbGet, trustee.GetArgs{UUID: "none"}, nil))
	b.before, b.result = nil, func() {}
	want("status", "unavailable", 500, b.send(server.Identity(0), trustee.VerbStatus, struct{}{}, nil))
}

// deadlines is an http.ResponseWriter that records the read deadlines of its connection.
type deadlines struct {
	*httptest.ResponseRecorder
	list []time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.list = append(d.list, at)
	return nil
}

// TestBodyTime: the body of a request has a deadline, which ends with the body.
func TestBodyTime(t *testing.T) {
	for _, observe := range []func(string, string, time.Duration){nil, func(string, string, time.Duration) {}} {
		b := newTracedServer(t, func(c *server.Config) { c.Observe = observe })
		b.add(server.Identity(1), "ORG")
		body, _, err := server.Identity(1).NewRequest(trustee.VerbClients, server.Identity(0).Fingerprint(), struct{}{},
			b.now)
		if err != nil {
			t.Fatal(err)
		}
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		before := time.Now()
		b.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/v1/clients",
			bytes.NewReader(body)))
		if w.Code != http.StatusOK || len(w.list) != 2 || w.list[0].Before(before.Add(server.BodyTime)) ||
			w.list[0].After(time.Now().Add(server.BodyTime)) || !w.list[1].IsZero() {
			t.Errorf("status %d, deadlines %v", w.Code, w.list)
		}
	}
}
