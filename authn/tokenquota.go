package authn

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"claviger"
)

// TokenLimits limit the delegation tokens of one owner, and of all owners together. The owner is the user that a
// token is for, by the short name.
type TokenLimits struct {
	Total    int     // tokens of all owners
	PerOwner int     // tokens of one owner
	Rate     float64 // tokens that one owner gets each second, on average
	Burst    int     // tokens that one owner may get at once
	Renewer  int     // bytes of a renewer's name, which is stored with each token
}

// DefaultTokenLimits are used if DelegationConfig has no limits.
var DefaultTokenLimits = TokenLimits{Total: 200_000, PerOwner: 10_000, Rate: 50, Burst: 1000, Renewer: 256}

// freeShare limits the tokens of one owner to a quarter of the free places. So even many greedy owners leave room for
// others.
const freeShare = 4

const (
	// The tokens in the store are counted again because other nodes issue and cancel tokens too. The pause after a
	// count is at least recountPause, and at least recountPauseFactor times the duration of that count.
	recountPause       = 30 * time.Second
	recountPauseFactor = 20
	// recountAge is the age at which a count is made again although no token is refused.
	recountAge = 5 * time.Minute
	// refusalLogPause is the minimum time between two log lines about refusals.
	refusalLogPause = 10 * time.Second
)

// TokenStats are figures of the limits.
type TokenStats struct {
	Total, BusiestOwner int   // all tokens, and the tokens of the owner with most, at the last count
	RefusedRate         int64 // tokens refused because their owner requested too many in a short time
	RefusedOwner        int64 // tokens refused because of PerOwner
	RefusedTotal        int64 // tokens refused because the store is full, or nearly full
	LastRefusedByFull   time.Time
}

// quota counts tokens by owner. Each node has its own counts. They begin with the tokens in the store, change with
// the tokens that this node issues and cancels, and are replaced at times by a new count of the store. After the first
// count, a request waits for a new count only if it would be refused otherwise.
type quota struct {
	limits TokenLimits
	now    func() time.Time
	log    *slog.Logger
	// count calls fn with the owner of each token in the store.
	count func(ctx context.Context, fn func(owner string)) error

	countLock chan struct{} // has one element; the caller that counts takes it out

	mu     sync.Mutex
	owners map[string]*owner
	// sweepAt is the number of owners at which the next sweep happens.
	sweepAt int
	total   int
	changes map[string]int // tokens issued minus cancelled since the running count began; nil: no count runs
	next    time.Time      // when a new count is allowed; zero: no count was made yet
	last    time.Time      // when the last count ended
	logged  time.Time      // when a refusal was last logged
	stats   TokenStats
}

// owner has the number of one owner's tokens, and the token bucket that limits the rate of requests.
type owner struct {
	tokens int
	burst  float64 // content of the bucket at the time at
	at     time.Time
}

// overQuota is the error for a token that a limit refuses. If temporary is true, the same request may succeed in a
// moment.
type overQuota struct {
	reason    string
	temporary bool
}

func (e *overQuota) Error() string { return e.reason }

func newQuota(l TokenLimits, now func() time.Time, log *slog.Logger,
	count func(context.Context, func(string)) error) *quota {
	q := &quota{limits: l, now: now, log: log, count: count, countLock: make(chan struct{}, 1),
		owners: make(map[string]*owner), sweepAt: sweepMin}
	q.countLock <- struct{}{}
	return q
}

// acquire counts one more token of an owner, or refuses it with *overQuota.
func (q *quota) acquire(ctx context.Context, name string) error {
	if err := q.ensureCounted(ctx, false); err != nil {
		return err
	}
	err := q.tryAcquire(name)
	if over, ok := err.(*overQuota); !ok || over.temporary { //nolint:errorlint // tryAcquire returns no other
		return err
	}
	// Other nodes may have cancelled tokens, and tokens may have expired.
	if err := q.ensureCounted(ctx, true); err != nil {
		return err
	}
	if err = q.tryAcquire(name); err != nil {
		q.refused(name, err)
	}
	return err
}

func (q *quota) tryAcquire(name string) error {
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	o := q.owners[name]
	if o == nil {
		if len(q.owners) >= q.sweepAt {
			q.sweep(now)
		}
		o = &owner{burst: float64(q.limits.Burst), at: now}
	}
	o.burst, o.at = min(float64(q.limits.Burst), o.burst+q.limits.Rate*max(0, now.Sub(o.at).Seconds())), now
	switch {
	case o.burst < 1:
		q.stats.RefusedRate++
		return &overQuota{fmt.Sprintf("%s requests too many delegation tokens: one owner gets at most %g in a "+
			"second. Use one token for many requests, and try again in a moment", name, q.limits.Rate), true}
	case o.tokens >= q.limits.PerOwner:
		return &overQuota{fmt.Sprintf("%s has %d delegation tokens, and one owner may have %d: cancel those that are "+
			"not needed any more", name, o.tokens, q.limits.PerOwner), false}
	case o.tokens >= (q.limits.Total-q.total+freeShare-1)/freeShare:
		return &overQuota{fmt.Sprintf("there are %d delegation tokens, and %d may be kept: because little room is "+
			"left, %s, who has %d, gets no more until some are cancelled or expire",
			q.total, q.limits.Total, name, o.tokens), false}
	}
	o.burst--
	q.owners[name] = o
	q.add(name, o, 1)
	return nil
}

