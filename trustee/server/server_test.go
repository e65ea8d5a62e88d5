package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a server, over TLS, with the organization ORG, whose secret is s3cret, and the organization MANUAL
// without a secret.
type site struct {
	t     *testing.T
	id    *trustee.Identity
	store *sqlite.Store
	url   string
	tls   *tls.Config
	shift atomic.Int64 // the server's clock, in nanoseconds ahead
	// cut is how many answers are lost, because the connection is cut.
	cut atomic.Int64
}

func newSite(t *testing.T) *site {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "trustee.db"), true)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, id: server.Identity(0), store: store}
	for _, o := range []server.Org{{Name: "ORG", UUID: "u1", Contacts: []string{"a@b"}, Auth: "s3cret",
		Created: time.Now()}, {Name: "MANUAL", UUID: "u2", Created: time.Now()}} {
		if err := store.AddOrg(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	handler := server.New(server.Config{Identity: s.id, Store: store,
		Now: func() time.Time { return time.Now().Add(time.Duration(s.shift.Load())) }})
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.cut.Load() > 0 && s.cut.Add(-1) >= 0 {
			handler.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		handler.ServeHTTP(w, r)
	}))
	s.url, s.tls = web.URL, tlsOf(web)
	t.Cleanup(func() {
		web.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// tlsOf returns the configuration of a client that trusts a web server.
func tlsOf(web *httptest.Server) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

func (s *site) client(id *trustee.Identity) *trustee.Client {
	s.t.Helper()
	c, err := trustee.NewClient(trustee.ClientConfig{Identity: id, Servers: []trustee.Endpoint{{URL: s.url,
		Server: &s.id.Party}}, TLS: s.tls})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

func (s *site) registered(id *trustee.Identity, org string) *trustee.Client {
	s.t.Helper()
	c := s.client(id)
	if active, err := c.Register(s.t.Context(), org, "s3cret", false); err != nil || !active {
		s.t.Fatalf("%t, %v", active, err)
	}
	return c
}

func wantKind(t *testing.T, what string, err error, kind claviger.Kind) {
	t.Helper()
	if !claviger.Is(err, kind) {
		t.Errorf("%s: %v, want kind %v", what, err, kind)
	}
}

// TestAbout: the pages that need no signed request.
func TestAbout(t *testing.T) {
	s := newSite(t)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: s.tls}}
	t.Cleanup(c.CloseIdleConnections)
	for path, want := range map[string]string{"/?a=fingerprint": "200 " + s.id.String() + "\n",
		"/": "400 request /?a=fingerprint", "/v1/get": "405 ", "/v1/steal": "404 ", "/favicon.ico": "404 "} {
		resp, err := c.Get(s.url + path) //nolint:noctx // of this test's own server
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if got := fmt.Sprintf("%d %s", resp.StatusCode, body); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	// A path answers 405 to a method that it does not support. No request makes the server fail.
	for path, has := range map[string]string{"/?a=publickey": "GET HEAD", "/v1/get": "POST", "/v1/steal": "",
		"/elsewhere": ""} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND",
			"get", "FOO"} {
			req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if refused := has != "" && !slices.Contains(strings.Fields(has), method); resp.StatusCode >= 500 ||
				refused != (resp.StatusCode == http.StatusMethodNotAllowed) ||
				(has == "") != (resp.StatusCode == http.StatusNotFound) ||
				refused == (resp.Header.Get("Allow") == "") {
				t.Errorf("%s %s: %d, Allow %q", method, path, resp.StatusCode, resp.Header.Get("Allow"))
			}
		}
	}
	for path, want := range map[string]string{"/?a=fingerprint": "text/plain; charset=utf-8",
		"/?a=publickey": "application/pgp-keys"} {
		resp, err := c.Head(s.url + path) //nolint:noctx // of this test's own server
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	p, err := s.client(server.Identity(1)).Introduce(t.Context(), s.url)
	if err != nil || p.String() != s.id.String() {
		t.Errorf("%v, %v", p, err)
	}
}

// TestRegister: a client registers with the organization's secret, and may do so again.
func TestRegister(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	c := s.client(server.Identity(1))
	_, err := c.Find(ctx, "l")
	wantKind(t, "an unknown client", err, claviger.Denied)
	for _, a := range [][2]string{{"ORG", "wrong"}, {"ORG", ""}, {"NONE", "s3cret"}, {"NONE", ""}, {"", ""}} {
		_, err := c.Register(ctx, a[0], a[1], false)
		wantKind(t, fmt.Sprint(a), err, claviger.Denied)
		if err != nil && !strings.Contains(err.Error(), "the organization or its secret is wrong") {
			t.Error(err)
		}
	}
	for range 2 { // a client may register again
		if active, err := c.Register(ctx, "ORG", "s3cret", false); err != nil || !active {
			t.Fatalf("%t, %v", active, err)
		}
	}
	_, err = c.Register(ctx, "MANUAL", "", false)
	wantKind(t, "into a second organization", err, claviger.KeyExists)
	if err := s.store.SetState(ctx, server.Identity(1).Fingerprint(), server.Disabled); err != nil {
		t.Fatal(err)
	}
	_, err = c.Find(ctx, "l")
	wantKind(t, "a disabled client", err, claviger.Denied)
	if !strings.Contains(err.Error(), "orgtool enable-client") {
		t.Error(err)
	}
	_, err = c.Register(ctx, "ORG", "s3cret", false)
	wantKind(t, "registration of a disabled client", err, claviger.Denied)

	manual := s.client(server.Identity(2))
	if active, err := manual.Register(ctx, "MANUAL", "whatever", false); err != nil || active {
		t.Fatalf("%t, %v", active, err)
	}
	_, err = manual.Put(ctx, trustee.Deposit{Label: "l", Content: []byte("x")}, "")
	wantKind(t, "a pending client", err, claviger.Denied)
	if err := s.store.SetState(ctx, server.Identity(2).Fingerprint(), server.Active); err != nil {
		t.Fatal(err)
	}
	_, err = manual.Find(ctx, "l")
	wantKind(t, "the deposit of a client that was pending", err, claviger.KeyNotFound)
}

// TestSlowSenders: senders that begin a request and do not continue do not stop the requests of a client, not even
// senders at the client's own address.
func TestSlowSenders(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	c := s.registered(server.Identity(1), "ORG")
	// The address of a client that has sent nothing but its registration gets fewer slots.
	_, err := c.Find(ctx, "l")
	wantKind(t, "a client alone", err, claviger.KeyNotFound)
	for range 100 {
		conn, err := (&tls.Dialer{Config: s.tls}).DialContext(ctx, "tcp", strings.TrimPrefix(s.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "POST /v1/get HTTP/1.1\r\nHost: x\r\nContent-Length: "+
			"1000\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 { // the server may not have read the last connections yet
		_, err := c.Find(ctx, "l")
		wantKind(t, "a client beside slow senders", err, claviger.KeyNotFound)
		time.Sleep(10 * time.Millisecond)
	}
}

// TestPending: unknown senders cannot fill the store with pending clients.
func TestPending(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	for i := range server.MaxPending {
		c := server.Client{Fingerprint: fmt.Sprintf("%040d", i), Org: "MANUAL", State: server.Pending,
			PublicKey: []byte("k"), Created: time.Now()}
		if _, err := s.store.AddClient(ctx, c, server.Once{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.store.AddClient(ctx, c, server.Once{}); err != nil {
			t.Fatalf("again: %v", err)
		}
	}
	c := s.client(server.Identity(1))
	_, err := c.Register(ctx, "MANUAL", "", false)
	wantKind(t, "too many pending clients", err, claviger.Denied)
	if err := s.store.SetState(ctx, fmt.Sprintf("%040d", 0), server.Active); err != nil {
		t.Fatal(err)
	}
	if active, err := c.Register(ctx, "MANUAL", "", false); err != nil || active {
		t.Errorf("after one client was enabled: %t, %v", active, err)
	}
}

// TestBox tests the contract of trustee.Box.
func TestBox(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	c, other := s.registered(server.Identity(1), "ORG"), s.registered(server.Identity(2), "ORG")
	one := s.put(c, "key/a", "1", "")
	if d, err := c.Get(ctx, one); err != nil || d.Label != "key/a" || string(d.Content) != "1" ||
		d.Description != "d" || d.Owner != server.Identity(1).Fingerprint() {
		t.Errorf("%+v, %v", d, err)
	}
	_, err := c.Put(ctx, trustee.Deposit{Label: "key/a", Content: []byte("x")}, "")
	wantKind(t, "a label that is taken", err, claviger.KeyExists)
	if _, err := other.Put(ctx, trustee.Deposit{Label: "key/a", Content: []byte("theirs")}, ""); err != nil {
		t.Errorf("another's label: %v", err)
	}
	two := s.put(c, "key/a", "2", one)
	_, err = c.Put(ctx, trustee.Deposit{Label: "key/a", Content: []byte("3")}, one)
	wantKind(t, "the second of two replacements", err, claviger.KeyNotFound)
	_, err = other.Put(ctx, trustee.Deposit{Label: "key/b", Content: []byte("3")}, two)
	wantKind(t, "to replace another's", err, claviger.KeyNotFound)
	if d, err := c.Find(ctx, "key/a"); err != nil || d.UUID != two || string(d.Content) != "2" {
		t.Errorf("%+v, %v", d, err)
	}
	_, err = c.Get(ctx, one)
	wantKind(t, "a replaced deposit", err, claviger.KeyNotFound)
	_, err = other.Get(ctx, two)
	wantKind(t, "another's", err, claviger.KeyNotFound)
	_, err = c.Put(ctx, trustee.Deposit{Label: "old", Content: []byte("3"), Expires: time.Now().Add(-time.Minute)}, "")
	wantKind(t, "an expired deposit", err, claviger.Invalid)
	_, err = c.Put(ctx, trustee.Deposit{Label: "empty"}, "")
	wantKind(t, "an empty deposit", err, claviger.Invalid)
	_, err = c.Put(ctx, trustee.Deposit{Label: "large", Content: make([]byte, trustee.MaxContent+1)}, "")
	wantKind(t, "a large deposit", err, claviger.Invalid)
	if _, err := c.Put(ctx, trustee.Deposit{Label: "largest", Content: make([]byte, trustee.MaxContent)},
		""); err != nil {
		t.Errorf("a deposit at the limit: %v", err)
	}

	soon, err := c.Put(ctx, trustee.Deposit{Label: "soon", Content: []byte("3"), Expires: time.Now().Add(time.Minute)},
		"")
	if err != nil {
		t.Fatal(err)
	}
	s.shift.Store(int64(2 * time.Minute))
	_, err = c.Get(ctx, soon)
	wantKind(t, "a deposit that has expired since", err, claviger.KeyNotFound)
	s.shift.Store(0)
}

// TestBoxPages: pages of a list come in the order of labels.
func TestBoxPages(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	c := s.registered(server.Identity(1), "ORG")
	for i := range 5 {
		s.put(c, fmt.Sprintf("version/a@%d", i), "m", "")
	}
	var labels []string
	cursor := ""
	for {
		page, err := c.List(ctx, "version/", false, cursor, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, d := range page {
			labels, cursor = append(labels, d.Label), d.Cursor()
		}
	}
	if got := strings.Join(labels, " "); got != "version/a@0 version/a@1 version/a@2 version/a@3 version/a@4" {
		t.Error(got)
	}
}

// TestBoxDelete: only the owner deletes, undeletes and purges deposits, all or none.
func TestBoxDelete(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	c, other := s.registered(server.Identity(1), "ORG"), s.registered(server.Identity(2), "ORG")
	two := s.put(c, "key/a", "2", "")
	wantKind(t, "to delete another's", other.Delete(ctx, two), claviger.KeyNotFound)
	third := s.put(c, "key/c", "c", "")
	wantKind(t, "all or none", c.Delete(ctx, third, "nosuchdepositatallinthisworld"), claviger.KeyNotFound)
	if _, err := c.Get(ctx, third); err != nil {
		t.Errorf("a delete that failed has deleted: %v", err)
	}
	wantKind(t, "to purge a live deposit", c.Purge(ctx, two), claviger.KeyNotFound)
	if err := c.Delete(ctx, two, third); err != nil {
		t.Fatal(err)
	}
	_, err := c.Find(ctx, "key/a")
	wantKind(t, "a deleted deposit", err, claviger.KeyNotFound)
	if gone, err := c.List(ctx, "key/", true, "", 10); err != nil || len(gone) != 2 || gone[0].Deleted.IsZero() ||
		gone[0].Content != nil {
		t.Errorf("%+v, %v", gone, err)
	}
	four := s.put(c, "key/a", "4", "")
	wantKind(t, "the label was taken meanwhile", c.Undelete(ctx, two), claviger.KeyExists)
	if err := c.Undelete(ctx, third); err != nil {
		t.Error(err)
	}
	if d, err := c.Find(ctx, "key/c"); err != nil || d.UUID != third {
		t.Errorf("%+v, %v", d, err)
	}
	if err := c.Purge(ctx, two); err != nil {
		t.Error(err)
	}
	wantKind(t, "a purged deposit", c.Undelete(ctx, two), claviger.KeyNotFound)
	if d, err := c.Get(ctx, four); err != nil || string(d.Content) != "4" {
		t.Errorf("%+v, %v", d, err)
	}
	wantKind(t, "nothing", c.Delete(ctx), claviger.Invalid)
}

// put makes a deposit and returns its uuid.
func (s *site) put(c *trustee.Client, label, content, replaces string) string {
	s.t.Helper()
	d := trustee.Deposit{Label: label, Description: "d", Content: []byte(content)}
	uuid, err := c.Put(s.t.Context(), d, replaces)
	if err != nil {
		s.t.Fatal(err)
	}
	return uuid
}

// TestShared: a client in the access list reads the deposit if it belongs to the owner's organization.
func TestShared(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	owner := s.registered(server.Identity(1), "ORG")
	reader := server.Identity(2)
	uuid, err := owner.Put(ctx, trustee.Deposit{Label: "l", Content: []byte("x"),
		Access: []string{reader.Fingerprint()}}, "")
	if err != nil {
		t.Fatal(err)
	}
	get := func() (int, string) {
		body, digest, err := reader.NewRequest(trustee.VerbGet, s.id.Fingerprint(), trustee.GetArgs{UUID: uuid},
			time.Now())
		if err != nil {
			t.Fatal(err)
		}
		status, answer := s.post(trustee.VerbGet, body)
		var sealed trustee.Sealed
		if err := trustee.ReadAnswer(answer, &s.id.Party, digest, time.Now(), &sealed); err != nil {
			return status, err.Error()
		}
		return status, string(sealed.Content)
	}
	if err := s.store.SetAuth(ctx, "MANUAL", "s3cret"); err != nil {
		t.Fatal(err)
	}
	s.registered(reader, "MANUAL")
	if _, text := get(); !strings.Contains(text, "key not found") {
		t.Errorf("a client of another organization reads %q", text)
	}
	// A client of the owner's organization reads the deposit if it is in the access list.
	s = newSite(t)
	s.registered(reader, "ORG")
	owner = s.registered(server.Identity(1), "ORG")
	if uuid, err = owner.Put(ctx, trustee.Deposit{Label: "l", Content: []byte("x"),
		Access: []string{strings.ToLower(reader.Fingerprint())}}, ""); err != nil {
		t.Fatal(err)
	}
	if status, text := get(); status != 200 || text != "x" {
		t.Errorf("a reader gets %d %q", status, text)
	}
	if uuid, err = owner.Put(ctx, trustee.Deposit{Label: "private", Content: []byte("y")}, ""); err != nil {
		t.Fatal(err)
	}
	if _, text := get(); !strings.Contains(text, "key not found") {
		t.Errorf("a client that is not in the access list reads %q", text)
	}
}

// post sends body without a change.
func (s *site) post(verb string, body []byte) (int, []byte) {
	s.t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: s.tls}}
	defer c.CloseIdleConnections()
	url := s.url + trustee.APIPath + verb
	resp, err := c.Post(url, "application/json", bytes.NewReader(body)) //nolint:noctx // of this test's own server
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, answer
}

// TestReplay: a request that is sent twice is handled once and answered once.
func TestReplay(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	id := server.Identity(1)
	c := s.registered(id, "ORG")
	uuid, err := c.Put(ctx, trustee.Deposit{Label: "l", Content: []byte("x")}, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		verb string
		args any
	}{{trustee.VerbGet, trustee.GetArgs{UUID: uuid}}, {trustee.VerbList, trustee.ListArgs{Limit: 1}},
		{trustee.VerbDelete, trustee.UUIDArgs{UUIDs: []string{uuid}}}} {
		body, digest, err := id.NewRequest(r.verb, s.id.Fingerprint(), r.args, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if status, answer := s.post(r.verb, body); status != 200 || errors.Is(trustee.ReadAnswer(answer, &s.id.Party,
			digest, time.Now(), nil), trustee.ErrReplay) {
			t.Errorf("%s: %d %s", r.verb, status, answer)
		}
		if status, answer := s.post(r.verb, body); status != 200 || !errors.Is(trustee.ReadAnswer(answer, &s.id.Party,
			digest, time.Now(), nil), trustee.ErrReplay) {
			t.Errorf("%s again: %d %s", r.verb, status, answer)
		}
		s.shift.Store(int64(trustee.MaxSkew + time.Second))
		if status, answer := s.post(r.verb, body); status != 400 || !strings.Contains(string(answer), "NTP") {
			t.Errorf("%s later: %d %s", r.verb, status, answer)
		}
		s.shift.Store(0)
	}
	if status, answer := s.post(trustee.VerbGet, make([]byte, trustee.MaxBody+1)); status != 413 {
		t.Errorf("%d %s", status, answer)
	}
}

// TestLostAnswers: a change whose answer is lost is made once, and the client gets a success.
func TestLostAnswers(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	c := s.registered(server.Identity(1), "ORG")
	s.cut.Store(1)
	uuid, err := c.Put(ctx, trustee.Deposit{Label: "l", Content: []byte("x")}, "")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := c.Find(ctx, "l"); err != nil || d.UUID != uuid {
		t.Errorf("%+v, %v", d, err)
	}
	s.cut.Store(1)
	if err := c.Delete(ctx, uuid); err != nil {
		t.Error(err)
	}
	s.cut.Store(2)
	_, err = c.Put(ctx, trustee.Deposit{Label: "m", Content: []byte("x")}, "")
	wantKind(t, "no answer at all", err, claviger.Unavailable)
}

// TestRaces: if many replace one deposit at the same time, one succeeds.
func TestRaces(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	c := s.registered(server.Identity(1), "ORG")
	old, err := c.Put(ctx, trustee.Deposit{Label: "key/a", Content: []byte("0")}, "")
	if err != nil {
		t.Fatal(err)
	}
	var won atomic.Int64
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			_, err := c.Put(ctx, trustee.Deposit{Label: "key/a", Content: fmt.Appendf(nil, "%d", i)}, old)
			switch {
			case err == nil:
				won.Add(1)
			case !claviger.Is(err, claviger.KeyNotFound):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if won.Load() != 1 {
		t.Errorf("%d have succeeded", won.Load())
	}
}

// TestRestart: after the store is opened again, it has all records that were acknowledged, and the digests of
// the requests.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trustee.db")
	if _, err := sqlite.Open(t.Context(), path, false); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("a store that does not exist: %v", err)
	}
	once := server.Once{Digest: "d", Until: time.Now().Add(time.Hour)}
	for i := range 2 {
		store, err := sqlite.Open(t.Context(), path, true)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			err = store.AddOrg(t.Context(), server.Org{Name: "ORG", UUID: "u", Created: time.Now()})
		} else if _, err = store.Org(t.Context(), "ORG"); err == nil {
			wantKind(t, "the same organization", store.AddOrg(t.Context(), server.Org{Name: "ORG", UUID: "v"}),
				claviger.KeyExists)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = store.AddClient(t.Context(), server.Client{Fingerprint: "F", Org: "ORG", PublicKey: []byte{1},
			State: server.Active, Created: time.Now()}, once)
		if replay := errors.Is(err, trustee.ErrReplay); replay != (i == 1) {
			t.Errorf("%d: %v", i, err)
		}
		if err := store.Forget(context.Background(), time.Now()); err != nil {
			t.Error(err)
		}
		if list, err := store.Clients(t.Context(), ""); err != nil || len(list) != 1 || list[0].State != server.Active {
			t.Errorf("%+v, %v", list, err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
}
