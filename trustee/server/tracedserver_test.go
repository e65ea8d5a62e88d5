package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

// tracedServer is a server with a Key HSM and a second server. A test sees each call of the store, of the Key HSM and
// of the replica, and can make the call fail. Requests reach the server without a network. Its store has the
// organization ORG, with the secret s3cret, and the organization MANUAL, which has no secret.
type tracedServer struct {
	*server.Server
	t     *testing.T
	store server.Store // its calls are not seen
	log   bytes.Buffer
	now   time.Time
	// before, if not nil, is called with the name of each method. Its error is the result of the method.
	before func(method string) error
	// knowledge and result are what the replica's methods return.
	knowledge server.Knowledge
	result    any
}

func newTracedServer(t *testing.T, change ...func(*server.Config)) *tracedServer {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "trustee.db"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &tracedServer{t: t, store: store, now: time.Now(), knowledge: server.Knowledge{Sure: true, Lists: true}}
	for _, o := range []server.Org{{Name: "ORG", UUID: "u1", Auth: "s3cret", Created: b.now},
		{Name: "MANUAL", UUID: "u2", Created: b.now}} {
		if err := store.AddOrg(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	cfg := server.Config{Identity: server.Identity(0), Store: &seenStore{store, b}, Keeper: &seenKeeper{b},
		Replica: &seenReplica{b}, Log: slog.New(slog.NewTextHandler(&b.log,
			&slog.HandlerOptions{Level: slog.LevelDebug})), Now: func() time.Time { return b.now }}
	for _, f := range change {
		f(&cfg)
	}
	b.Server = server.New(cfg)
	return b
}

func (b *tracedServer) call(method string) error {
	if b.before == nil {
		return nil
	}
	return b.before(method)
}

// add registers a client with an organization, without a request.
func (b *tracedServer) add(id *trustee.Identity, org string) {
	b.t.Helper()
	_, err := b.store.AddClient(b.t.Context(), server.Client{Fingerprint: id.Fingerprint(), Org: org,
		PublicKey: public(b.t, id), State: server.Active, Created: b.now}, server.Once{Digest: id.Fingerprint(),
		Until: b.now.Add(time.Hour)})
	if err != nil {
		b.t.Fatal(err)
	}
}

func public(t *testing.T, id *trustee.Identity) []byte {
	t.Helper()
	var text bytes.Buffer
	if err := id.Public(&text); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

// digest returns the digest of the store.
func (b *tracedServer) digest() string {
	b.t.Helper()
	d, err := server.StateDigest(b.t.Context(), b.store)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

// answer is an answer of the server. text is the body of an answer without a signature. err is the error in a signed
// answer; for an answer without a signature, err is an error of the kind that the status means.
type answer struct {
	status int
	header http.Header
	text   string
	err    error
}

// send sends a request of id. The result of the answer is decoded into into, which may be nil.
func (b *tracedServer) send(id *trustee.Identity, verb string, args, into any) answer {
	b.t.Helper()
	body, digest, err := id.NewRequest(verb, server.Identity(0).Fingerprint(), args, b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.post(verb, body, digest, into)
}

// post sends the body of a request with this digest.
func (b *tracedServer) post(verb string, body []byte, digest string, into any) answer {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.ServeHTTP(w, httptest.NewRequest(http.MethodPost, trustee.APIPath+verb, bytes.NewReader(body)))
	a := answer{status: w.Code, header: w.Header(), text: w.Body.String()}
	switch w.Code {
	case http.StatusOK:
		a.text = ""
		a.err = trustee.ReadAnswer(w.Body.Bytes(), &server.Identity(0).Party, digest, b.now, into)
	case http.StatusForbidden:
		a.err = claviger.Errorf("test", claviger.Denied, "", "%s", a.text)
	case http.StatusServiceUnavailable:
		a.err = claviger.Errorf("test", claviger.Unavailable, "", "%s", a.text)
	default:
		a.err = claviger.Errorf("test", claviger.Invalid, "", "%s", a.text)
	}
	return a
}

// sealed returns a deposit as its owner sends it, and its uuid.
func sealed(t *testing.T, owner *trustee.Identity, d trustee.Deposit) (s trustee.Sealed, uuid string) {
	t.Helper()
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var envelope struct{ Payload []byte }
		var payload struct{ Args trustee.PutArgs }
		err := json.NewDecoder(r.Body).Decode(&envelope)
		if err = errors.Join(err, json.Unmarshal(envelope.Payload, &payload)); err != nil {
			t.Error(err)
		}
		s = payload.Args.Deposit
		w.WriteHeader(http.StatusForbidden) // then the client does not send the request again
	}))
	defer web.Close()
	site := &site{t: t, id: server.Identity(0), url: web.URL, tls: tlsOf(web)}
	if _, err := site.client(owner).Put(t.Context(), d, ""); !claviger.Is(err, claviger.Denied) {
		t.Fatal(err)
	}
	read, err := s.Read(&owner.Party, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return s, read.UUID
}

// put adds a deposit of owner by a request, and returns its uuid.
func (b *tracedServer) put(owner *trustee.Identity, d trustee.Deposit) (uuid string) {
	b.t.Helper()
	s, uuid := sealed(b.t, owner, d)
	if got := b.send(owner, trustee.VerbPut, trustee.PutArgs{Deposit: s}, nil); got.err != nil {
		b.t.Fatal(got.err)
	}
	return uuid
}

// seenKeeper is the Key HSM of a tracedServer. It puts a word before each content.
type seenKeeper struct{ b *tracedServer }

const keeperWord = "wrapped "

func (k *seenKeeper) Wrap(_ context.Context, _ string, content []byte) ([]byte, error) {
	return append([]byte(keeperWord), content...), k.b.call("Wrap")
}

func (k *seenKeeper) Unwrap(_ context.Context, _ string, wrapped []byte) ([]byte, error) {
	return []byte(strings.TrimPrefix(string(wrapped), keeperWord)), k.b.call("Unwrap")
}

// seenReplica is the replica of a tracedServer.
type seenReplica struct{ b *tracedServer }

func (r *seenReplica) Current(context.Context) (server.Knowledge, error) {
	return r.b.knowledge, r.b.call("Current")
}

func (r *seenReplica) Ready(context.Context) error { return r.b.call("Ready") }

func (r *seenReplica) Do(context.Context, *trustee.Request) (any, error) {
	return r.b.result, r.b.call("Do")
}
