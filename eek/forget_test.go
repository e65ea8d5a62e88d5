package eek

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
)

// newFilled returns a queue with all EDEKs of key k, and the number of calls of its fill function.
func newFilled(t *testing.T) (*Queue, *atomic.Int32) {
	t.Helper()
	calls := new(atomic.Int32)
	q, err := NewQueue(QueueConfig{Size: 100, LowWatermark: 0.3, Expiry: time.Hour, Workers: 1,
		FillTimeout: time.Minute,
		Fill: func(_ context.Context, _ string, n int) ([]claviger.EDEK, error) {
			calls.Add(1)
			made := make([]claviger.EDEK, n)
			for i := range made {
				made[i].IV = fmt.Append(nil, i)
			}
			return made, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	if _, err := q.Take(t.Context(), "k", 1); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	if n := q.Len("k"); n != 100 {
		t.Fatalf("%d EDEKs are ready", n)
	}
	calls.Store(0)
	return q, calls
}

// TestTakenIsForgotten checks that the array of ready EDEKs keeps no reference to an EDEK that was taken.
func TestTakenIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, _ := newFilled(t)
		ready := q.keys["k"].ready
		if _, err := q.Take(t.Context(), "k", 5); err != nil {
			t.Fatal(err)
		}
		for i, e := range ready {
			if kept := e.IV != nil; kept != (i >= 5) {
				t.Errorf("EDEK %d of the array: %t", i, kept)
			}
		}
	})
}

// TestFullQueueIsNotRefilled: a refill makes nothing if a Take has filled the queue in the meantime.
func TestFullQueueIsNotRefilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, calls := newFilled(t)
		q.mu.Lock()
		q.refill("k", q.keys["k"])
		q.mu.Unlock()
		if n := calls.Load(); n != 0 {
			t.Errorf("the fill function was called %d times", n)
		}
	})
}

// TestDrainedKeysAreForgotten checks that a key without EDEKs that no call uses needs no memory.
func TestDrainedKeysAreForgotten(t *testing.T) {
	for name, drain := range map[string]func(*Queue){
		"one": func(q *Queue) { q.Drain("k") },
		"all": (*Queue).DrainAll,
	} {
		synctest.Test(t, func(t *testing.T) {
			q, _ := newFilled(t)
			if _, err := q.Take(t.Context(), "k", 1); err != nil { // the first Take of a key works differently
				t.Fatal(err)
			}
			if drain(q); q.Keys() != 0 {
				t.Errorf("%s: the queue holds %d keys", name, q.Keys())
			}
		})
	}
}

// TestCloseWaits checks that no fill is running when Close returns.
func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var filling, ended atomic.Bool
		q, err := NewQueue(QueueConfig{Size: 100, LowWatermark: 0.3, Expiry: time.Hour, Workers: 1,
			FillTimeout: time.Hour,
			Fill: func(ctx context.Context, _ string, n int) ([]claviger.EDEK, error) {
				if filling.Swap(true) { // in the background
					<-ctx.Done()
					time.Sleep(time.Second)
					ended.Store(true)
				}
				return make([]claviger.EDEK, n), nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := q.Take(t.Context(), "k", 1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if q.Close(); !ended.Load() {
			t.Error("Close returned while a refill was running")
		}
	})
}

// TestFailedRefillIsForgotten checks that a key without EDEKs needs no memory after its refill failed.
func TestFailedRefillIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		q, err := NewQueue(QueueConfig{Size: 10, LowWatermark: 0.5, Expiry: time.Hour, Workers: 1,
			FillTimeout: time.Minute,
			Fill: func(_ context.Context, _ string, n int) ([]claviger.EDEK, error) {
				if calls++; calls > 1 {
					return nil, claviger.E("test", claviger.Unavailable, "k", nil)
				}
				return make([]claviger.EDEK, n), nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		if _, err := q.Take(t.Context(), "k", 5); err != nil { // takes all EDEKs of the first fill
			t.Fatal(err)
		}
		synctest.Wait()
		if calls != 2 || q.Keys() != 0 {
			t.Errorf("%d calls; the queue holds %d keys", calls, q.Keys())
		}
	})
}
