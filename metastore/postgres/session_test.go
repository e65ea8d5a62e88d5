package postgres_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/postgres"
	"claviger/owner"
)

// query returns the only value of a query, a text.
func query(t *testing.T, uri, statement string) (value string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }() // an error does not matter
	if err := conn.QueryRow(t.Context(), statement).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// TestSessionsEnd checks that locks, claims and Watch leave no sessions behind, also if they fail.
func TestSessionsEnd(t *testing.T) {
	ctx := t.Context()
	uri := emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri + "&pool_max_conns=1"})
	self := owner.Self("claviger kms", "")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lock := func() (release func()) {
		unlock, err := s.Lock(ctx, "a lock")
		must(err)
		return unlock
	}
	claim := func() (release func()) {
		release, err := s.Claim(ctx, self, false)
		must(err)
		return release
	}
	for what, do := range map[string]func(){
		"a lock":  func() { lock()() },
		"a claim": func() { claim()() },
		"a lock that is not free": func() {
			defer lock()()
			if _, ok, err := s.TryLock(ctx, "a lock"); ok || err != nil {
				t.Error(ok, err)
			}
		},
		"a claim that is refused": func() {
			defer claim()()
			if _, err := s.Claim(ctx, self, true); !claviger.Is(err, claviger.Unavailable) {
				t.Error(err)
			}
		},
		"Watch": func() {
			watching, cancel := context.WithCancel(ctx)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- s.Watch(watching, func(metastore.Notice) { cancel() }) }()
			eventually(t, "Watch passes on a notice", func() bool {
				must(s.Announce(ctx, metastore.Notice{Key: "k", Change: metastore.Invalidated}))
				return watching.Err() != nil
			})
			must(<-done)
		},
	} {
		do()
		wantSessions(t, uri, 1, "after "+what)
	}
}

// wantSessions wants at most limit sessions of a database, now or after a moment.
func wantSessions(t *testing.T, uri string, limit int, when string) {
	t.Helper()
	count := ""
	for range 20 { // a session ends a moment after its connection
		count = query(t, uri, `SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database()
			AND pid <> pg_backend_pid()`)
		if slices.Contains([]string{"0", "1"}[:limit+1], count) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s there are %s sessions", when, count)
}

// TestOpenEndsSessions checks that an Open that refuses a database leaves no sessions behind.
func TestOpenEndsSessions(t *testing.T) {
	uri := emptyStore(t)
	openOnce(t, uri)
	nextSchema(t, uri, 99)
	if _, err := postgres.Open(t.Context(), postgres.Config{URI: uri}); err == nil {
		t.Fatal("Open accepts a newer schema")
	}
	wantSessions(t, uri, 0, "after Open")
}

// TestExclusiveEnds checks that a process which had the claim alone changes nothing after another process has it.
func TestExclusiveEnds(t *testing.T) {
	ctx, self := t.Context(), owner.Self("claviger metastore copy", "")
	a, b := openTwice(t)
	release, err := a.Claim(ctx, self, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.SetSetting(ctx, "name", "value"); err != nil {
		t.Error(err)
	}
	if _, err := b.Claim(ctx, self, false); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a second claim: %v", err)
	}
	release()
	if _, err := b.Claim(ctx, self, true); err != nil {
		t.Fatal(err)
	}
	if err := a.SetSetting(ctx, "name", "value"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a change while another process has the claim alone: %v", err)
	}
}

// TestClaimIsKept checks that a claim keeps its session, that a lost session is replaced, and that the log says if
// another process prevents that.
func TestClaimIsKept(t *testing.T) {
	ctx, uri := t.Context(), emptyStore(t)
	var log syncBuffer
	node := openConfig(t, postgres.Config{URI: uri, LockCheck: 300 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(&log, nil))})
	if _, err := node.Claim(ctx, owner.Self("claviger kms", ""), false); err != nil {
		t.Fatal(err)
	}
	const of = ` FROM pg_stat_activity WHERE application_name LIKE 'claviger claim % kms%'
		AND datname = current_database()`
	pids := func() string { return query(t, uri, `SELECT coalesce(string_agg(pid::text, ' '), '')`+of) }
	first := pids()
	checks := map[string]bool{}
	eventually(t, "the session is checked several times", func() bool {
		checks[query(t, uri, `SELECT coalesce(max(state_change::text), '')`+of)] = true
		return len(checks) > 3
	})
	if now := pids(); first == "" || now != first {
		t.Errorf("the session was %q, and is %q", first, now)
	}
	exec(t, uri, `SELECT pg_terminate_backend(pid)`+of)
	eventually(t, "the claim has another session", func() bool { now := pids(); return now != "" && now != first })
	if text := log.String(); strings.Contains(text, "lost its claim") {
		t.Errorf("the log has\n%s", text)
	}
	alone, release := openConfig(t, postgres.Config{URI: uri}), func() {}
	eventually(t, "another process claims the store alone", func() (ok bool) {
		exec(t, uri, `SELECT pg_terminate_backend(pid)`+of)
		var err error
		release, err = alone.Claim(ctx, owner.Self("claviger metastore copy", ""), true)
		return err == nil
	})
	warnings := func() int { return strings.Count(log.String(), "has lost its claim") }
	before := warnings() // a session that was ended while it took the lock may have caused one
	eventually(t, "the log says so", func() bool { return warnings() > before })
	release()
	eventually(t, "the node claims the store again", func() bool { return pids() != "" })
}

// TestUnlockForgets checks that unlock ends the context of the lock, and that the store forgets the lock.
func TestUnlockForgets(t *testing.T) {
	s := openConfig(t, postgres.Config{URI: emptyStore(t)})
	held, unlock, ok, err := s.Hold(t.Context(), "a lock", false)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if n := s.HeldLocks(); n != 1 || held.Err() != nil {
		t.Errorf("%d locks; the lock's context: %v", n, held.Err())
	}
	unlock()
	if n := s.HeldLocks(); n != 0 || held.Err() == nil {
		t.Errorf("after unlock %d locks; the lock's context: %v", n, held.Err())
	}
}

// TestUnlockFreesAtOnce: a lock is free when unlock returns. PostgreSQL ends a closed session a moment later,
// so without another statement the lock would still be held at times.
func TestUnlockFreesAtOnce(t *testing.T) {
	ctx, uri := t.Context(), emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri})
	conn, err := pgx.Connect(ctx, uri)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }() // an error does not matter
	for n := range 50 {
		unlock, err := s.Lock(ctx, "a lock")
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		var held int
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (
			SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&held); err != nil || held != 0 {
			t.Fatalf("after unlock %d, %d locks are held (%v)", n, held, err)
		}
	}
}
