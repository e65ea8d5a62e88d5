package kmsapi

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"claviger/shares"
)

// class says whom a request shares its limit with. A NameNode that has just
// started asks for EDEKs of all its zones at once, a re-encryption for weeks;
// neither may take the place of a user who opens a file, so each class has one of
// its own. Within a class one caller cannot take the places of others, see package shares.
type class int

const (
	noClass  class = iota
	decrypts       // and re-encryptions of one EDEK
	generates
	batches // re-encryptions of many
	management
	reads    // of names, metadata and versions
	servlets // /jmx, /stacks and their like
	classes
)

var classNames = [classes]string{"", "decrypt", "generate", "re-encryption", "key management", "metadata", "servlet"}

// Admission says how many requests of a class are worked on at once. Others wait
// for their turn, and are sent to another node if it does not come.
type Admission struct {
	Decrypts   int
	Generates  int // in units of unitEDEKs, of which a smaller request is one
	Batches    int // likewise
	Management int
	Reads      int // in units of unitNames
	// Wait is how long a request waits for its turn, and for memory if it is a large
	// one.
	Wait time.Duration
}

// unitEDEKs is what Hadoop's NameNode asks for at most in one generate
// (hadoop.security.kms.client.encrypted.key.cache.size).
const unitEDEKs = 500

// unitNames is how many names of one request for metadata take one place. A provider may
// have to ask another server for each.
const unitNames = 16

// servletsAtOnce is how many pages of servlets are made at once. Each is made in
// milliseconds, and those who ask are monitoring and operators.
const servletsAtOnce = 16

// DefaultAdmission is what a Config without one gets.
var DefaultAdmission = Admission{Decrypts: 2048, Generates: 64, Batches: 16, Management: 32, Reads: 512, Wait: 5 * time.Second}

// busyLogInterval is how often the log tells of requests that were sent away.
const busyLogInterval = 10 * time.Second

// lane is the limit of one class.
type lane struct {
	name   string
	shares *shares.Shares
	wait   time.Duration
	waited func(class string, took time.Duration, came bool)
	log    *slog.Logger

	mu     sync.Mutex
	sent   int // away since the last line in the log
	logged time.Time
	full   time.Time // when one was last sent away who held nothing
	own    int64     // sent away since they held a share already
}

func newLane(name string, size int64, exact bool, a Admission, waited func(string, time.Duration, bool), log *slog.Logger) *lane {
	return &lane{name: name, shares: shares.New(size, exact), wait: a.Wait, waited: waited, log: log}
}

// Classes are the values with which Config.Waited is called.
func Classes() []string { return slices.Clone(classNames[1:]) }

func newLanes(a Admission, waited func(string, time.Duration, bool), log *slog.Logger) [classes]*lane {
	var out [classes]*lane
	for c, size := range [classes]int{decrypts: a.Decrypts, generates: a.Generates, batches: a.Batches, management: a.Management, reads: a.Reads, servlets: servletsAtOnce} {
		if size > 0 {
			out[c] = newLane(classNames[c], int64(size), false, a, waited, log)
		}
	}
	return out
}

// busy is an overload: a request whose turn has not come in time. own: the caller has
// as many under way as one may have.
type busy struct {
	what string
	own  bool
}

func (e *busy) Error() string {
	if e.own {
		return "as many of your " + e.what + " requests are under way here as one user's may be; ask another node, or this one later"
	}
	return "this node has as many " + e.what + " requests as it takes; ask another, or this one later"
}

// units is the weight of a request about so many EDEKs.
func units(edeks int) int64 { return max(1, (int64(edeks)+unitEDEKs-1)/unitEDEKs) }

// acquire waits for n of a lane; *busy where that does not come.
func (l *lane) acquire(ctx context.Context, caller string, n int64) (granted int64, err error) {
	var begun time.Time
	granted, own, err := l.shares.Acquire(caller, n, func() (context.Context, context.CancelFunc) {
		begun = time.Now()
		return context.WithTimeout(ctx, l.wait)
	})
	if !begun.IsZero() {
		l.waited(l.name, time.Since(begun), err == nil)
	}
	if err != nil {
		l.sendAway(caller, own)
		return 0, &busy{l.name, own}
	}
	return granted, nil
}

// admit waits for the request's turn among its class; *busy where it does not
// come. It is given back when the work is done.
func (c *call) admit(ctx context.Context, of class, n int64) (err error) {
	l := c.lanes[of]
	if l == nil {
		return nil
	}
	if c.turns, err = l.acquire(ctx, c.caller.Short, n); err != nil {
		return err
	}
	c.turn = l
	return nil
}

// Release and Acquire make a call a keyring.Slot: a request that waits for a source gives its slot up, and takes
// one again for the rest of its work.
func (c *call) Release() {
	if c.turn != nil {
		c.turn.shares.Release(c.caller.Short, c.turns)
		c.away, c.turn = c.turn, nil
	}
}

// Acquire waits as long as the request may last: half of its work is done.
func (c *call) Acquire(ctx context.Context) error {
	l := c.away
	if l == nil {
		return nil
	}
	granted, own, err := l.shares.Acquire(c.caller.Short, c.turns, func() (context.Context, context.CancelFunc) { return context.WithCancel(ctx) })
	if err != nil {
		l.sendAway(c.caller.Short, own)
		return &busy{l.name, own}
	}
	c.turn, c.turns, c.away = l, granted, nil
	return nil
}

// leave gives the turn back.
func (c *call) leave() {
	if c.turn != nil {
		c.turn.shares.Release(c.caller.Short, c.turns)
		c.turn = nil
	}
}

// sendAway counts one that was sent away. It tells the log, now and then: overload
// must not fill the disk.
func (l *lane) sendAway(caller string, own bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent++
	now := time.Now()
	if own {
		l.own++
	} else {
		l.full = now
	}
	if now.Sub(l.logged) < busyLogInterval {
		return
	}
	l.log.Warn("overload: requests did not get their turn in time and were sent to another node",
		"class", l.name, "requests", strconv.Itoa(l.sent), "at once", l.shares.Size(), "waited", l.wait, "latest of", caller, "who had a share already", own)
	l.sent, l.logged = 0, now
}

// LaneFigures are those of one class of requests, or of the memory for large ones.
type LaneFigures struct {
	Size, Used int64
	Most       int64     // what the caller with most has of Used
	Own        int64     // requests sent away whose caller had a share already
	Full       time.Time // when one was last sent away whose caller had nothing; zero: never
}

// Lanes tells how full the classes are, by name; "large" is the memory, in bytes. New
// fills it in.
type Lanes struct{ all []*lane }

// Figures returns them; none before New.
func (l *Lanes) Figures() map[string]LaneFigures {
	out := make(map[string]LaneFigures)
	for _, one := range l.all {
		f := LaneFigures{Size: one.shares.Size()}
		f.Used, f.Most = one.shares.Figures()
		one.mu.Lock()
		f.Own, f.Full = one.own, one.full
		one.mu.Unlock()
		out[one.name] = f
	}
	return out
}

// biteLasts is how long after a refusal Full tells of it.
const biteLasts = time.Minute

// Full is an error where callers who had nothing were sent away within the last minute.
func (l *Lanes) Full() error {
	for _, one := range l.all {
		one.mu.Lock()
		full := one.full
		one.mu.Unlock()
		if !full.IsZero() && time.Since(full) < biteLasts {
			used, most := one.shares.Figures()
			return fmt.Errorf("%s requests are sent to other nodes: %d of %d are in use, %d of them by one user", one.name, used, one.shares.Size(), most)
		}
	}
	return nil
}
