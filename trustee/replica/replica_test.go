package replica_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// identities returns the identity of the servers and that of a client. They are made once, because RSA keys take
// time.
var identities = sync.OnceValue(func() (ids [2]*trustee.Identity) {
	for i := range ids {
		var err error
		if ids[i], err = trustee.NewIdentity("keytrustee", "", fmt.Sprintf("kms@h%d.example.com", i), 2048,
			time.Now().Add(-time.Hour)); err != nil {
			panic(err)
		}
	}
	return ids
})

// pairServer is one of a pair of servers. Its web server runs, at the same address, while the replica is stopped and
// started.
type pairServer struct {
	t             *testing.T
	path          string
	store         *sqlite.Store
	web           *httptest.Server
	role          server.Role
	peer          *pairServer
	handler       atomic.Pointer[server.Server] // nil while the replica is stopped
	answersToLose atomic.Int64                  // the number of next answers to peer-append that do not arrive
	unreachable   atomic.Bool                   // the other server cannot reach this one
	stop          func()
	spool         string
}

// newPair makes an active and a passive server with an organization, and does not start them.
func newPair(t *testing.T) (a, b *pairServer) {
	t.Helper()
	return newPairAt(t, t.TempDir(), t.TempDir())
}

// newPairAt is like newPair, with the stores in these folders.
func newPairAt(t *testing.T, folders ...string) (a, b *pairServer) {
	t.Helper()
	a, b = &pairServer{t: t, role: server.RoleActive}, &pairServer{t: t, role: server.RolePassive}
	a.peer, b.peer = b, a
	for i, h := range []*pairServer{a, b} {
		h.path, h.spool = filepath.Join(folders[i], "trustee.db"), t.TempDir()
		h.web = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handler, peer := h.handler.Load(), strings.HasPrefix(r.URL.Path, "/v1/peer-")
			switch {
			case handler == nil || peer && h.unreachable.Load():
				panic(http.ErrAbortHandler)
			case strings.HasSuffix(r.URL.Path, "/peer-append") && h.answersToLose.Load() > 0 &&
				h.answersToLose.Add(-1) >= 0:
				handler.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
			handler.ServeHTTP(w, r)
		}))
		t.Cleanup(h.web.Close)
		var err error
		if h.store, err = sqlite.Open(t.Context(), h.path, true); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if h.stop != nil {
				h.stop()
			}
			if err := h.store.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err := a.store.AddOrg(t.Context(), server.Org{Name: "ORG", UUID: "u1", Auth: "s3cret",
		Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// tls returns the TLS configuration of a client of the server.
func (h *pairServer) tls() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(h.web.Certificate())
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// client returns a client of the server, and of further servers at these URLs.
func (h *pairServer) client(id *trustee.Identity, urls ...string) *trustee.Client {
	h.t.Helper()
	cfg := trustee.ClientConfig{Identity: id, TLS: h.tls()}
	for _, url := range append([]string{h.web.URL}, urls...) {
		cfg.Servers = append(cfg.Servers, trustee.Endpoint{URL: url, Server: &identities()[0].Party})
	}
	c, err := trustee.NewClient(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(c.Close)
	return c
}

// start opens the replica and serves it. h.stop stops it.
func (h *pairServer) start() {
	h.t.Helper()
	r, err := replica.New(h.t.Context(), replica.Config{Identity: identities()[0], Store: h.store,
		Peer: h.peer.client(identities()[0]), Spool: h.spool}, h.role)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { r.Run(ctx) })
	h.stop = func() {
		h.handler.Store(nil)
		cancel()
		group.Wait()
		h.stop = nil
	}
	h.handler.Store(server.New(server.Config{Identity: identities()[0], Store: h.store, Replica: r}))
}

// operatorRequest sends a request of an operator.
func (h *pairServer) operatorRequest(verb string, args any) error {
	var st replica.ResyncResult // it has the fields of the other results, too
	return h.client(identities()[0]).Request(h.t.Context(), verb, args, &st)
}

func (h *pairServer) status() (r replica.StatusReport) {
	h.t.Helper()
	if err := h.client(identities()[0]).Request(h.t.Context(), trustee.VerbStatus, replica.StatusArgs{Digest: true},
		&r); err != nil {
		h.t.Fatal(err)
	}
	return r
}

// await waits until the server's status is ok. It asks less and less often, because each status is signed.
func (h *pairServer) await(what string, ok func(replica.StatusReport) bool) {
	h.t.Helper()
	var r replica.StatusReport
	pause := 20 * time.Millisecond
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(pause) {
		if r = h.status(); ok(r) {
			return
		}
		pause = min(pause*5/4, 500*time.Millisecond)
	}
	h.t.Fatalf("waited too long for %s: %+v", what, r)
}

func synchronized(r replica.StatusReport) bool {
	return r.Synced && r.Peer != nil && r.Digest == r.PeerDigest && r.Head == r.Peer.Head && r.Unshared == 0 &&
		r.Lag == 0
}

func put(t *testing.T, c *trustee.Client, label, content string) error {
	t.Helper()
	_, err := c.Put(t.Context(), trustee.Deposit{Label: label, Content: []byte(content)}, "")
	return err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startedPair returns two synchronized servers, and a registered client.
func startedPair(t *testing.T) (a, b *pairServer, c *trustee.Client) {
	t.Helper()
	a, b = newPair(t)
	return a, b, startBoth(t, a, b)
}

// startBoth starts two servers, and registers a client.
func startBoth(t *testing.T, a, b *pairServer) *trustee.Client {
	t.Helper()
	a.start()
	b.start()
	a.await("the first copy", synchronized)
	c := a.client(identities()[1], b.web.URL)
	if active, err := c.Register(t.Context(), "ORG", "s3cret", false); err != nil || !active {
		t.Fatalf("%t, %v", active, err)
	}
	return c
}

// TestReplica: the passive server has all acknowledged deposits, also after a first copy of several pages, and the
// changes of orgtool. Both servers answer reads.
func TestReplica(t *testing.T) {
	a, b := newPair(t)
	a.start()
	c := a.client(identities()[1])
	err := put(t, c, "l", "x")
	if !claviger.Is(err, claviger.Unavailable) { // the client may be registered at the passive server
		t.Error(err)
	}
	if _, err := c.Register(t.Context(), "ORG", "s3cret", false); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "claviger trustee alone on") {
		t.Errorf("without the passive: %v", err)
	}
	must(t, a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	if err := put(t, c, "l", "x"); !claviger.Is(err, claviger.Denied) { // the client is not registered
		t.Error(err)
	}
	if _, err := c.Register(t.Context(), "ORG", "s3cret", false); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		must(t, put(t, c, fmt.Sprint("big", i), strings.Repeat(fmt.Sprint(i), 300<<10)))
	}
	if err := os.WriteFile(filepath.Join(b.spool, ".incoming-123"), []byte("cut off"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	a.await("the copy", synchronized)
	if left, err := os.ReadDir(b.spool); err != nil || len(left) > 0 {
		t.Errorf("files of a copy are left: %v, %v", left, err)
	}
	if r := a.status(); r.Alone {
		t.Error("alone has not ended")
	}
	must(t, put(t, c, "small", "y"))
	reader := b.client(identities()[1])
	for _, label := range []string{"big2", "small"} {
		if d, err := reader.Find(t.Context(), label); err != nil || d.Label != label {
			t.Errorf("%s at the passive: %v", label, err)
		}
	}
	if err := put(t, reader, "l", "x"); !errors.Is(err, trustee.ErrPassive) {
		t.Errorf("a change at the passive: %v", err)
	}
	tool, err := sqlite.Open(t.Context(), a.path, false)
	must(t, err)
	defer tool.Close()
	must(t, tool.AddOrg(t.Context(), server.Org{Name: "MORE", UUID: "m"}))
	must(t, put(t, c, "after orgtool", "z"))
	must(t, tool.SetAuth(t.Context(), "MORE", "q"))
	a.await("orgtool's changes", synchronized)
	if o, err := b.store.Org(t.Context(), "MORE"); err != nil || o.Auth != "q" {
		t.Errorf("%+v, %v", o, err)
	}
	if err := a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("alone while the passive server answers: %v", err)
	}
}

// TestReplicaLostAnswer: the passive server commits a change, and its answer is lost. When the client repeats the
// request, the change is made once, at both servers.
func TestReplicaLostAnswer(t *testing.T) {
	a, b, c := startedPair(t)
	b.answersToLose.Store(1)
	must(t, put(t, c, "l", "x"))
	if b.answersToLose.Load() > 0 {
		t.Error("no answer was lost")
	}
	a.await("both servers being synchronized", synchronized)
	for _, h := range []*pairServer{a, b} {
		if d, err := h.client(identities()[1]).Find(t.Context(), "l"); err != nil || string(d.Content) != "x" {
			t.Errorf("%+v, %v", d, err)
		}
	}
	// The active server stops before it repeats the request. After its promotion, the passive server has the change.
	b.answersToLose.Store(1)
	_ = put(t, a.client(identities()[1]), "m", "y") // its outcome is unknown
	a.stop()
	must(t, b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{Force: true}))
	if d, err := b.client(identities()[1]).Find(t.Context(), "m"); err != nil || string(d.Content) != "y" {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestReplicaBehind: a passive server returns while the active server works alone. It does not say that a deposit
// does not exist, so its clients try the active server. It answers when it has every change, also if the active
// server then stops.
func TestReplicaBehind(t *testing.T) {
	a, b, c := startedPair(t)
	must(t, put(t, c, "both", "x"))
	b.stop()
	must(t, a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	must(t, put(t, a.client(identities()[1]), "later", "y"))
	b.unreachable.Store(true) // the active server does not reach it yet
	b.start()
	onlyB := b.client(identities()[1])
	if _, err := onlyB.Find(t.Context(), "later"); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "lacks changes") {
		t.Errorf("from a passive server that lacks the deposit: %v", err)
	}
	if d, err := b.client(identities()[1], a.web.URL).Find(t.Context(), "later"); err != nil ||
		string(d.Content) != "y" {
		t.Errorf("from the passive, then the active server: %+v, %v", d, err)
	}
	b.unreachable.Store(false)
	a.await("the return", synchronized)
	if d, err := b.client(identities()[1]).Find(t.Context(), "later"); err != nil || string(d.Content) != "y" {
		t.Errorf("from a passive server that has every change: %+v, %v", d, err)
	}
	b.stop()
	a.stop()
	b.start()
	if d, err := b.client(identities()[1]).Find(t.Context(), "later"); err != nil || string(d.Content) != "y" {
		t.Errorf("without the active: %+v, %v", d, err)
	}
}

// TestReplicaDiverged: both servers have acknowledged changes alone. Nothing is dropped before an operator says so.
// The dropped records stay in a file.
func TestReplicaDiverged(t *testing.T) {
	a, b, c := startedPair(t)
	must(t, put(t, c, "both", "x"))
	b.stop()
	must(t, a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	must(t, put(t, a.client(identities()[1]), "of A", "a"))
	a.stop()
	b.start()
	if err := b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{}); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "--force") {
		t.Errorf("without the active: %v", err)
	}
	must(t, b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{Force: true}))
	must(t, b.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	must(t, put(t, b.client(identities()[1]), "of B", "b"))
	// The first server was alone. It does not work alone any more, because it was replaced.
	a.start()
	if err := put(t, a.client(identities()[1]), "too late", "a"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("the server that was replaced: %v", err)
	}
	b.await("the warning", func(r replica.StatusReport) bool {
		return strings.Contains(r.Why, `deposit "of A" (it has acknowledged changes alone, from`) &&
			strings.Contains(r.Why, "claviger trustee resync --drop here") && r.Peer != nil &&
			r.Peer.Role == server.RolePassive
	})
	must(t, put(t, b.client(identities()[1]), "of B again", "b")) // the second server still works alone
	if err := a.operatorRequest(trustee.VerbResync, struct{}{}); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("resync at the passive: %v", err)
	}
	if err := a.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{}); !claviger.Is(err, claviger.Invalid) ||
		!strings.Contains(err.Error(), "resync") {
		t.Errorf("promote of a server that lacks changes: %v", err)
	}
	must(t, b.operatorRequest(trustee.VerbResync, replica.ResyncArgs{Drop: true}))
	b.await("both servers being synchronized", synchronized)
	kept, err := filepath.Glob(a.path + ".dropped-*")
	if err != nil || len(kept) != 1 {
		t.Fatalf("%q, %v", kept, err)
	}
	old, err := sqlite.Open(t.Context(), kept[0], false)
	must(t, err)
	defer old.Close()
	owner := identities()[1].Fingerprint()
	if _, err := old.Find(t.Context(), owner, "of A"); err != nil {
		t.Error(err)
	}
	if _, err := a.store.Find(t.Context(), owner, "of A"); !claviger.Is(err, claviger.KeyNotFound) {
		t.Error(err)
	}
}

// TestReplicaAloneTakesOver: a promotion fetches the changes that the active server has acknowledged alone.
func TestReplicaAloneTakesOver(t *testing.T) {
	a, b, c := startedPair(t)
	b.unreachable.Store(true)
	_ = put(t, c, "refused", "x")
	must(t, a.operatorRequest(trustee.VerbAlone, replica.AloneArgs{On: true}))
	for i := range 5 {
		must(t, put(t, a.client(identities()[1]), fmt.Sprint("alone", i), "a"))
	}
	must(t, b.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{}))
	b.await("both servers being synchronized", synchronized)
	for i := range 5 {
		if _, err := b.client(identities()[1]).Find(t.Context(), fmt.Sprint("alone", i)); err != nil {
			t.Error(err)
		}
	}
	if r := a.status(); r.Role != server.RolePassive || r.Alone {
		t.Errorf("%+v", r)
	}
}

