package kmsapi

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"claviger"
)

// TestReserve: small requests need no part of the allowance. Whatever one caller holds of it,
// another caller gets a part. In the end everything is released.
func TestReserve(t *testing.T) {
	// MaxBody counts as smallBody at least, so the allowance is a multiple of smallBody.
	a := &api{large: newLargeRequests(Limits{MaxBody: 1}, Admission{Wait: time.Millisecond},
		slog.New(slog.DiscardHandler))}
	size := a.large.shares.Size()
	by := func(name string) *call {
		c := &call{api: a}
		c.caller = claviger.Caller{Principal: claviger.Principal{Name: name, Short: name}}
		return c
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var held []*call
	var overload *busy
	for {
		c := by("mallory")
		err := c.reserve(t.Context(), smallBody)
		if err != nil {
			if !errors.As(err, &overload) || !overload.own {
				t.Errorf("beyond a caller's share: %v", err)
			}
			break
		}
		held = append(held, c)
	}
	if used, most := a.large.shares.Figures(); used > size/2 || used != most || len(held) < 2 {
		t.Errorf("one caller holds %d of %d bytes by %d requests", used, size, len(held))
	}
	alice := by("alice")
	if err := alice.reserve(ended, smallBody); err != nil {
		t.Errorf("another caller, at once: %v", err)
	}
	late := by("mallory")
	if err := late.reserve(ended, freeMemory); err != nil {
		t.Errorf("a small request: %v", err)
	}
	late.releaseMemory() // holds nothing
	alice.releaseMemory()
	alice.releaseMemory()
	for _, c := range held {
		c.releaseMemory()
	}
	// Several reservations of a request count together.
	c := by("alice")
	for range 8 {
		if err := c.reserve(t.Context(), freeMemory/2); err != nil {
			t.Fatal(err)
		}
	}
	if c.reserved != 3*freeMemory {
		t.Errorf("%d bytes are reserved for %d", c.reserved, c.used)
	}
	c.releaseMemory()
	// A request that needs more than the allowance is charged the limit of one caller.
	if err := c.reserve(t.Context(), 100*size); err != nil || c.reserved != size/2 {
		t.Errorf("%d of %d bytes, %v", c.reserved, size, err)
	}
	c.releaseMemory()
	if used, _ := a.large.shares.Figures(); used != 0 {
		t.Error("something was not released")
	}
}

// TestMaxMemory: large requests share the memory of Limits.MaxMemory, or by default that of four
// bodies.
func TestMaxMemory(t *testing.T) {
	for _, c := range []struct {
		limits Limits
		want   int64
	}{
		{Limits{MaxBody: 10 << 20}, 40 << 20},
		{Limits{MaxBody: 10 << 20, MaxMemory: 100 << 20}, 100 << 20},
	} {
		if got := newLargeRequests(c.limits, Admission{}, slog.New(slog.DiscardHandler)).shares.Size(); got != c.want {
			t.Errorf("%+v: %d bytes, want %d", c.limits, got, c.want)
		}
	}
}

// TestBatchWeight: the weight of a batch depends on the number of EDEKs, and for long EDEKs on
// the number of blocks.
func TestBatchWeight(t *testing.T) {
	for _, c := range []struct {
		edeks, bytes int
		want         int64
	}{{1, 16, 1}, {500, 32, 1}, {501, 16, 2}, {500, 33, 2}, {500, 1024, 32}, {0, 0, 1}} {
		list := make([]claviger.EDEK, c.edeks)
		for i := range list {
			list[i].Material = make([]byte, c.bytes)
		}
		if got := batchWeight(list); got != c.want {
			t.Errorf("%d EDEKs of %d bytes weigh %d, want %d", c.edeks, c.bytes, got, c.want)
		}
	}
}

// TestBuffers: a buffer has the capacity that its user needs, and nothing of its last user is in it.
func TestBuffers(t *testing.T) {
	for _, n := range []int{0, 1, 4 << 10, freeMemory, freeMemory + 1, 4 * freeMemory, 4*freeMemory + 1, keepBuffer,
		keepBuffer + 1} {
		for range 3 {
			b := buffer(n)
			whole := b[:cap(b)]
			if len(b) != 0 || cap(b) < n || bytes.ContainsFunc(whole, func(r rune) bool { return r != 0 }) {
				t.Fatalf("a buffer for %d bytes has a length of %d and a capacity of %d, or is not wiped", n, len(b),
					cap(b))
			}
			if n <= freeMemory && cap(b) > freeMemory {
				t.Fatalf("a buffer for %d bytes takes %d", n, cap(b))
			}
			for i := range whole {
				whole[i] = 'x'
			}
			recycle(whole)
		}
	}
}
