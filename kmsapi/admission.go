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
	"claviger/trace"
)

// class names the limit that a request counts for. A NameNode that has just
// started generates EDEKs for all its zones at once, and a re-encryption may last
// for weeks. Neither may delay a user who opens a file, so each class has its own
// limit. Within a class, one caller cannot take all slots (package shares).
type class int

const (
	noClass  class = iota
	decrypts       // and re-encryptions of one EDEK
	generates
	batches // re-encryptions of many EDEKs
	management
	reads    // of names, metadata and versions
	servlets // /jmx, /stacks and the other pages
	classes  // the number of classes
)

var classNames = [classes]string{"", "decrypt", "generate", "re-encryption", "key management", "metadata", "servlet"}

// Admission says how many requests of a class run at once. Other requests wait for
// a slot. A request that gets no slot within Wait is answered so that the client
// tries another node.
type Admission struct {
	Decrypts   int
	Generates  int // in units of unitEDEKs; a request takes at least one
	Batches    int // in units of unitEDEKs; a request takes at least one
	Management int
	Reads      int // a request takes one for each unitNames names
	// Wait is how long a request waits for a slot, and a large request for memory.
	Wait time.Duration
}

// unitEDEKs is the greatest number of EDEKs that Hadoop's NameNode requests in one
// generate (hadoop.security.kms.client.encrypted.key.cache.size).
const unitEDEKs = 500

// unitNames is how many names of a metadata request take one slot. The provider
// may have to send a request to another server for each name.
const unitNames = 16

// servletSlots is how many servlet pages are made at once. A page takes
// milliseconds, and its readers are monitoring and operators.
const servletSlots = 16

// DefaultAdmission is used if Config.Admission is zero.
var DefaultAdmission = Admission{
	Decrypts: 2048, Generates: 64, Batches: 16, Management: 32, Reads: 512, Wait: 5 * time.Second,
}

// busyLogInterval is the least time between two log lines about an overload.
const busyLogInterval = 10 * time.Second

// waitedFunc is the type of Config.Waited.
type waitedFunc = func(class string, took time.Duration, granted bool)

// limiter is the limit of one class.
type limiter struct {
	name   string
	shares *shares.Shares
	wait   time.Duration
	waited waitedFunc
	log    *slog.Logger

	mu      sync.Mutex
	refused int // since the last log line
	logged  time.Time
	full    time.Time // the last refusal of a caller who held no slot
	own     int64     // refusals of callers who held slots already
}

func newLimiter(name string, size int64, exact bool, a Admission, waited waitedFunc, log *slog.Logger) *limiter {
	return &limiter{name: name, shares: shares.New(size, exact), wait: a.Wait, waited: waited, log: log}
}

// Classes returns the classes with which Config.Waited is called.
func Classes() []string { return slices.Clone(classNames[1:]) }

func newLimiters(a Admission, waited waitedFunc, log *slog.Logger) [classes]*limiter {
	sizes := [classes]int{
		decrypts: a.Decrypts, generates: a.Generates, batches: a.Batches, management: a.Management,
		reads: a.Reads, servlets: servletSlots,
	}
	var out [classes]*limiter
	for c, size := range sizes {
		if size > 0 {
			out[c] = newLimiter(classNames[c], int64(size), false, a, waited, log)
		}
	}
	return out
}

// busy is an overload: the request got no slot in time. If own is true, the caller
// holds as many slots as one user may hold.
type busy struct {
	what string
	own  bool
}

func (e *busy) Error() string {
	if e.own {
		return "this node is serving as many of your " + e.what + " requests as one user may have at a time; " +
			"try another node, or try again later"
	}
	return "this node is serving as many " + e.what + " requests as it may; try another node, or try again later"
}

// units returns the weight of a request with that many EDEKs.
func units(edeks int) int64 { return max(1, (int64(edeks)+unitEDEKs-1)/unitEDEKs) }

// acquire waits for n slots of the limiter, at most l.wait. It returns *busy if they
// do not become free. It may grant fewer, see package shares.
func (l *limiter) acquire(ctx context.Context, caller string, n int64) (granted int64, err error) {
	var began time.Time // zero if it did not wait
	granted, own, err := l.shares.Acquire(caller, n, func() (context.Context, context.CancelFunc) {
		began = time.Now()
		return context.WithTimeout(ctx, l.wait)
	})
	if !began.IsZero() {
		l.waited(l.name, time.Since(began), err == nil)
	}
	if err != nil {
		l.countRefused(caller, own)
		return 0, &busy{l.name, own}
	}
	return granted, nil
}

