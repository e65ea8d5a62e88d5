package kmsapi

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// class says whom a request shares its limit with. A NameNode that has just
// started asks for EDEKs of all its zones at once, a re-encryption for weeks;
// neither may take the place of a user who opens a file, so that each class has
// one of its own, and those whose work is small and from memory have none.
type class int

const (
	unlimited class = iota
	decrypts        // and re-encryptions of one EDEK
	generates
	batches // re-encryptions of many
	management
	classes
)

var classNames = [classes]string{"", "decrypt", "generate", "re-encryption", "key management"}

// Admission says how many requests of a class are worked on at once. Others wait
// for their turn, and are sent to another node if it does not come.
type Admission struct {
	Decrypts   int
	Generates  int // in units of unitEDEKs, of which a smaller request is one
	Batches    int // likewise
	Management int
	// Wait is how long a request waits for its turn, and for memory if it is a large
	// one.
	Wait time.Duration
}

// unitEDEKs is what Hadoop's NameNode asks for at most in one generate
// (hadoop.security.kms.client.encrypted.key.cache.size).
const unitEDEKs = 500

// DefaultAdmission is what a Config without one gets.
var DefaultAdmission = Admission{Decrypts: 2048, Generates: 64, Batches: 16, Management: 32, Wait: 5 * time.Second}

// busyLogInterval is how often the log tells of requests that were sent away.
const busyLogInterval = 10 * time.Second

// lane is the limit of one class.
type lane struct {
	name   string
	size   int64
	wait   time.Duration
	waited func(class string, took time.Duration, came bool)
	log    *slog.Logger
	turns  *semaphore.Weighted // first come, first served: a large request is not passed by small ones for ever

	mu     sync.Mutex
	sent   int // away since the last line in the log
	logged time.Time
}

func newLanes(a Admission, waited func(string, time.Duration, bool), log *slog.Logger) [classes]*lane {
	var out [classes]*lane
	for c, size := range [classes]int{decrypts: a.Decrypts, generates: a.Generates, batches: a.Batches, management: a.Management} {
		if size > 0 {
			out[c] = &lane{name: classNames[c], size: int64(size), wait: a.Wait, waited: waited, log: log, turns: semaphore.NewWeighted(int64(size))}
		}
	}
	return out
}

// busy is an overload: a request whose turn has not come in time.
type busy struct{ what string }

func (e *busy) Error() string {
	return "this node has as many " + e.what + " requests as it takes; ask another, or this one later"
}

// units is the weight of a request about so many EDEKs.
func units(edeks int) int64 { return max(1, (int64(edeks)+unitEDEKs-1)/unitEDEKs) }

// admit waits for the request's turn among its class; *busy where it does not
// come. It is given back when the request is done.
func (c *call) admit(ctx context.Context, of class, n int64) error {
	l := c.lanes[of]
	if l == nil {
		return nil
	}
	n = min(n, l.size) // who asks for more than there is gets all of it
	if l.turns.TryAcquire(n) {
		c.turn, c.turns = l, n
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.wait)
	defer cancel()
	begun := time.Now()
	err := l.turns.Acquire(ctx, n)
	l.waited(l.name, time.Since(begun), err == nil)
	if err != nil {
		l.sendAway()
		return &busy{l.name}
	}
	c.turn, c.turns = l, n
	return nil
}

// Leave and Return are keyring.Turn: a request that waits for a source gives its
// turn up, and takes one again for the rest of its work.
func (c *call) Leave() {
	if c.turn != nil {
		c.turn.turns.Release(c.turns)
		c.away, c.turn = c.turn, nil
	}
}

// Return waits as long as the request may last: half of its work is done.
func (c *call) Return(ctx context.Context) error {
	l := c.away
	if l == nil {
		return nil
	}
	if err := l.turns.Acquire(ctx, c.turns); err != nil {
		l.sendAway()
		return &busy{l.name}
	}
	c.turn, c.away = l, nil
	return nil
}

// leave gives the turn back.
func (c *call) leave() {
	if c.turn != nil {
		c.turn.turns.Release(c.turns)
		c.turn = nil
	}
}

// sendAway tells the log, now and then: overload must not fill the disk.
func (l *lane) sendAway() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent++
	now := time.Now()
	if now.Sub(l.logged) < busyLogInterval {
		return
	}
	l.log.Warn("overload: requests did not get their turn in time and were sent to another node",
		"class", l.name, "requests", strconv.Itoa(l.sent), "at once", l.size, "waited", l.wait)
	l.sent, l.logged = 0, now
}
