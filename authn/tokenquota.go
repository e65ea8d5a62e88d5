package authn

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"claviger"
)

// TokenLimits bound what one owner of delegation tokens, and all of them together,
// may take. An owner is the user that a token is for, by the short name.
type TokenLimits struct {
	Total    int     // tokens that are kept, of all owners
	PerOwner int     // tokens of one owner
	Rate     float64 // tokens that an owner gets in a second, in the long run
	Burst    int     // and at once
	Renewer  int     // bytes of a renewer's name, which is kept with each token
}

// DefaultTokenLimits are those of a DelegationConfig without any.
var DefaultTokenLimits = TokenLimits{Total: 200_000, PerOwner: 10_000, Rate: 50, Burst: 1000, Renewer: 256}

// share is the part of the free places that one owner may hold at most: many owners
// together, who each come to hold as much, leave room for all others.
const share = 4

const (
	// recount is how often the tokens in the store are counted anew at most, since
	// other nodes issue and cancel them, too. recountCost is how many times longer than
	// a count took the next one waits.
	recount     = 30 * time.Second
	recountCost = 20
	// recountAnyway is how often they are counted although no one is refused.
	recountAnyway = 5 * time.Minute
	// refusalLog is how often the log tells of refusals.
	refusalLog = 10 * time.Second
)

// TokenStats are figures of the limits.
type TokenStats struct {
	Total, Most       int   // tokens, and those of the owner who has most, as last counted
	RefusedRate       int64 // tokens refused: their owner asked for too many in a short time
	RefusedOwner      int64 // the owner has as many as one may have
	RefusedTotal      int64 // the store is full, or nearly
	LastRefusedByFull time.Time
}

// quota counts tokens by owner. The counts are this node's own: they begin with what
// is in the store, change with what this node issues and cancels, and are made again
// from the store now and then. No request counts the store.
type quota struct {
	limits TokenLimits
	now    func() time.Time
	log    *slog.Logger
	// count calls fn with the owner of each token in the store.
	count func(ctx context.Context, fn func(owner string)) error

	counting chan struct{} // holds one element, which the one who counts takes out

	mu     sync.Mutex
	owners map[string]*owner
	// sweepAt is how many owners there are when sweep comes next.
	sweepAt int
	total   int
	since   map[string]int // issued minus cancelled since the count under way began; nil: none is
	next    time.Time      // when a count may be made; zero: none was made yet
	last    time.Time
	logged  time.Time
	stats   TokenStats
}

// owner is one owner's tokens, and the rate at which the owner asks for them.
type owner struct {
	tokens int
	burst  float64 // of the bucket, at the time at
	at     time.Time
}

// overQuota refuses a token. soon: it is worth trying again in a moment.
type overQuota struct {
	text string
	soon bool
}

func (e *overQuota) Error() string { return e.text }

func newQuota(l TokenLimits, now func() time.Time, log *slog.Logger,
	count func(context.Context, func(string)) error) *quota {
	q := &quota{limits: l, now: now, log: log, count: count, counting: make(chan struct{}, 1),
		owners: make(map[string]*owner), sweepAt: sweepLeast}
	q.counting <- struct{}{}
	return q
}

// take counts one more token of an owner, or refuses it with *overQuota.
func (q *quota) take(ctx context.Context, name string) error {
	if err := q.fresh(ctx, false); err != nil {
		return err
	}
	err := q.tryTake(name)
	if over, ok := err.(*overQuota); !ok || over.soon { //nolint:errorlint // tryTake returns no other
		return err
	}
	// Other nodes may have cancelled some, and some may have expired.
	if err := q.fresh(ctx, true); err != nil {
		return err
	}
	if err = q.tryTake(name); err != nil {
		q.refused(name, err)
	}
	return err
}