// admit waits for n slots of a class, and returns *busy if it gets none in time.
// releaseSlots releases them when the work is done.
func (c *call) admit(ctx context.Context, limited class, n int64) (err error) {
	l := c.limiters[limited]
	if l == nil {
		return nil
	}
	defer c.waitSpan(l).EndWith(&err)
	if c.slots, err = l.acquire(ctx, c.caller.Short, n); err != nil {
		return err
	}
	c.limiter = l
	return nil
}

// waitSpan begins the step in which the request waits for slots.
func (c *call) waitSpan(l *limiter) *trace.Span {
	s := c.span.Step("admission")
	s.Word(trace.Class, l.name)
	return s
}

// Release and Acquire implement keyring.Slot. A request that waits for a source
// releases its slots, and acquires them again for the rest of its work.
func (c *call) Release() {
	if c.limiter != nil {
		c.limiter.shares.Release(c.caller.Short, c.slots)
		c.released, c.limiter = c.limiter, nil
	}
}

// Acquire waits until ctx ends, not only l.wait, because a part of the request's work is done already.
func (c *call) Acquire(ctx context.Context) (err error) {
	l := c.released
	if l == nil {
		return nil
	}
	defer c.waitSpan(l).EndWith(&err)
	granted, own, err := l.shares.Acquire(c.caller.Short, c.slots,
		func() (context.Context, context.CancelFunc) { return context.WithCancel(ctx) })
	if err != nil {
		l.countRefused(c.caller.Short, own)
		return &busy{l.name, own}
	}
	c.limiter, c.slots, c.released = l, granted, nil
	return nil
}

// releaseSlots releases the request's slots, if it holds some.
func (c *call) releaseSlots() {
	if c.limiter != nil {
		c.limiter.shares.Release(c.caller.Short, c.slots)
		c.limiter = nil
	}
}

// countRefused counts a refused request. It logs once in busyLogInterval, so that
// an overload cannot fill the disk.
func (l *limiter) countRefused(caller string, own bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused++
	now := time.Now()
	if own {
		l.own++
	} else {
		l.full = now
	}
	if now.Sub(l.logged) < busyLogInterval {
		return
	}
	l.log.Warn("overload: requests got no slot in time and were sent to another node",
		"class", l.name, "requests", strconv.Itoa(l.refused), "slots", l.shares.Size(), "waited", l.wait,
		"lastUser", caller, "lastUserHeldSlots", own)
	l.refused, l.logged = 0, now
}

// LimiterFigures are the figures of one class of requests, or of the memory of large
// requests.
type LimiterFigures struct {
	Size, Used    int64
	BusiestCaller int64     // the largest part of Used that one caller holds
	Own           int64     // refused requests whose caller held a slot already
	Full          time.Time // the last refusal of a caller who held no slot; zero: never
}

// Limiters reports how full the classes are. New sets it.
type Limiters struct{ all []*limiter }

// Figures returns the figures by class; "large" is the memory of large requests,
// in bytes. Before New the map is empty.
func (l *Limiters) Figures() map[string]LimiterFigures {
	out := make(map[string]LimiterFigures)
	for _, one := range l.all {
		f := LimiterFigures{Size: one.shares.Size()}
		f.Used, f.BusiestCaller = one.shares.Figures()
		one.mu.Lock()
		f.Own, f.Full = one.own, one.full
		one.mu.Unlock()
		out[one.name] = f
	}
	return out
}

// fullFor is how long Full reports a refusal.
const fullFor = time.Minute

// Full returns an error if a caller who held no slot was refused within the last
// minute.
func (l *Limiters) Full() error {
	for _, one := range l.all {
		one.mu.Lock()
		full := one.full
		one.mu.Unlock()
		if !full.IsZero() && time.Since(full) < fullFor {
			used, most := one.shares.Figures()
			return fmt.Errorf("%s requests are sent to other nodes: %d of %d are in use, %d of them by one user",
				one.name, used, one.shares.Size(), most)
		}
	}
	return nil
}
