package pkcs11

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// callSpacing is the time after which a key that is in use may begin a further call, although earlier ones run. A
	// request waits half of that time on average for a call that it can share.
	callSpacing = 10 * time.Millisecond
	// callTimePeriod is the time for which a short call counts at least. It counts for two periods at most.
	callTimePeriod = 2 * time.Second
	// shortCall is the time of a call below which calls with one key begin without a gap between them.
	shortCall = 5 * time.Millisecond
)

// callTime is the time that one encryption takes at present: the shortest of the last one or two periods. Longer
// times contain waits of calls for each other in the HSM, and more calls at the same time would only make the waits
// longer. callTime falls at once, and rises after a period. The zero value is ready to use.
type callTime struct {
	mu          sync.Mutex
	since       time.Time     // start of the present period
	now, before time.Duration // the shortest of the present period and of the one before
	shortest    atomic.Int64  // min(now, before), in ns; 0 if there was no call
}

// add counts an encryption that ended at that time.
func (c *callTime) add(took time.Duration, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch age := at.Sub(c.since); {
	case age >= 2*callTimePeriod:
		c.since, c.now, c.before = at, took, took
	case age >= callTimePeriod:
		c.since, c.now, c.before = at, took, c.now
	default:
		c.now = min(c.now, took)
	}
	c.shortest.Store(int64(min(c.now, c.before)))
}

// callsAtOnce returns the largest number of calls with one key at the same time. It is at least the number of the
// profile. If calls take long, it is the number with which a call can begin each callSpacing, but at most a quarter of
// the sessions, so that calls that hang leave the other sessions to other keys.
func (t *Token) callsAtOnce() int {
	wanted := int(t.callTime.shortest.Load() / int64(callSpacing))
	return max(t.inFlight, min(wanted, cap(t.slots)/4))
}

// callGap returns the shortest time between the beginnings of two calls with one key, so that the calls of a busy key
// begin evenly spread over the time of one call. Without the gap, all callers of one call would return together and
// make small calls until no further call is allowed. The other callers would wait for the whole time of a call.
func (t *Token) callGap() time.Duration {
	took := time.Duration(t.callTime.shortest.Load())
	if took < shortCall {
		return 0
	}
	return took / time.Duration(t.callsAtOnce())
}
