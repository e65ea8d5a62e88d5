package keyring

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/metastore"
)

// The uses of a source's version, in metastore.Use.Op.
const (
	useDecrypt   = "decrypt"
	useReencrypt = "reencrypt"
	// UseUnserved: the version was requested while its source was not configured.
	UseUnserved = "unserved"
)

const (
	// flushEvery is the interval in which counters are written. A crash can lose those of one interval. The first use
	// of a version by an operation, and the first one after such an interval, is written before its answer is sent. So
	// the recorded time of the last use is wrong by at most one interval.
	flushEvery = time.Second
	// firstUseWait is the longest time that an answer waits for that write. A store that cannot be reached must not
	// block the use of a source's keys.
	firstUseWait = time.Second
	// flushTimeout limits one writing of the counters.
	flushTimeout = 10 * time.Second
	// countedVersions is the largest number of counters in memory. Only versions that a source has served are counted,
	// so there are as many counters as the source has versions. Further versions are counted under OtherVersions.
	countedVersions = 1 << 16
)

// OtherVersions is the name under which the versions of a source are counted that have no counter of their own.
const OtherVersions = "(others)"

// UsesKept keeps, on this host, uses of source versions that the store has not accepted.
type UsesKept interface {
	// Load returns the uses that were kept.
	Load() ([]metastore.Use, error)
	// Keep replaces the uses that were kept. An empty list removes them.
	Keep(uses []metastore.Use) error
}

// usage counts the uses of source versions, and writes the counters to the store. They prove that a source is idle,
// so "not used" must not mean "not written yet".
type usage struct {
	store metastore.Usage // may be nil
	clock metastore.Clock // the store's; may be nil
	log   *slog.Logger

	mu      sync.Mutex
	pending map[useName]*useCount // not written yet; if store is nil, all counters
	limit   int
	used    map[useName]time.Time // last use in this process; run writes a use less than flushEvery later
	failing error                 // error of the last write; while it is not nil, no answer waits for a write
	since   time.Time             // when the first of the failing writes began

	kept     UsesKept           // may be nil
	total    int64              // number of the counts in kept; guarded by flushing
	now      chan chan struct{} // requests a write from run, which closes the received channel after the write
	flushing sync.Mutex         // one flush or reading of the store at a time
	stop     chan struct{}
	stopped  chan struct{}
}

type useName struct{ source, version, op string }

type useCount struct {
	count int64
	last  time.Time
}

func newUsage(store metastore.Usage, clock metastore.Clock, kept UsesKept, log *slog.Logger) *usage {
	u := &usage{store: store, clock: clock, kept: kept, log: log, limit: countedVersions,
		pending: map[useName]*useCount{},
		used:    map[useName]time.Time{}, now: make(chan chan struct{})}
	if store != nil {
		u.loadKept()
		u.stop, u.stopped = make(chan struct{}), make(chan struct{})
		go u.run()
	}
	return u
}

// loadKept reads the uses that an earlier process could not write.
func (u *usage) loadKept() {
	if u.kept == nil {
		return
	}
	list, err := u.kept.Load()
	if err != nil {
		u.log.Error("uses of source key versions that an earlier process kept cannot be read: a migration may be "+
			"ended as if they had not been", "error", err)
		return
	}
	now := time.Now() // the clock may have been wrong when they were kept
	for _, use := range list {
		u.total += use.Count
		u.merge(useName{use.Source, use.Version, use.Op}, use.Count, now)
	}
}

// keep keeps the pending uses beyond the end of this process. After a crash between a write and the next keep, uses are
// counted twice. The only effect is that a source counts as in use for longer.
func (u *usage) keep() error {
	u.flushing.Lock()
	defer u.flushing.Unlock()
	u.mu.Lock()
	list := uses(u.pending)
	if u.failing == nil {
		list = nil
	}
	u.mu.Unlock()
	var total int64
	for _, use := range list {
		total += use.Count
	}
	if u.kept == nil || total == u.total {
		return nil
	}
	err := u.kept.Keep(list)
	if err == nil {
		u.total = total
	}
	return err
}

// checkWritten returns an error with the reason if counters could not be written.
func (u *usage) checkWritten() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failing == nil {
		return nil
	}
	return claviger.Errorf("keyring.CheckUses", claviger.Unavailable, "",
		"the uses of %d source key versions have not been written since %s (%w): claviger migrate finish does not "+
			"see them; end no migration before they are written, and if you stop a node whose metastore cannot be "+
			"reached, start it again", len(u.pending), u.since.UTC().Format(time.RFC3339), u.failing)
}

