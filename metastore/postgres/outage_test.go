package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

func openConfig(t *testing.T, c postgres.Config) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func key(name string, ids ...string) metastore.Key {
	k := metastore.Key{Metadata: claviger.Metadata{Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 128,
		Created: time.UnixMilli(5)}}
	for _, id := range ids {
		k.List = append(k.List, metastore.Version{ID: id, Object: id + "0b", Created: time.UnixMilli(6),
			Check: []byte("12345678")})
	}
	return k
}

// TestServerRestarts checks that a call waits for a server that restarts, and that it fails with kind Unavailable and
// the property's name if the server does not come back in time.
func TestServerRestarts(t *testing.T) {
	const retryTimeout = 300 * time.Millisecond
	ctx := t.Context()
	server := pgtest.Start(t)
	s := openConfig(t, postgres.Config{URI: server.Database(t), Property: "the.property", RetryTimeout: retryTimeout})
	longRetry := openConfig(t, postgres.Config{URI: s.URI() + "?sslmode=disable", RetryTimeout: 14 * time.Second})
	if err := s.Insert(ctx, key("before", "aa")); err != nil {
		t.Fatal(err)
	}
	for i, end := range []func(testing.TB){server.Kill, server.Stop} {
		end(t)
		for what, call := range map[string]func() error{
			"Get":    func() error { _, err := s.Get(ctx, "before"); return err },
			"Epoch":  func() error { _, err := s.Epoch(ctx, "before"); return err },
			"Insert": func() error { return s.Insert(ctx, key("never", "bb")) },
			"Check":  func() error { return s.Check(ctx) },
			"Lock":   func() error { _, err := s.Lock(ctx, "l"); return err },
		} {
			if err := call(); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), "the.property") || !strings.Contains(err.Error(), server.Addr) {
				t.Errorf("%s without a server: %v", what, err)
			}
		}
		inserted := make(chan error, 1)
		name := fmt.Sprintf("meanwhile%d", i)
		go func() { inserted <- longRetry.Insert(ctx, key(name, name)) }()
		time.Sleep(50 * time.Millisecond) // so that the first attempt of the insert finds no server
		// The store remembers that the server does not answer, so later calls do not wait.
		begun := time.Now()
		for range 20 {
			if _, err := s.Get(ctx, "before"); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), "has not been reached since") {
				t.Errorf("a call after others have failed: %v", err)
			}
		}
		if took := time.Since(begun); took > 20*retryTimeout/2 {
			t.Errorf("20 calls while the server is known not to answer took %v", took)
		}
		server.Start(t)
		if err := <-inserted; err != nil {
			t.Errorf("an insert that retries for 14 s: %v", err)
		}
		eventually(t, "the store finds the server again",
			func() bool { _, err := s.Get(ctx, "before"); return err == nil })
		keys, err := s.Get(ctx, "before", "never", name)
		if err != nil || keys[0] == nil || keys[1] != nil || keys[2] == nil {
			t.Errorf("after the restart: %v, %v", keys, err)
		}
	}
}

// TestServerDoesNotAnswer checks that a call ends with its context if the server accepts packets but does not answer.
func TestServerDoesNotAnswer(t *testing.T) {
	server := pgtest.Start(t)
	s := openConfig(t, postgres.Config{URI: server.Database(t)})
	if err := s.Insert(t.Context(), key("k", "aa")); err != nil {
		t.Fatal(err)
	}
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if _, err := s.Epoch(ctx, "k"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("epoch of a server that does not answer: %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	server.Resume()
	if _, err := s.Epoch(t.Context(), "k"); err != nil {
		t.Error(err)
	}
}

// syncBuffer is a buffer that several goroutines may use.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestWatchAfterALostConnection breaks the connection of Watch. Watch must then report that any key may have changed,
// and must report notices again.
func TestWatchAfterALostConnection(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server := pgtest.Start(t)
	var log syncBuffer
	s := openConfig(t, postgres.Config{URI: server.Database(t), Log: slog.New(slog.NewTextHandler(&log, nil))})
	notices := make(chan metastore.Notice, 1000)
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, func(n metastore.Notice) { notices <- n }) }()
	waitFor := func(want metastore.Notice, again func()) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			if again != nil {
				again()
			}
			select {
			case n := <-notices:
				if n == want {
					return
				}
			case <-time.After(50 * time.Millisecond):
			case <-deadline:
				t.Fatalf("no notice %+v", want)
			}
		}
	}
	hello := metastore.Notice{Key: "k", Change: metastore.Invalidated}
	announce := func() { _ = s.Announce(ctx, hello) } // it may fail while the server starts
	waitFor(hello, announce)
	if text := log.String(); text != "" {
		t.Errorf("before the break, the log has\n%s", text)
	}
	server.Kill(t)
	time.Sleep(time.Second) // several attempts
	server.Start(t)
	waitFor(metastore.Notice{Change: metastore.Invalidated}, nil)
	waitFor(hello, announce)
	// The log must have one line for the loss and one for the return, also after a long time without the server.
	if text := log.String(); strings.Count(text, "do not arrive") != 1 || strings.Count(text, "arrive again") != 1 {
		t.Errorf("the log has\n%s", text)
	}
	server.Exec(t, "test1", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'`)
	waitFor(metastore.Notice{Change: metastore.Invalidated}, nil)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if !claviger.Is(err, claviger.Closed) {
			t.Errorf("Watch of a closed store: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Watch did not end after Close")
	}
}

