package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"claviger"
	"claviger/metastore"
)

// TestIsNew checks that each change is reported once, and that only the newest changes are kept.
func TestIsNew(t *testing.T) {
	var h history
	const last = 10 * recentChanges
	for seq := int64(1); seq <= last; seq++ {
		m := changeRecord{Seq: seq, ID: fmt.Sprint(seq)}
		if !h.isNew(m) || h.isNew(m) {
			t.Fatalf("change %d is not reported once", seq)
		}
	}
	if n := len(h.known); n > 4*recentChanges {
		t.Errorf("%d changes are kept", n)
	}
	for seq := int64(last - recentChanges); seq <= last; seq++ {
		if h.isNew(changeRecord{Seq: seq, ID: fmt.Sprint(seq)}) {
			t.Errorf("change %d of %d is reported again", seq, last)
		}
	}
	if !h.isNew(changeRecord{Seq: last, ID: "of another server"}) {
		t.Error("another change with the same number is not reported")
	}
	var sparse history
	old := changeRecord{Seq: 1, ID: "old"}
	sparse.isNew(old)
	sparse.isNew(changeRecord{Seq: 10 * last, ID: "new"})
	if sparse.isNew(old) {
		t.Error("one of two changes is reported again")
	}
}

// TestRemember checks that a node remembers the changes with the highest numbers, each once.
func TestRemember(t *testing.T) {
	var s Store
	for _, seq := range []int64{3, 1, 2, 3} {
		s.remember(changeRecord{Seq: seq, ID: fmt.Sprint(seq)})
	}
	if got := fmt.Sprint(s.history.seen); len(s.history.seen) != 3 || s.history.seen[0].Seq != 1 ||
		s.history.seen[2].Seq != 3 {
		t.Errorf("remembered %s", got)
	}
	for seq := int64(100); seq > 50; seq-- {
		s.remember(changeRecord{Seq: seq, ID: fmt.Sprint(seq)})
	}
	if n := len(s.history.seen); n != rememberedChanges || s.history.seen[n-1].Seq != 100 ||
		s.history.seen[0].Seq != 100-rememberedChanges+1 {
		t.Errorf("remembered %v", s.history.seen)
	}
}

// TestParseNotice checks which notices are new, and that the change of a notice is remembered.
func TestParseNotice(t *testing.T) {
	var s Store
	for _, text := range []string{"", "{", "a key"} {
		if n, isNew := s.parseNotice(text); n != (metastore.Notice{Change: metastore.Invalidated}) || !isNew {
			t.Errorf("%q: %+v, %t", text, n, isNew)
		}
	}
	want := metastore.Notice{Key: "k", Change: metastore.Rolled}
	for range 2 {
		text := fmt.Sprintf(`{"key": "k", "change": %q}`, metastore.Rolled)
		if n, isNew := s.parseNotice(text); n != want || !isNew || len(s.history.seen) > 0 {
			t.Errorf("a notice without a change: %+v, %t", n, isNew)
		}
	}
	for i := range 2 {
		text := fmt.Sprintf(`{"key": "k", "change": %q, "mark": {"seq": 1, "id": "x", "key": "k"}}`, metastore.Rolled)
		if n, isNew := s.parseNotice(text); n != want || isNew != (i == 0) || len(s.history.seen) != 1 {
			t.Errorf("a notice with a change, time %d: %+v, %t", i, n, isNew)
		}
	}
}

// TestRecordWrite checks which errors LastWrite reports.
func TestRecordWrite(t *testing.T) {
	now := time.Now()
	caller := claviger.E("op", claviger.KeyNotFound, "k", nil)
	lost := func(s *Store) { s.history.lost.Store(&lostChanges{}) }
	for what, tt := range map[string]struct {
		err      error
		prepare  func(s *Store)
		recorded bool
		full     bool
	}{
		"success":                           {nil, nil, true, false},
		"an error of the caller":            {caller, nil, false, false},
		"an error of the server":            {&pgconn.PgError{Code: "XX000"}, nil, true, false},
		"a full disk":                       {&pgconn.PgError{Code: "53100"}, nil, true, true},
		"a lost connection":                 {io.EOF, nil, true, false},
		"a deadline":                        {context.DeadlineExceeded, nil, true, false},
		"a fence":                           {fmt.Errorf("%w: x", errFenced), nil, true, false},
		"an error while no standby follows": {caller, func(s *Store) { s.writes.noStandby.Store(&now) }, true, false},
		"an error while changes are lost":   {caller, lost, true, false},
	} {
		var s Store
		if _, ok := s.LastWrite(); ok {
			t.Error("there was no change")
		}
		if tt.prepare != nil {
			tt.prepare(&s)
		}
		s.recordWrite(now, tt.err)
		if seen, ok := s.LastWrite(); ok != tt.recorded || ok && !errors.Is(seen.Err, tt.err) ||
			s.writes.full.Load() != tt.full {
			t.Errorf("%s: %+v, %t; full: %t", what, seen, ok, s.writes.full.Load())
		}
	}
}

// TestNotifyNeedsChange checks that a key is changed only in a transaction that records the change.
func TestNotifyNeedsChange(t *testing.T) {
	if err := notify(t.Context(), nil, metastore.Notice{Key: "k"}); err == nil {
		t.Error("a change was made that nothing records")
	}
}
