package postgres_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore"
	"claviger/metastore/postgres"
)

// pair is a primary and its standby, with a database that has the schema of a store.
type pair struct{ primary, standby *pgtest.Server }

func newPair(t *testing.T) pair {
	t.Helper()
	p := pair{primary: pgtest.StartReplicated(t)}
	openOnce(t, p.primary.Database(t))
	p.standby = p.primary.Standby(t)
	return p
}

func openOnce(t *testing.T, uri string) {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// uri returns a URI with both hosts, the old primary first.
func (p pair) uri() string {
	return fmt.Sprintf("postgresql://%s@%s,%s/test1?sslmode=disable", pgtest.Superuser, p.primary.Addr, p.standby.Addr)
}

// watched opens a store and watches it, like a server.
func (p pair) watched(t *testing.T, uri string) *postgres.Store {
	t.Helper()
	s := openConfig(t, postgres.Config{URI: uri, Property: "the.property", RetryTimeout: 3 * time.Second,
		Log: slog.New(slog.NewTextHandler(&syncBuffer{}, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, func(metastore.Notice) {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the store reads the changes", func() bool { return !s.NoticesUntil().IsZero() })
	return s
}

// eventually waits until f returns true. what says for which condition.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// TestPromotedBehind promotes a standby that lacks an acknowledged key and an acknowledged version. Until an operator
// gives them up, no node may change a key or report the lost ones as missing, also a node that has not seen them. The
// other keys are served.
func TestPromotedBehind(t *testing.T) {
	ctx := t.Context()
	p := newPair(t)
	one, two := p.watched(t, p.uri()), p.watched(t, p.uri())
	// Without synchronous_standby_names, acknowledged changes may get lost. Replication reports that.
	eventually(t, "readiness names synchronous_standby_names", func() bool {
		err := one.Replication(ctx)
		return err != nil && strings.Contains(err.Error(), "synchronous_standby_names")
	})
	p.primary.Exec(t, "postgres", `ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()`)
	eventually(t, "readiness reports no fault", func() bool { return one.Replication(ctx) == nil })
	p.primary.Exec(t, "postgres", `ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
	for _, k := range []metastore.Key{key("old", "aa"), key("rolled", "bb")} {
		if err := one.Insert(ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	p.standby.CatchUp(t, p.primary)
	p.standby.Stop(t)
	if err := one.Insert(ctx, key("new", "cc")); err != nil {
		t.Fatal(err)
	}
	if err := two.Append(ctx, "rolled", key("rolled", "dd").List[0]); err != nil {
		t.Fatal(err)
	}
	p.primary.Kill(t)
	p.standby.Start(t)
	p.standby.Promote(t)

	refuses := func(s *postgres.Store, what string) {
		t.Helper()
		eventually(t, what+" reaches the new primary", func() bool {
			_, err := s.Names(ctx)
			return err == nil || !strings.Contains(err.Error(), "has not been reached")
		})
		for name, call := range map[string]func() error{
			"a new key":              func() error { return s.Insert(ctx, key("other", "ee")) },
			"a key of the lost name": func() error { return s.Insert(ctx, key("new", "ff")) },
			"a roll":                 func() error { return s.Append(ctx, "rolled", key("rolled", "ab").List[0]) },
			"a deletion":             func() error { return s.SoftDelete(ctx, "old") },
			"the step of a change": func() error {
				_, err := s.Begin(ctx, metastore.Intent{Key: "other", Op: "create"})
				return err
			},
			"the lost version":          func() error { _, _, err := s.ByVersion(ctx, "new@cc"); return err },
			"the version of a roll":     func() error { _, _, err := s.ByVersion(ctx, "rolled@dd"); return err },
			"the lost key":              func() error { _, err := s.Get(ctx, "old", "new"); return err },
			"the epoch of the lost key": func() error { _, err := s.Epoch(ctx, "new"); return err },
			"the names":                 func() error { _, err := s.Names(ctx); return err },
		} {
			if err := call(); !claviger.Is(err, claviger.Unavailable) ||
				!strings.Contains(err.Error(), "lacks changes") || !strings.Contains(err.Error(), "metastore accept") {
				t.Errorf("%s, %s: %v", what, name, err)
			}
		}
		if keys, err := s.Get(ctx, "old"); err != nil || keys[0] == nil {
			t.Errorf("%s: a key that was not lost: %v, %v", what, keys, err)
		}
	}
	refuses(one, "the node that made the key")
	refuses(two, "the node that made the version")
	eventually(t, "both nodes have reported their lost changes", func() bool {
		lost, err := two.Lost(ctx)
		return err == nil && len(lost) >= 2
	})
	late := p.watched(t, p.uri())
	refuses(late, "a node that was started later")

	if err := late.Accept(ctx); err != nil {
		t.Fatal(err)
	}
	for i, s := range []*postgres.Store{one, two, late} {
		eventually(t, "the node changes keys again", func() bool {
			return s.Insert(ctx, key(fmt.Sprint("again", i), fmt.Sprint("9", i))) == nil
		})
		if keys, err := s.Get(ctx, "new"); err != nil || keys[0] != nil {
			t.Errorf("the key that was given up: %v, %v", keys, err)
		}
	}
}

// TestOldPrimaryComesBack starts an old primary again after its standby was promoted. It accepts writes, because
// nothing fences it off. A node that sees the new primary, or has seen it before, must not use the old one.
func TestOldPrimaryComesBack(t *testing.T) {
	ctx := t.Context()
	p := newPair(t)
	running := p.watched(t, p.uri())
	if err := running.Insert(ctx, key("before", "aa")); err != nil {
		t.Fatal(err)
	}
	p.standby.CatchUp(t, p.primary)
	servers := running.Servers()
	p.primary.Kill(t)
	p.standby.Promote(t)
	eventually(t, "the standby is used", func() bool { return running.Insert(ctx, key("after", "bb")) == nil })
	if now := running.Servers(); servers == "" || now == servers {
		t.Errorf("the servers were %q, and are %q after a standby took over", servers, now)
	}
	p.primary.Start(t) // it accepts writes, and is the first host of the URI
	started := p.watched(t, p.uri())
	for i, s := range []*postgres.Store{running, started} {
		if err := s.Insert(ctx, key(fmt.Sprint("both", i), fmt.Sprint("c", i))); err != nil {
			t.Fatal(err)
		}
		if keys, err := s.Get(ctx, "after"); err != nil || keys[0] == nil {
			t.Errorf("node %d uses the old primary: %v, %v", i, keys, err)
		}
	}
	eventually(t, "readiness names the old primary", func() bool {
		err := started.Replication(ctx)
		return err != nil && strings.Contains(err.Error(), p.primary.Addr) &&
			strings.Contains(err.Error(), "fence it off")
	})
	p.standby.Kill(t)
	if err := running.Insert(ctx, key("never", "dd")); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "fence it off") {
		t.Errorf("while only the old primary runs: %v", err)
	}
	p.standby.Start(t)
	eventually(t, "the node changes keys again", func() bool { return running.Insert(ctx, key("again", "ee")) == nil })
}
