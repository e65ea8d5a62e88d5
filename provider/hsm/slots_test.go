package hsm

import (
	"context"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/shares"
)

// TestSearchesInTurn: a user makes many slow searches. One of them runs at a time, and another user's search does not
// wait behind them.
func TestSearchesInTurn(t *testing.T) {
	p := &Provider{searches: searches{max: 10_000, slots: shares.New(searchConcurrency, true)}}
	as := func(user string) context.Context { return provider.WithCaller(t.Context(), user) }
	within, cancel := context.WithCancel(as("mallory"))
	first, err := p.acquireSearchSlot(within, "k")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, err := p.acquireSearchSlot(within, "k"); !claviger.Is(err, claviger.Unavailable) {
				t.Errorf("a second search of one user at a time: %v", err)
			}
		})
	}
	time.Sleep(10 * time.Millisecond) // most of the searches wait by then
	for range 5 {
		limited, stop := context.WithTimeout(as("alice"), 5*time.Second)
		slot, err := p.acquireSearchSlot(limited, "k")
		stop()
		if err != nil {
			t.Fatalf("alice: %v", err)
		}
		slot.release()
	}
	cancel()
	wg.Wait()
	first.release()
	if err := p.CheckSearches(t.Context()); err != nil {
		t.Errorf("while a slot is free: %v", err)
	}
	if used, _ := p.searches.slots.Figures(); used != 0 {
		t.Errorf("%d slots were not released", used)
	}
}
