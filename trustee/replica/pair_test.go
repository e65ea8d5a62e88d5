package replica_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"claviger"
	"claviger/internal/logtest"
	"claviger/trustee"
	"claviger/trustee/replica"
	"claviger/trustee/server"
	"claviger/trustee/server/sqlite"
	"claviger/trustee/server/storetest"
)

// errInjected is the error of the one call that fails.
var errInjected = errors.New("injected fault")

// calls lists the calls of the stores of two servers, and the requests between the servers, while counts is true.
// Call number fail, from 1, fails; 0: none. before, if not nil, is called before each call, and may make it fail.
type calls struct {
	mu     sync.Mutex
	counts bool
	list   []string
	fail   int
	before func(name string) error
}

func (c *calls) at(name string) error {
	c.mu.Lock()
	counts := c.counts
	if counts {
		c.list = append(c.list, name)
	}
	fails := counts && len(c.list) == c.fail
	c.mu.Unlock()
	switch {
	case fails:
		return claviger.E("test", claviger.Unavailable, "", errInjected)
	case counts && c.before != nil:
		return c.before(name)
	}
	return nil
}

// failing returns a function for before that makes each call of a name fail.
func failing(name string) func(string) error {
	return func(call string) error {
		if call == name {
			return claviger.E("test", claviger.Unavailable, "", errInjected)
		}
		return nil
	}
}

// once returns a function for before that calls f before the first call of a name.
func once(name string, f func()) func(string) error {
	done := false
	return func(call string) error {
		if call == name && !done {
			done = true
			f()
		}
		return nil
	}
}

// of counts the calls of a name.
func (c *calls) of(name string) (n int) {
	for _, call := range c.list {
		if call == name {
			n++
		}
	}
	return n
}

// count counts the calls of f.
func (c *calls) count(f func() error) error {
	set := func(counts bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.counts = counts
	}
	set(true)
	defer set(false)
	return f()
}

// failingStore is a store whose calls can fail.
type failingStore struct {
	*sqlite.Store
	at func(name string) error
}

func (s *failingStore) Position(ctx context.Context) (replica.Position, error) {
	if err := s.at("Position"); err != nil {
		return replica.Position{}, err
	}
	return s.Store.Position(ctx)
}

func (s *failingStore) UpdatePosition(ctx context.Context, f func(*replica.Position) error) (replica.Position, error) {
	if err := s.at("UpdatePosition"); err != nil {
		return replica.Position{}, err
	}
	return s.Store.UpdatePosition(ctx, f)
}

func (s *failingStore) Entries(ctx context.Context, after replica.Head, limit, bytes int) ([]replica.Entry, error) {
	if err := s.at("Entries"); err != nil {
		return nil, err
	}
	return s.Store.Entries(ctx, after, limit, bytes)
}

func (s *failingStore) Has(ctx context.Context, h replica.Head) (bool, error) {
	if err := s.at("Has"); err != nil {
		return false, err
	}
	return s.Store.Has(ctx, h)
}

func (s *failingStore) Apply(ctx context.Context, as server.Role, epoch uint64, list []replica.Entry) error {
	if err := s.at("Apply"); err != nil {
		return err
	}
	return s.Store.Apply(ctx, as, epoch, list)
}

func (s *failingStore) Snapshot(ctx context.Context, head func(replica.Head) error,
	f func(server.Record) error) error {
	if err := s.at("Snapshot"); err != nil {
		return err
	}
	return s.Store.Snapshot(ctx, head, f)
}

func (s *failingStore) Load(ctx context.Context, epoch uint64, head replica.Head,
	next func() (server.Record, error)) error {
	if err := s.at("Load"); err != nil {
		return err
	}
	return s.Store.Load(ctx, epoch, head, next)
}

func (s *failingStore) Save(ctx context.Context, why string) (string, error) {
	if err := s.at("Save"); err != nil {
		return "", err
	}
	return s.Store.Save(ctx, why)
}

func (s *failingStore) Export(ctx context.Context, f func(server.Record) error) error {
	if err := s.at("Export"); err != nil {
		return err
	}
	return s.Store.Export(ctx, f)
}

func (s *failingStore) CheckWrites(ctx context.Context) error {
	if err := s.at("CheckWrites"); err != nil {
		return err
	}
	return s.Store.CheckWrites(ctx)
}

// address is the web server of one of two servers. Its handler is replaced for each pair.
type address struct {
	*httptest.Server
	handler atomic.Pointer[http.Handler]
	client  *trustee.Client // with the servers' own identity
}

func newAddress(t *testing.T) *address {
	t.Helper()
	a := &address{}
	a.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(*a.handler.Load()).ServeHTTP(w, r)
	}))
	t.Cleanup(a.Close)
	a.client = (&pairServer{t: t, web: a.Server}).client(identities()[0])
	return a
}

// pairs makes pairs of servers that are synchronized, each of the same two stores.
type pairs struct {
	addresses [2]*address
}

// member is one of two servers without a goroutine of its own: it checks the other only when Check is called.
type member struct {
	t     *testing.T
	path  string // of the store
	store *failingStore
	r     *replica.Replica
	self  *trustee.Client // of an operator at this server
	calls *calls
	spool string
	log   *logtest.Buffer
}

var files = [2]string{"active.db", "passive.db"}

// template holds the files of two stores that are synchronized. The first test that needs the files makes them.
var template struct {
	sync.Mutex
	files [2][]byte
}

