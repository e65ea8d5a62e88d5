package console

import (
	"math"
	"net/http"
	"sync"
	"time"
)

const (
	// trafficEvery is the length of a slot of Traffic, and trafficSlots the number of complete slots.
	trafficEvery = 10 * time.Second
	trafficSlots = 90 // 15 minutes
	// The latencies of a slot are counted in buckets. Each bucket is 2^(1/4) times as wide as the one before, so a
	// percentile is at most 19 % too high. The first bucket ends at trafficFirst, the last one has all above 73 s.
	trafficFirst   = 50 * time.Microsecond
	trafficPerTwo  = 4
	trafficBuckets = 83
)

// Traffic counts the requests of the last 15 minutes in memory, for charts that need no other server. Its methods may
// be called from many goroutines.
type Traffic struct {
	now func() time.Time

	mu    sync.Mutex
	slots [trafficSlots + 1]trafficSlot // one more: the slot of now is not complete
}

type trafficSlot struct {
	number  int64 // of the slot since 1970
	errors  uint32
	buckets [trafficBuckets]uint32
}

// NewTraffic makes a Traffic without requests. now is the clock; nil means time.Now.
func NewTraffic(now func() time.Time) *Traffic {
	if now == nil {
		now = time.Now
	}
	return &Traffic{now: now}
}

// Observe counts a request. A status of 500 or above is an error. Observe can be the Observe of a
// kmsapi.Config.
func (t *Traffic) Observe(_ string, status, _ int, took time.Duration) {
	number := t.now().UnixNano() / int64(trafficEvery)
	bucket := bucketOf(took)
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.slots[number%int64(len(t.slots))]
	if s.number != number {
		*s = trafficSlot{number: number}
	}
	s.buckets[bucket]++
	if status >= http.StatusInternalServerError {
		s.errors++
	}
}

// bucketOf returns the bucket of a duration.
func bucketOf(took time.Duration) int {
	if took <= trafficFirst {
		return 0
	}
	n := math.Ceil(trafficPerTwo * math.Log2(float64(took)/float64(trafficFirst)))
	return min(int(n), trafficBuckets-1)
}

// bucketEnd returns the longest duration in a bucket.
func bucketEnd(bucket int) time.Duration {
	return time.Duration(float64(trafficFirst) * math.Exp2(float64(bucket)/trafficPerTwo))
}

// Interval is the traffic of a part of the last 15 minutes.
type Interval struct {
	Begin    time.Time
	Length   time.Duration
	Requests int
	Errors   int           // of Requests
	P50, P99 time.Duration // at most 19 % too high; 0 if there was no request
}

// PerSecond returns the requests a second.
func (i Interval) PerSecond() float64 { return float64(i.Requests) / i.Length.Seconds() }

// Intervals returns the last 15 minutes in intervals of each, oldest first. each is a multiple of 10 s that divides 15
// minutes. The slot of now is left out, since it is not complete.
func (t *Traffic) Intervals(each time.Duration) []Interval {
	perInterval := int64(each / trafficEvery)
	t.mu.Lock()
	defer t.mu.Unlock()
	first := t.now().UnixNano()/int64(trafficEvery) - trafficSlots
	list := make([]Interval, 0, trafficSlots/perInterval)
	for begin := first; begin < first+trafficSlots; begin += perInterval {
		list = append(list, t.sum(begin, perInterval))
	}
	return list
}

// sum adds n slots. The caller holds the lock.
func (t *Traffic) sum(begin, n int64) Interval {
	i := Interval{Begin: time.Unix(0, begin*int64(trafficEvery)), Length: time.Duration(n) * trafficEvery}
	var all [trafficBuckets]int
	for number := begin; number < begin+n; number++ {
		s := &t.slots[number%int64(len(t.slots))]
		if s.number != number {
			continue
		}
		i.Errors += int(s.errors)
		for b, count := range s.buckets {
			all[b] += int(count)
			i.Requests += int(count)
		}
	}
	i.P50, i.P99 = percentile(all[:], i.Requests, 50), percentile(all[:], i.Requests, 99)
	return i
}

// percentile returns a duration that percent of the requests did not exceed.
func percentile(buckets []int, requests, percent int) time.Duration {
	const whole = 100
	for b, sum := 0, 0; requests > 0 && b < len(buckets); b++ {
		if sum += buckets[b]; sum*whole >= requests*percent {
			return bucketEnd(b)
		}
	}
	return 0
}