// sweepMin is the number of owners at which the first sweep happens.
const sweepMin = 1024

// sweep forgets owners that have no tokens and a full bucket, so that nothing about them needs to be remembered.
// Without it, a proxy user could fill the memory: it can invent users, get tokens for them, and cancel the tokens.
// The caller holds q.mu.
func (q *quota) sweep(now time.Time) {
	for name, o := range q.owners {
		full := time.Duration((float64(q.limits.Burst) - o.burst) / q.limits.Rate * float64(time.Second))
		if o.tokens == 0 && now.Sub(o.at) >= full {
			delete(q.owners, name)
		}
	}
	q.sweepAt = max(sweepMin, 2*len(q.owners))
}

// add changes an owner's count. The caller holds q.mu.
func (q *quota) add(name string, o *owner, n int) {
	o.tokens += n
	q.total += n
	if q.changes != nil {
		q.changes[name] += n
	}
}

// release counts one token less: it was cancelled, or could not be stored.
func (q *quota) release(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if o := q.owners[name]; o != nil && o.tokens > 0 {
		q.add(name, o, -1)
	}
}

// ensureCounted counts the tokens in the store if there is no count yet. If refusing is true, it also counts them
// again, unless the pause after the last count still lasts. If another caller is counting, it waits for that count.
func (q *quota) ensureCounted(ctx context.Context, refusing bool) error {
	q.mu.Lock()
	first, due := q.next.IsZero(), !q.now().Before(q.next)
	q.mu.Unlock()
	if !first && (!refusing || !due) {
		return nil
	}
	select {
	case <-q.countLock:
	case <-ctx.Done():
		return claviger.E("authn.Delegations", claviger.Unavailable, "", context.Cause(ctx))
	}
	defer func() { q.countLock <- struct{}{} }()
	q.mu.Lock()
	done := !q.next.IsZero() && q.now().Before(q.next) // another caller has counted meanwhile
	if !done {
		q.changes = make(map[string]int)
	}
	q.mu.Unlock()
	if done {
		return nil
	}
	return q.recount(ctx)
}

// recount replaces the counts by those of the store. The caller holds countLock, and has set changes.
func (q *quota) recount(ctx context.Context) error {
	began := time.Now()
	counts := make(map[string]int)
	err := q.count(ctx, func(name string) { counts[name]++ })
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	since := q.changes
	q.changes = nil
	if err != nil {
		return err
	}
	// A token that was issued during the count may be counted twice, until the next count.
	for name, n := range since {
		counts[name] = max(0, counts[name]+n)
	}
	q.total, q.stats.BusiestOwner = 0, 0
	for name, n := range counts {
		if q.owners[name] == nil {
			q.owners[name] = &owner{burst: float64(q.limits.Burst), at: now}
		}
		q.total += n
		q.stats.BusiestOwner = max(q.stats.BusiestOwner, n)
	}
	for name, o := range q.owners {
		o.tokens = counts[name]
	}
	q.sweep(now)
	q.last = now
	q.next = now.Add(max(recountPause, recountPauseFactor*time.Since(began)))
	return nil
}

// recountIfOld counts the tokens again if the last count is older than recountAge.
func (q *quota) recountIfOld(ctx context.Context) error {
	q.mu.Lock()
	due := !q.next.IsZero() && q.now().Sub(q.last) >= recountAge
	q.mu.Unlock()
	if !due {
		return nil
	}
	return q.ensureCounted(ctx, true)
}

// refused counts a refusal. At most once in refusalLogPause, it writes a log line.
func (q *quota) refused(name string, err error) {
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if o := q.owners[name]; o != nil && o.tokens >= q.limits.PerOwner {
		q.stats.RefusedOwner++
	} else {
		q.stats.RefusedTotal++
		q.stats.LastRefusedByFull = now
	}
	if now.Sub(q.logged) >= refusalLogPause {
		q.logged = now
		q.log.Warn("a delegation token was refused", "owner", name, "reason", err.Error(), "refused for the owner",
			q.stats.RefusedOwner, "refused for lack of room", q.stats.RefusedTotal)
	}
}

// snapshot returns the present figures.
func (q *quota) snapshot() TokenStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stats
	s.Total = q.total
	return s
}