func (q *quota) tryTake(name string) error {
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
		return &overQuota{fmt.Sprintf("%s asks for too many delegation tokens: %g in a second are issued to one "+
			"owner. Use one token for many requests, and ask again in a moment", name, q.limits.Rate), true}
	case o.tokens >= q.limits.PerOwner:
		return &overQuota{fmt.Sprintf("%s has %d delegation tokens, and one owner may have %d: cancel those that are "+
			"not needed any more", name, o.tokens, q.limits.PerOwner), false}
	case o.tokens >= (q.limits.Total-q.total+share-1)/share:
		return &overQuota{fmt.Sprintf("there are %d delegation tokens, and %d may be kept: with so little room left, "+
			"%s, who has %d, gets no more until some are cancelled or expire",
			q.total, q.limits.Total, name, o.tokens), false}
	}
	o.burst--
	q.owners[name] = o
	q.add(name, o, 1)
	return nil
}

// sweepLeast is how many owners are remembered before those are looked for of whom nothing
// need be remembered.
const sweepLeast = 1024

// sweep forgets owners without tokens, whose rate is what a new owner has: a proxy user may
// ask for tokens of as many users as it can invent, and cancel them. q.mu is held.
func (q *quota) sweep(now time.Time) {
	for name, o := range q.owners {
		full := time.Duration((float64(q.limits.Burst) - o.burst) / q.limits.Rate * float64(time.Second))
		if o.tokens == 0 && now.Sub(o.at) >= full {
			delete(q.owners, name)
		}
	}
	q.sweepAt = max(sweepLeast, 2*len(q.owners))
}

// add changes an owner's count. q.mu is held.
func (q *quota) add(name string, o *owner, n int) {
	o.tokens += n
	q.total += n
	if q.since != nil {
		q.since[name] += n
	}
}

// give counts a token as gone: it was cancelled, or could not be kept.
func (q *quota) give(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if o := q.owners[name]; o != nil && o.tokens > 0 {
		q.add(name, o, -1)
	}
}

// fresh counts the store if that is due: for the first time, or, where refusing, after
// a pause that the cost of the last count sets. A caller that comes while another counts
// waits only where there is no count yet.
func (q *quota) fresh(ctx context.Context, refusing bool) error {
	q.mu.Lock()
	first, due := q.next.IsZero(), !q.now().Before(q.next)
	q.mu.Unlock()
	if !first && (!refusing || !due) {
		return nil
	}
	select {
	case <-q.counting:
	case <-ctx.Done():
		return claviger.E("authn.Delegations", claviger.Unavailable, "", context.Cause(ctx))
	}
	defer func() { q.counting <- struct{}{} }()
	q.mu.Lock()
	done := !q.next.IsZero() && q.now().Before(q.next) // another has counted meanwhile
	if !done {
		q.since = make(map[string]int)
	}
	q.mu.Unlock()
	if done {
		return nil
	}
	return q.recount(ctx)
}

// recount replaces the counts by those of the store. The caller has taken the turn,
// and has set since.
func (q *quota) recount(ctx context.Context) error {
	began := time.Now()
	counts := make(map[string]int)
	err := q.count(ctx, func(name string) { counts[name]++ })
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	since := q.since
	q.since = nil
	if err != nil {
		return err
	}
	// What was issued meanwhile may be counted twice, until the next count.
	for name, n := range since {
		counts[name] = max(0, counts[name]+n)
	}
	q.total, q.stats.Most = 0, 0
	for name, n := range counts {
		if q.owners[name] == nil {
			q.owners[name] = &owner{burst: float64(q.limits.Burst), at: now}
		}
		q.total += n
		q.stats.Most = max(q.stats.Most, n)
	}
	for name, o := range q.owners {
		o.tokens = counts[name]
	}
	q.sweep(now)
	q.last = now
	q.next = now.Add(max(recount, recountCost*time.Since(began)))
	return nil
}

// again counts anew where nobody has for a while.
func (q *quota) again(ctx context.Context) error {
	q.mu.Lock()
	due := !q.next.IsZero() && q.now().Sub(q.last) >= recountAnyway
	q.mu.Unlock()
	if !due {
		return nil
	}
	return q.fresh(ctx, true)
}

// refused counts a refusal, and tells the log, now and then.
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
	if now.Sub(q.logged) >= refusalLog {
		q.logged = now
		q.log.Warn("a delegation token was refused", "owner", name, "reason", err.Error(), "refused for the owner",
			q.stats.RefusedOwner, "refused as there is no room", q.stats.RefusedTotal)
	}
}

// figures returns the figures.
func (q *quota) figures() TokenStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stats
	s.Total = q.total
	return s
}