// TestReplicaUnequal: the digest shows that somebody has changed the store of the passive server.
func TestReplicaUnequal(t *testing.T) {
	a, b, c := startedPair(t)
	must(t, put(t, c, "l", "x"))
	b.stop()
	db, err := sql.Open("sqlite", b.path)
	must(t, err)
	_, err = db.Exec("UPDATE deposit SET content = x'00'") //nolint:noctx // a file of this test's own
	must(t, errors.Join(err, db.Close()))
	_ = put(t, c, "m", "y") // it is refused, and shows the active server that the passive one does not answer
	b.start()
	if r := b.status(); r.Digest == r.PeerDigest {
		t.Fatal("the digest does not show the change of the file")
	}
	a.await("both servers being synchronized", synchronized)
	if d, err := b.client(identities()[1]).Find(t.Context(), "l"); err != nil || string(d.Content) != "x" {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestReplicaIdle: without any request, the active server notices that the passive one is stopped, and started again.
func TestReplicaIdle(t *testing.T) {
	a, b, _ := startedPair(t)
	b.stop()
	a.await("the active server to learn it", func(r replica.StatusReport) bool {
		return !r.Synced && r.Peer == nil && r.Why != ""
	})
	b.start()
	a.await("both servers being synchronized", synchronized)
}

// TestPeerVerbs: only the servers' own identity may use these verbs, and it may use no others.
func TestPeerVerbs(t *testing.T) {
	a, _, c := startedPair(t)
	for _, verb := range []string{trustee.VerbStatus, trustee.VerbPromote, trustee.VerbAlone, trustee.VerbResync,
		"peer-hello", "peer-append", "peer-entries", "peer-load", "peer-digest", "peer-yield"} {
		if err := c.Request(t.Context(), verb, struct{}{}, nil); !claviger.Is(err, claviger.Denied) {
			t.Errorf("%s of a client: %v", verb, err)
		}
	}
	if err := put(t, a.client(identities()[0]), "l", "x"); !claviger.Is(err, claviger.Denied) {
		t.Errorf("a deposit of the server's own: %v", err)
	}
	_, single := newPair(t)
	single.handler.Store(server.New(server.Config{Identity: identities()[0], Store: single.store}))
	err := single.operatorRequest(trustee.VerbPromote, replica.PromoteArgs{})
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "--peer") {
		t.Errorf("a single server: %v", err)
	}
	_, err = replica.New(t.Context(), replica.Config{Identity: identities()[0], Store: single.store}, "")
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "--role") {
		t.Errorf("a first start without a role: %v", err)
	}
}
