package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"claviger/metastore"
	"claviger/metastore/postgres"
)

// watchUntilRead watches a store until the test ends, and waits until the store has read the changes.
func watchUntilRead(t *testing.T, s *postgres.Store) {
	t.Helper()
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
}

// TestPollReadsRegularly checks that Watch reads the changes at once and then every few seconds, and that NoticesUntil
// is the time of the last read that succeeded.
func TestPollReadsRegularly(t *testing.T) {
	uri := emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri})
	if at := s.NoticesUntil(); !at.IsZero() {
		t.Errorf("NoticesUntil before Watch: %v", at)
	}
	begun := time.Now()
	watchUntilRead(t, s)
	first := s.NoticesUntil()
	if first.Before(begun) || first.After(time.Now()) {
		t.Errorf("the first read was at %v, but Watch began at %v", first, begun)
	}
	last := first
	eventually(t, "the store reads the changes again", func() bool { last = s.NoticesUntil(); return last != first })
	if pause := last.Sub(first); pause < 900*time.Millisecond {
		t.Errorf("the store reads the changes again after %v", pause)
	}
	exec(t, uri, `ALTER TABLE change RENAME TO moved`)
	if err := s.CatchUp(t.Context(), func(metastore.Notice) {}); err == nil {
		t.Error("CatchUp without the table of changes")
	}
	exec(t, uri, `ALTER TABLE moved RENAME TO change`)
	eventually(t, "the store reads the changes after an error", func() bool { return s.NoticesUntil().After(last) })
}

// TestPollRemovesOldChanges checks that Watch removes old changes, and keeps the newest ones.
func TestPollRemovesOldChanges(t *testing.T) {
	uri := emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri})
	exec(t, uri, `INSERT INTO change (seq, id, key, change, at) OVERRIDING SYSTEM VALUE
		VALUES (1, 'a', 'k', '', 1), (5000, 'b', 'k', '', 1), (10000, 'c', 'k', '', 1), (20000, 'd', 'k', '', 1)`)
	watchUntilRead(t, s)
	eventually(t, "the old changes are removed", func() bool {
		ids, err := s.ChangeIDs(t.Context())
		return err == nil && slices.Equal(ids, []string{"c", "d"})
	})
}

// TestCatchUpReports checks which notices a read of the changes gives: none for changes before the first read, one for
// each later change, and an invalidation if there may be changes that were not read.
func TestCatchUpReports(t *testing.T) {
	uri := emptyStore(t)
	s := openConfig(t, postgres.Config{URI: uri})
	for _, changes := range []struct{ made, reported, invalidated int }{
		{2, 0, 0}, {63, 63, 0}, {64, 64, 1}, {0, 0, 0},
	} {
		exec(t, uri, fmt.Sprintf(`INSERT INTO change (id, key, change, at)
			SELECT gen_random_uuid()::text, 'k', 'rolled', 1 FROM generate_series(1, %d)`, changes.made))
		got := map[metastore.Notice]int{}
		if err := s.CatchUp(t.Context(), func(n metastore.Notice) { got[n]++ }); err != nil {
			t.Fatal(err)
		}
		if got[metastore.Notice{Key: "k", Change: "rolled"}] != changes.reported ||
			got[metastore.Notice{Change: metastore.Invalidated}] != changes.invalidated {
			t.Errorf("%d changes give %v", changes.made, got)
		}
	}
}
