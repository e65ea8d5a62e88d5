package kmsapi

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

func TestReserve(t *testing.T) {
	a := &api{large: newLargeRequests(1, time.Millisecond, slog.New(slog.DiscardHandler))} // the allowance is that of 1 MiB bodies
	size := a.large.size
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var held []*call
	for range allowance {
		c := &call{api: a}
		if err := c.reserve(t.Context(), smallBody); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	late := &call{api: a}
	var overload *busy
	for _, ctx := range []context.Context{ended, t.Context()} {
		if err := late.reserve(ctx, freeMemory+1); !errors.As(err, &overload) {
			t.Errorf("beyond the allowance: %v", err)
		}
	}
	if err := late.reserve(ended, freeMemory); err != nil {
		t.Errorf("a small request: %v", err)
	}
	late.release() // has nothing to give back
	held[0].release()
	held[0].release()
	if err := late.reserve(t.Context(), smallBody); err != nil {
		t.Error(err)
	}
	for _, c := range append(held, late) {
		c.release()
	}
	// One that asks for more than there is gets all of it.
	if err := late.reserve(t.Context(), 100*size); err != nil || late.reserved != size {
		t.Errorf("%d of %d bytes, %v", late.reserved, size, err)
	}
	late.release()
	if !a.large.turns.TryAcquire(size) {
		t.Error("something was not given back")
	}
}
