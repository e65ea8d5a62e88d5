package server

import (
	"context"
	"errors"
	"testing"
	"time"
)

// checkedStore is a store of which only CheckWrites is asked.
type checkedStore struct {
	Store
	asked int
	check func(context.Context) error
}

func (s *checkedStore) CheckWrites(ctx context.Context) error {
	s.asked++
	return s.check(ctx)
}

// TestFaultIsRemembered: an answer holds for faultHolds. A caller who gives up changes
// nothing of it: neither is a store that takes no changes taken for one that does, nor the
// other way round.
func TestFaultIsRemembered(t *testing.T) {
	now := time.Now()
	full := errors.New("the disk is full")
	s := &checkedStore{check: func(context.Context) error { return full }}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var f WriteProbe
	want := func(ctx context.Context, text string, asked int) {
		t.Helper()
		if got := f.Fault(ctx, s, now); got != text || s.asked != asked {
			t.Errorf("%q after %d questions, want %q after %d", got, s.asked, text, asked)
		}
	}
	want(gone, "", 1)
	want(t.Context(), full.Error(), 2)
	now = now.Add(faultHolds - 1)
	want(t.Context(), full.Error(), 2)
	now = now.Add(1)
	want(gone, full.Error(), 3)
	want(gone, full.Error(), 4)
	s.check = func(context.Context) error { return nil }
	want(t.Context(), "", 5)
	s.check = func(ctx context.Context) error { return ctx.Err() }
	now = now.Add(faultHolds)
	want(gone, "", 6)
}
