package server

import (
	"context"
	"errors"
	"testing"
	"time"
)

// checkedStore is a store that has only CheckWrites.
type checkedStore struct {
	Store
	probes int
	check  func(context.Context) error
}

func (s *checkedStore) CheckWrites(ctx context.Context) error {
	s.probes++
	return s.check(ctx)
}

// TestProbeLife: Fault returns the result of a probe for probeLife. A caller that gives up does not change the
// result.
func TestProbeLife(t *testing.T) {
	now := time.Now()
	full := errors.New("the disk is full")
	s := &checkedStore{check: func(context.Context) error { return full }}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var f WriteProbe
	want := func(ctx context.Context, text string, probes int) {
		t.Helper()
		if got := f.Fault(ctx, s, now); got != text || s.probes != probes {
			t.Errorf("%q after %d probes, want %q after %d", got, s.probes, text, probes)
		}
	}
	want(gone, "", 1)
	want(t.Context(), full.Error(), 2)
	now = now.Add(probeLife - 1)
	want(t.Context(), full.Error(), 2)
	now = now.Add(1)
	want(gone, full.Error(), 3)
	want(gone, full.Error(), 4)
	s.check = func(context.Context) error { return nil }
	want(t.Context(), "", 5)
	s.check = func(ctx context.Context) error { return ctx.Err() }
	now = now.Add(probeLife)
	want(gone, "", 6)
}