// add counts n EDEKs of a version that a source has opened.
func (u *usage) add(source, version, op string, n int) {
	name := useName{source, version, op}
	now := time.Now()
	u.mu.Lock()
	u.merge(name, int64(n), now)
	last, known := u.used[name]
	counted := u.store != nil && (known || len(u.used) < u.limit)
	if counted {
		u.used[name] = now
	}
	first := counted && u.failing == nil && now.Sub(last) >= flushEvery
	u.mu.Unlock()
	if first {
		u.writeNow()
	}
}

// writeNow requests a write of the counters, and waits for it, at most firstUseWait.
func (u *usage) writeNow() {
	wait := time.NewTimer(firstUseWait)
	defer wait.Stop()
	done := make(chan struct{})
	select {
	case u.now <- done:
	case <-u.stop:
		return
	case <-wait.C:
		return
	}
	select {
	case <-done:
	case <-wait.C:
	}
}

// merge must be called with u.mu held.
func (u *usage) merge(name useName, n int64, last time.Time) {
	c := u.pending[name]
	if c == nil {
		if len(u.pending) >= u.limit {
			name.version = OtherVersions
			c = u.pending[name]
		}
		if c == nil {
			c = &useCount{}
			u.pending[name] = c
		}
	}
	c.count += n
	if last.After(c.last) {
		c.last = last
	}
}

func (u *usage) run() {
	defer close(u.stopped)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		var done chan struct{}
		select {
		case <-tick.C:
		case done = <-u.now:
		case <-u.stop:
			return
		}
		_ = u.write() // the error is in the log; the next tick tries again
		if done != nil {
			close(done)
		}
	}
}

// write flushes, and keeps the uses that could not be written.
func (u *usage) write() error {
	began := time.Now()
	err := u.flush()
	u.mu.Lock()
	if u.failing == nil {
		u.since = began
	}
	u.failing = err
	u.mu.Unlock()
	if err != nil {
		u.log.Error("the counters of source key versions could not be written; they are kept and written later",
			"error", err)
	}
	if kerr := u.keep(); kerr != nil {
		u.log.Error("the counters of source key versions are not kept on this host; what is not written is lost with "+
			"this process", "error", kerr)
		return errors.Join(err, kerr)
	}
	return err
}

// flush writes the pending uses. Uses that could not be written stay pending.
func (u *usage) flush() error {
	u.flushing.Lock()
	defer u.flushing.Unlock()
	u.mu.Lock()
	pending := u.pending
	u.pending = make(map[useName]*useCount, len(pending))
	u.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	return writeParts(uses(pending), func(list []metastore.Use) (err error) {
		if list, err = u.dated(ctx, list); err != nil {
			return err
		}
		err = u.store.AddUse(ctx, list)
		if err == nil || len(list) > 1 || storeDown(err) || list[0].Version == OtherVersions {
			return err
		}
		// The use of the source must be recorded, even if the store refuses the version's name.
		other := list[0]
		other.Version = OtherVersions
		if u.store.AddUse(ctx, []metastore.Use{other}) != nil {
			return err
		}
		u.log.Warn("the use of a version cannot be written under its name; it is counted under "+OtherVersions,
			"version", list[0].Version[:min(len(list[0].Version), 100)], "source", other.Source, "error", err)
		return nil
	}, func(list []metastore.Use) {
		u.mu.Lock()
		defer u.mu.Unlock()
		for _, c := range list {
			u.merge(useName{c.Source, c.Version, c.Op}, c.Count, c.Last)
		}
	})
}

