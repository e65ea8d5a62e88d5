package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/internal/pgtest"
	"claviger/metastore/postgres"
)

// wantError demands an error of kind Unavailable with that text.
func wantError(t *testing.T, what string, err error, text string) {
	t.Helper()
	if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %q", what, err, text)
	}
}

// TestReplication checks which servers without synchronous_standby_names Replication reports.
func TestReplication(t *testing.T) {
	ctx := t.Context()
	p := newPair(t)
	oneHost, _, _ := strings.Cut(p.uri(), ",")
	one := openConfig(t, postgres.Config{URI: oneHost + "/test1?sslmode=disable"})
	both := openConfig(t, postgres.Config{URI: p.uri()})
	p.standby.CatchUp(t, p.primary)
	eventually(t, "a standby follows", func() bool {
		err := one.Replication(ctx)
		return err != nil && strings.Contains(err.Error(), "1 standbys follow its server")
	})
	waitForStandbys(t, p, one)
	checkStandby(t, p)
	p.standby.Stop(t)
	eventually(t, "no standby follows", func() bool { return one.Replication(ctx) == nil })
	wantError(t, "a second host, but no standby", both.Replication(ctx), "its URI names 2 hosts")
}

// checkStandby checks that Check refuses a standby, and that the next call makes a new connection.
func checkStandby(t *testing.T, p pair) {
	t.Helper()
	ctx := t.Context()
	uri := p.standby.URI(pgtest.Superuser, "test1")
	s := openConfig(t, postgres.Config{URI: uri + "&application_name=checked&pool_max_conns=1", ReadOnly: true})
	session := func() string {
		t.Helper()
		if _, err := s.Names(ctx); err != nil {
			t.Fatal(err)
		}
		return query(t, uri, `SELECT max(backend_start)::text FROM pg_stat_activity WHERE application_name = 'checked'`)
	}
	before := session()
	wantError(t, "the server is a standby", s.Check(ctx), "the server is a standby and takes no writes")
	if after := session(); after == before {
		t.Error("the next call uses the same connection")
	}
}

// waitForStandbys checks that WaitForStandbys returns after a standby has written the newest change, but not later than
// its context.
func waitForStandbys(t *testing.T, p pair, s *postgres.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	insert := func(name string) {
		t.Helper()
		if err := s.Insert(ctx, key(name, name)); err != nil {
			t.Fatal(err)
		}
	}
	insert("aa") // the standby reports its position after the next change, or after ten seconds
	if err := s.WaitForStandbys(ctx); err != nil {
		t.Fatal(err)
	}
	p.standby.Pause()
	defer p.standby.Resume()
	insert("bb")
	for range 10 { // the time may end during a query, or between two
		limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		wantError(t, "a standby is behind", s.WaitForStandbys(limited), "deadline exceeded")
		cancel()
	}
	p.standby.Resume()
	if err := s.WaitForStandbys(ctx); err != nil {
		t.Error(err)
	}
}

// probeStandby checks that CheckWrites names the standbys if a commit waits for one that does not answer.
func probeStandby(t *testing.T, p pair, s *postgres.Store) {
	t.Helper()
	ctx := t.Context()
	if err := s.CheckWrites(ctx); err != nil {
		t.Error(err)
	}
	p.standby.Pause()
	defer p.standby.Resume()
	eventually(t, "a probe ends while it waits for the standby", func() bool {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := s.CheckWrites(limited)
		if !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("while the standby does not answer: %v", err)
		}
		return err == nil || strings.Contains(err.Error(), "and 1 standbys follow: make the named standbys follow")
	})
	p.standby.Resume()
	eventually(t, "a probe succeeds", func() bool { return s.CheckWrites(ctx) == nil })
}

// TestStandbyRestarts checks that a change waits for a standby that is restarted, but not longer than its context.
func TestStandbyRestarts(t *testing.T) {
	ctx := t.Context()
	p := newPair(t)
	p.primary.Exec(t, "postgres", `ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()`)
	oneHost, _, _ := strings.Cut(p.uri(), ",")
	s := openConfig(t, postgres.Config{URI: oneHost + "/test1?sslmode=disable", RetryTimeout: 30 * time.Second})
	if err := s.Insert(ctx, key("before", "aa")); err != nil {
		t.Fatal(err)
	}
	probeStandby(t, p, s)
	p.standby.Stop(t)
	missing := func() bool {
		err := s.Replication(ctx)
		return err != nil && strings.Contains(err.Error(), "a commit waits for a standby")
	}
	eventually(t, "the standby does not answer", missing)
	for limit := time.Second; ; limit *= 4 {
		limited, cancel := context.WithTimeout(ctx, limit)
		err := s.Insert(limited, key("never", "bb"))
		if limited.Err() == nil {
			t.Error("the change did not wait for the standby")
		}
		cancel()
		if limit < 16*time.Second && errors.Is(err, context.DeadlineExceeded) {
			continue // on a slow machine, the time ended during a query
		}
		wantError(t, "without a standby", err, "no change of a key can be acknowledged")
		break
	}
	inserted := make(chan error, 1)
	go func() { inserted <- s.Insert(ctx, key("during", "cc")) }()
	for range 3 { // Insert has the same time to find no standby
		eventually(t, "the standby is still away", missing)
	}
	p.standby.Start(t)
	if err := <-inserted; err != nil {
		t.Errorf("a change during the restart: %v", err)
	}
}
