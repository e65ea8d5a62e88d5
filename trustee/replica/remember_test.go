package replica

import (
	"testing"
	"time"
)

// TestRememberAfterEvent: what Current has found out is not kept if an event came while it read the state.
func TestRememberAfterEvent(t *testing.T) {
	r, c := &Replica{}, &learned{until: time.Now().Add(time.Hour)}
	r.remember(c, r.events.Load())
	if r.learned.Load() != c {
		t.Error("the result of a call without an event was not kept")
	}
	events := r.events.Load()
	r.unlearn()
	if r.learned.Load() != nil {
		t.Error("an event left the result of an earlier call")
	}
	r.remember(c, events)
	if r.learned.Load() != nil {
		t.Error("a result from before the event was kept")
	}
}
