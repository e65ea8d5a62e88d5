package server

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// refusedLines is how many lines the log gets at once of requests that were refused
	// before it was known whose they are, and refusedEvery how often one more.
	refusedLines = 100
	refusedEvery = 600 * time.Millisecond
	// maxFailed is how many addresses are remembered from which registrations have failed.
	maxFailed = 1 << 12
)

// addressKey is the place of the peer's address in a request's context.
type addressKey struct{}

// failed counts wrong registrations by address, so that a stranger's keep nobody else from
// registering. Where too many addresses have failed lately, the others count as one.
type failed struct {
	mu        sync.Mutex
	byAddress map[string]*rate.Limiter
	others    *rate.Limiter
	swept     time.Time // when byAddress was last searched for addresses that have recovered
}

func newFailed() *failed {
	return &failed{byAddress: make(map[string]*rate.Limiter), others: newFailures()}
}

func newFailures() *rate.Limiter { return rate.NewLimiter(rate.Every(failureEvery), failures) }

// many reports whether an address has failed too often lately.
func (f *failed) many(address string, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.byAddress[address]
	if l == nil {
		if len(f.byAddress) < maxFailed {
			return false
		}
		l = f.others
	}
	return l.TokensAt(now) < 1
}

// note counts a failure.
func (f *failed) note(address string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.byAddress[address]
	if l == nil {
		// Not at each failure: strangers of many addresses would have the table searched by each request.
		if len(f.byAddress) >= maxFailed && now.Sub(f.swept) >= failureEvery {
			f.swept = now
			for a, one := range f.byAddress {
				if one.TokensAt(now) >= failures {
					delete(f.byAddress, a)
				}
			}
		}
		if l = f.others; len(f.byAddress) < maxFailed {
			l = newFailures()
			f.byAddress[address] = l
		}
	}
	l.AllowN(now, 1)
}
