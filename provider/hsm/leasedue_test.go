package hsm

import (
	"testing"
	"time"
)

// TestLeaseDue: a lease is renewed in the background after a quarter of its length, or if the token has come back since
// its key was verified. It is not renewed while a renewal runs, nor within half a second after one that failed.
func TestLeaseDue(t *testing.T) {
	const length, now, long = time.Minute, time.Hour, 2 * time.Second
	for name, row := range map[string]struct {
		age, failedAgo time.Duration // failedAgo 0: the last renewal succeeded
		tokenCameBack  bool
		running, want  bool
	}{
		"young":                               {age: 14 * time.Second},
		"a quarter":                           {age: 15 * time.Second, want: true},
		"young, token came back":              {age: time.Second, tokenCameBack: true, want: true},
		"renewal runs":                        {age: 50 * time.Second, running: true},
		"failed now":                          {age: 50 * time.Second, failedAgo: 499 * time.Millisecond},
		"failed a while ago":                  {age: 50 * time.Second, failedAgo: 500 * time.Millisecond, want: true},
		"failed, token came back":             {age: time.Second, failedAgo: time.Millisecond, tokenCameBack: true},
		"token came back, failed a while ago": {age: time.Second, failedAgo: long, tokenCameBack: true, want: true},
	} {
		p, e := new(Provider), new(entry)
		e.verified.Store(p.epoch.Load() + 1)
		if row.tokenCameBack {
			p.epoch.Add(1)
		}
		if row.failedAgo > 0 {
			e.lease.failed = now - row.failedAgo
		}
		if row.running {
			e.lease.running = new(renewal)
		}
		if got := p.isDue(e, row.age, length, now); got != row.want {
			t.Errorf("%s: %t, want %t", name, got, row.want)
		}
	}
}