// TestLockIsLost checks that the context of a held lock ends when its session is lost, and that the lock is then free.
func TestLockIsLost(t *testing.T) {
	uri := emptyStore(t)
	// A ping has twice this time for its answer.
	s := openConfig(t, postgres.Config{URI: uri, LockCheck: 250 * time.Millisecond})
	held, unlock, ok, err := metastore.Hold(t.Context(), s, "migration", true)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	defer unlock()
	time.Sleep(time.Second) // some checks
	if held.Err() != nil {
		t.Fatalf("lost: %v", context.Cause(held))
	}
	exec(t, uri, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid
		FROM pg_database WHERE datname = current_database())`)
	select {
	case <-held.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the context of the holder did not end")
	}
	if err := context.Cause(held); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), `"migration"`) {
		t.Errorf("lost because of: %v", err)
	}
	again, err := s.Lock(t.Context(), "migration")
	if err != nil {
		t.Fatal(err)
	}
	again()
	unlock()
	unlock()
}

func exec(t *testing.T, uri, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }() // an error does not matter
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// TestAppendsSurviveCutConnections repeatedly cuts all connections while versions are added. Each version must be added
// exactly once, also if the answer of its commit was lost.
func TestAppendsSurviveCutConnections(t *testing.T) {
	uri := emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri, RetryTimeout: 14 * time.Second})
	ctx := t.Context()
	if err := s.Insert(ctx, key("k", "first")); err != nil {
		t.Fatal(err)
	}
	const minAppends, enoughCuts, maxAppends = 100, 30, 5000
	var cuts atomic.Int64
	// During one append, each pause between two cuts is twice the pause before. Otherwise a slow machine could not
	// complete a call between two cuts.
	var cutsOfAppend atomic.Int64
	cutting, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for cutting.Err() == nil {
			conn, err := pgx.Connect(ctx, uri)
			if err != nil {
				continue
			}
			tag, _ := conn.Exec(ctx,
				`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
					AND pid <> pg_backend_pid()`)
			cuts.Add(tag.RowsAffected())
			_ = conn.Close(ctx)
			time.Sleep(3 * time.Millisecond << min(cutsOfAppend.Add(1), 9))
		}
	}()
	want := []string{"first"}
	appends := 0
	for i := 0; i < maxAppends && (i < minAppends || cuts.Load() < enoughCuts); i++ {
		id := fmt.Sprintf("id%d", i)
		cutsOfAppend.Store(0)
		if err := s.Append(ctx, "k", key("k", id).List[0]); err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		want = append(want, id)
		appends++
	}
	stop()
	<-done
	keys, err := s.Get(ctx, "k")
	if err != nil || keys[0] == nil {
		t.Fatal(keys, err)
	}
	var got []string
	for _, v := range keys[0].List {
		got = append(got, v.ID)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("versions %v, want %v", got, want)
	}
	if cuts.Load() < enoughCuts {
		t.Errorf("only %d connections were cut, so this test has checked too little", cuts.Load())
	}
	t.Logf("%d connections were cut in %d appends", cuts.Load(), appends)
}

// TestOpenRefuses: the error says what is wrong with a URI, a password file, a database or a schema, and never shows a
// password.
func TestOpenRefuses(t *testing.T) {
	ctx := t.Context()
	server := pgtest.Shared(t)
	good := emptyStore(t)
	server.Exec(t, "postgres", `DROP ROLE IF EXISTS guarded`, `CREATE ROLE guarded LOGIN PASSWORD 'pillow'`)
	newer := emptyStore(t)
	openConfig(t, postgres.Config{URI: newer})
	nextSchema(t, newer, 99)
	for _, c := range []struct {
		name, uri string
		kind      claviger.Kind
		text      string
	}{
		{"password in the user part", "postgresql://u:pillow@127.0.0.1/d", claviger.Invalid, "passfile"},
		{"password as a parameter", "postgresql://u@127.0.0.1/d?password=pillow", claviger.Invalid, "passfile"},
		{"not a URI", "postgresql://u:pillow@127.0.0.1:x/d%", claviger.Invalid, "percent-encoded"},
		{"other scheme", "mysql://u@h/d", claviger.Invalid, "mysql"},
		{"bad parameter", "postgresql://u@127.0.0.1/d?sslmode=sometimes", claviger.Invalid, "sslmode"},
		{"no such database", server.URI(pgtest.Superuser, "nowhere"), claviger.Unavailable, "CREATE DATABASE"},
		{"no password", server.URI("guarded", "postgres") + "&passfile=/nonexistent", claviger.Unavailable,
			"open /nonexistent: no such file"},
		{"a password file that cannot be read", server.URI("guarded", "postgres") + "&passfile=/proc/self/mem/pass",
			claviger.Unavailable, "cannot be read: open /proc/self/mem/pass: not a directory"},
		{"no line for the role", server.URI("guarded", "postgres") + "&passfile=/dev/null", claviger.Unavailable,
			"check the role, its password file"},
		{"no server", "postgresql://u@127.0.0.1:1/d", claviger.Unavailable, "the.property"},
		{"newer schema", newer, claviger.Unavailable, "newer claviger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := postgres.Open(ctx, postgres.Config{URI: c.uri, Property: "the.property",
				RetryTimeout: 500 * time.Millisecond})
			if err == nil {
				_ = s.Close()
				t.Fatal("Open succeeded")
			}
			if claviger.IsUnreachable(err) != (c.name == "no server") {
				t.Errorf("IsUnreachable: %t: %v", claviger.IsUnreachable(err), err)
			}
			if !claviger.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v, want kind %v and %q", err, c.kind, c.text)
			}
			for e := err; e != nil; e = errors.Unwrap(e) {
				if strings.Contains(e.Error(), "pillow") {
					t.Errorf("the password is in %q", e)
				}
			}
		})
	}
	if s := openConfig(t, postgres.Config{URI: good + "&sslrootcert="}); s.URI() != strings.Split(good, "?")[0] {
		t.Errorf("URI %q", s.URI())
	}
}
