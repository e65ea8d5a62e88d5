package server

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// refusedLines is the burst of log lines about requests of unknown senders. After that, one more
	// line is logged each refusedEvery.
	refusedLines = 100
	refusedEvery = 600 * time.Millisecond
	// maxGuessers is the size limit of the table of addresses whose registrations have failed.
	maxGuessers = 1 << 12
)

// addressKey is the key of the sender's address in a request's context.
type addressKey struct{}

// guesses counts failed registrations by address, so that the failures of one sender do not stop the
// registrations of another. If the table of addresses is full, all other addresses share one limit.
type guesses struct {
	mu        sync.Mutex
	byAddress map[string]*rate.Limiter
	others    *rate.Limiter
	swept     time.Time // when addresses that may try again were last removed
}

func newGuesses() *guesses {
	return &guesses{byAddress: make(map[string]*rate.Limiter), others: newGuessLimit()}
}

func newGuessLimit() *rate.Limiter { return rate.NewLimiter(rate.Every(guessEvery), guessBurst) }

// tooMany reports whether registrations of an address have failed too often lately.
func (f *guesses) tooMany(address string, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.byAddress[address]
	if l == nil {
		if len(f.byAddress) < maxGuessers {
			return false
		}
		l = f.others
	}
	return l.TokensAt(now) < 1
}

// record counts a failure.
func (f *guesses) record(address string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.byAddress[address]
	if l == nil {
		// Not at each failure: many failing addresses would make each request search the table.
		if len(f.byAddress) >= maxGuessers && now.Sub(f.swept) >= guessEvery {
			f.swept = now
			for a, one := range f.byAddress {
				if one.TokensAt(now) >= guessBurst {
					delete(f.byAddress, a)
				}
			}
		}
		if l = f.others; len(f.byAddress) < maxGuessers {
			l = newGuessLimit()
			f.byAddress[address] = l
		}
	}
	l.AllowN(now, 1)
}