// dated returns the uses with times by the later of this host's clock and the store's: a use with a time that is too
// early would count as a use before the migration. The age of a use is measured by the monotonic clock of this process,
// so it is right even if the host's clock was set since.
func (u *usage) dated(ctx context.Context, list []metastore.Use) ([]metastore.Use, error) {
	if u.clock == nil {
		return list, nil
	}
	clocks, err := u.clock.Clocks(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.Clone(list)
	for i := range list {
		list[i].Last = clocks.Latest().Add(-max(0, time.Since(list[i].Last)))
	}
	return list, nil
}

// storeDown reports whether the store would accept no other record either.
func storeDown(err error) bool {
	return claviger.Is(err, claviger.Unavailable) || claviger.Is(err, claviger.Closed)
}

// writeParts writes a list. If the store refuses the list, it writes each half: a record that the store refuses must
// not block the other records. A store that cannot be reached is not tried again. Records that were not written are
// passed to kept.
func writeParts[T any](list []T, write func([]T) error, kept func([]T)) error {
	err := write(list)
	if err == nil {
		return nil
	}
	if len(list) == 1 || storeDown(err) {
		kept(list)
		return err
	}
	half := len(list) / 2
	if err = writeParts(list[:half], write, kept); err != nil && storeDown(err) {
		kept(list[half:])
		return err
	}
	if rest := writeParts(list[half:], write, kept); rest != nil {
		return rest
	}
	return err
}

func uses(counts map[useName]*useCount) []metastore.Use {
	list := make([]metastore.Use, 0, len(counts))
	for name, c := range counts {
		list = append(list, metastore.Use{Source: name.source, Version: name.version, Op: name.op, Count: c.count,
			Last: c.last})
	}
	return list
}

// all returns the counters, including those of earlier runs.
func (u *usage) all(ctx context.Context) ([]metastore.Use, error) {
	u.flushing.Lock() // otherwise a flush could move counts from pending, not read yet, to the store, read already
	defer u.flushing.Unlock()
	var list []metastore.Use
	if u.store != nil {
		var err error
		if list, err = u.store.Uses(ctx); err != nil {
			return nil, err
		}
	}
	at := make(map[useName]int, len(list))
	for i, use := range list {
		at[useName{use.Source, use.Version, use.Op}] = i
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, use := range uses(u.pending) {
		i, ok := at[useName{use.Source, use.Version, use.Op}]
		if !ok {
			list = append(list, use)
			continue
		}
		list[i].Count += use.Count
		if use.Last.After(list[i].Last) {
			list[i].Last = use.Last
		}
	}
	return list, nil
}

// close writes a last time, and stops run.
func (u *usage) close() error {
	if u.store == nil {
		return nil
	}
	close(u.stop)
	<-u.stopped
	return u.write()
}

// CheckUses returns an error if uses of sources are not in the store, with the reason for an operator.
func (r *Ring) CheckUses(context.Context) error { return r.usage.checkWritten() }

// unserved has the versions, by key, that were requested, not found, and counted. Their number is limited by the
// source's number of versions, because a client may invent names.
type unserved struct {
	mu    sync.Mutex
	byKey map[string]map[string]bool
}

// admits reports whether the version may be counted; most is the limit for its key.
func (u *unserved) admits(key, version string, most int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byKey == nil {
		u.byKey = map[string]map[string]bool{}
	}
	seen := u.byKey[key]
	if !seen[version] {
		if len(seen) >= most {
			return false
		}
		if seen == nil {
			seen = map[string]bool{}
			u.byKey[key] = seen
		}
		seen[version] = true
	}
	return true
}

// countUnserved counts EDEKs of a version that is not found, if an unfinished migration has the key from a source that
// is not configured. That source is still needed, and the counter prevents the end of the migration. Requests of a
// caller without the right to the key do not count, nor do versions that the source did not have when the key was taken
// over.
func (r *Ring) countUnserved(ctx context.Context, q *request, err error, right authz.KeyOp, n int) {
	var e *claviger.Error
	if !claviger.Is(err, claviger.VersionNotFound) || !errors.As(err, &e) {
		return
	}
	version := claviger.ParseVersion(e.Key)
	if !version.Valid() {
		return
	}
	list, err := r.origins.of(ctx, version.Key)
	if err != nil {
		return
	}
	number, isNumber := version.Number()
	for _, o := range list {
		switch {
		case !o.Finished.IsZero() || r.sources.configured(o.Source) || o.Key != version.Key && !o.Folded:
		case o.Numbered && (!isNumber || number >= max(o.Counted, o.Rolled)):
		case q.mayKey(o.ACLName, right) &&
			r.unserved.admits(o.Source+"\x00"+version.Key, version.Name(), max(o.Counted, 1)):
			r.usage.add(o.Source, version.Name(), UseUnserved, n)
		}
	}
}

// SourceUse returns the number of uses, and the last use, of each version of a source through this service. It includes
// all runs and, if the metastore is shared, all nodes, up to a few seconds ago.
func (r *Ring) SourceUse(ctx context.Context) ([]metastore.Use, error) {
	if r.closed.Load() {
		return nil, claviger.E("keyring.SourceUse", claviger.Closed, "", nil)
	}
	return r.usage.all(ctx)
}

// rememberHomes reads from the counters which source served which version in earlier runs. If the store cannot be read,
// the server starts without this knowledge: it then tries the sources in order.
func (r *Ring) rememberHomes() {
	if r.sources.none() || r.cfg.Usage == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	list, err := r.cfg.Usage.Uses(ctx)
	if err != nil {
		r.log.Warn("the counters of source key versions could not be read", "error", err)
		return
	}
	r.sources.remember(list)
}