func newPairs(t *testing.T) *pairs {
	t.Helper()
	replica.SetSyncRounds(t, 20) // so that a synchronization that would not end fails soon
	template.Lock()
	defer template.Unlock()
	p := &pairs{addresses: [2]*address{newAddress(t), newAddress(t)}}
	if template.files[0] != nil {
		return p
	}
	dir := t.TempDir()
	for i, file := range files {
		s, err := sqlite.Open(t.Context(), filepath.Join(dir, file), true)
		must(t, err)
		if i == 0 {
			storetest.Fill(t, s)
		}
		must(t, s.Close())
	}
	a, _, end := p.pair(t, dir)
	must(t, replica.Check(t.Context(), a.r))
	if s, err := a.status(t.Context(), true); err != nil || !s.Synchronized() {
		t.Fatalf("%+v, %v", s, err)
	}
	end()
	for i, file := range files {
		text, err := os.ReadFile(filepath.Join(dir, file))
		must(t, err)
		template.files[i] = text
	}
	return p
}

// fresh starts a pair with copies of the stores. The two are equal, but the active server does not know.
func (p *pairs) fresh(t *testing.T) (a, b *member, end func()) {
	t.Helper()
	dir := t.TempDir()
	for i, file := range files {
		must(t, os.WriteFile(filepath.Join(dir, file), template.files[i], 0o600))
	}
	return p.pair(t, dir)
}

// pair starts the servers with the stores in a folder. end closes the stores.
func (p *pairs) pair(t *testing.T, dir string) (a, b *member, end func()) {
	t.Helper()
	c := &calls{}
	var list [2]*member
	for i, file := range files {
		path := filepath.Join(dir, file)
		store, err := sqlite.Open(t.Context(), path, false)
		must(t, err)
		m := &member{t: t, path: path, self: p.addresses[i].client, calls: c, spool: t.TempDir(),
			log: &logtest.Buffer{}}
		name := strings.TrimSuffix(file, ".db")
		m.store = &failingStore{store, func(call string) error { return c.at(name + " " + call) }}
		role := []server.Role{server.RoleActive, server.RolePassive}[i]
		m.r, err = replica.New(t.Context(), replica.Config{Identity: identities()[0], Store: m.store,
			Peer: p.addresses[1-i].client, Spool: m.spool,
			Log: slog.New(slog.NewTextHandler(m.log, nil))}, role)
		must(t, err)
		var handler http.Handler = server.New(server.Config{Identity: identities()[0], Store: m.store, Replica: m.r})
		failing := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if verb := strings.TrimPrefix(r.URL.Path, trustee.APIPath); strings.HasPrefix(verb, "peer-") {
				if err := c.at(name + " " + verb); err != nil {
					_, _ = io.Copy(io.Discard, r.Body)
					http.Error(w, err.Error(), http.StatusBadGateway)
					return
				}
			}
			handler.ServeHTTP(w, r)
		}))
		p.addresses[i].handler.Store(&failing)
		list[i] = m
	}
	return list[0], list[1], func() {
		for _, m := range list {
			must(t, m.store.Close())
		}
	}
}

// status returns the status with digests, or without.
func (m *member) status(ctx context.Context, digest bool) (s replica.StatusReport, err error) {
	return s, m.self.Request(ctx, trustee.VerbStatus, replica.StatusArgs{Digest: digest}, &s)
}

// do sends a request of an operator to this server.
func (m *member) do(ctx context.Context, verb string, args any) error {
	return m.self.Request(ctx, verb, args, nil)
}

// tool makes a change in the store of an active server, like orgtool: the server does not notice.
func (m *member) tool(i int) {
	m.t.Helper()
	tool, err := sqlite.Open(m.t.Context(), m.path, false)
	must(m.t, err)
	must(m.t, tool.Put(m.t.Context(), storetest.Row(i), "", server.Once{}))
	must(m.t, tool.Close())
}

// position returns the position of the store. It is not counted.
func (m *member) position() replica.Position {
	m.t.Helper()
	st, err := m.store.Store.Position(m.t.Context())
	must(m.t, err)
	return st
}

// update changes the position of the store. It is not counted.
func (m *member) update(f func(*replica.Position)) {
	m.t.Helper()
	_, err := m.store.Store.UpdatePosition(m.t.Context(), func(st *replica.Position) error { f(st); return nil })
	must(m.t, err)
}

// exec changes the store behind the back of its server.
func (m *member) exec(query string, args ...any) {
	m.t.Helper()
	db, err := sql.Open("sqlite", m.path)
	must(m.t, err)
	_, err = db.ExecContext(m.t.Context(), query, args...)
	must(m.t, errors.Join(err, db.Close()))
}

// big makes changes of more than one page in the store, like tool.
func (m *member) big(from, to int) {
	m.t.Helper()
	tool, err := sqlite.Open(m.t.Context(), m.path, false)
	must(m.t, err)
	for i := from; i <= to; i++ {
		row := storetest.Row(i)
		row.Sealed.Content = bytes.Repeat([]byte{byte(i)}, 400<<10)
		must(m.t, tool.Put(m.t.Context(), row, "", server.Once{}))
	}
	must(m.t, tool.Close())
}

// applied makes a change in the store of a passive server, as if the active server had sent it.
func (m *member) applied(i int) {
	m.t.Helper()
	st, row := m.position(), storetest.Row(i)
	text, err := json.Marshal(replica.Change{Op: replica.OpPut, Deposit: &row})
	must(m.t, err)
	must(m.t, m.store.Apply(m.t.Context(), st.Role, st.Epoch, []replica.Entry{st.Head.Next(st.Epoch, text)}))
}

// single returns an empty store of a server that is not one of two.
func single(t *testing.T) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "trustee.db"), true)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}
