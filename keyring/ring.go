package keyring

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/eek"
	"claviger/metastore"
	"claviger/provider"
)

// Source is a provider that is asked for versions which the primary does not
// know.
type Source struct {
	provider.Provider
	// Reencryption: named by hadoop.kms.key.provider.reencryption.source.uri
	// rather than by the provider list.
	Reencryption bool
}

// Config is what a Ring is made of.
type Config struct {
	Primary provider.Provider
	Sources []Source // in the order in which they are asked
	// Policy returns the ACLs in force; it is called once per request.
	Policy func() *authz.Policy
	// KeyAuthorization is hadoop.kms.key.authorization.enable.
	KeyAuthorization bool
	// Groups returns the groups of a user's short name; nil knows none.
	Groups func(user string) []string
	Audit  audit.Logger
	Log    *slog.Logger // nil discards
	// Reencryption is hadoop.kms.reencryption.crypto.enable: may EDEKs of a
	// source's versions be re-wrapped under ours?
	Reencryption bool
	// Usage keeps the counters of source versions; nil keeps none across
	// restarts.
	Usage metastore.Usage
	// UsesKept holds what Usage did not take yet beyond the end of this process; nil: such
	// counts are lost with it.
	UsesKept UsesKept
	// LastUses keeps when versions of the primary were last used; nil keeps nothing.
	LastUses metastore.LastUses
	// PurgeMinUnused is how long a deleted key must have been deleted and unused before it
	// can be purged: claviger.purge.min.unused. 0: it does not matter.
	PurgeMinUnused time.Duration
	// Clock is the store's. It tells whether the times by which that is judged can be
	// right, and dates what Usage keeps; nil: this process's clock is believed.
	Clock metastore.Clock
	// MayDestroy is asked before keys are destroyed by a deletion, or, with purge, by a
	// purge. It returns an error of kind Unavailable where another node's settings would keep
	// them; nil: there is no other node.
	MayDestroy func(ctx context.Context, purge bool) error

	// Migrator takes keys over at users' requests; nil where there is no source to
	// migrate from.
	Migrator Migrator

	// History is what migrations have left in the metastore; nil where there is none.
	History History

	// Ours are versions, full names, that are this KMS's though a source has others of
	// these names: claviger.migration.ours.
	Ours map[string]bool
	// Theirs are versions, full names, that are deleted here, or that two keys of the source have
	// had: all EDEKs of these names are of the source's versions. claviger.migration.theirs.
	Theirs map[string]bool
	// CompareEvery is how often WatchSources compares; 0 is 30 s.
	CompareEvery time.Duration
	// Settings keeps which versions are in conflict with a source; nil keeps nothing.
	Settings metastore.Settings
	// Numbers keeps the numbers that a source has used from being given to versions
	// here; nil where the primary does not number by it.
	Numbers metastore.Numbers

	// Shared is set where other nodes change the primary's keys, too. It is how they
	// are noticed; nil where nobody else does.
	Shared Shared
	// Lease is how long what is remembered of keys is used since Shared was last heard
	// from: claviger.metastore.lease. 0: without end.
	Lease time.Duration

	DefaultCipher    string // hadoop.security.key.default.cipher; "" is Hadoop's default
	DefaultBitLength int    // hadoop.security.key.default.bitlength; 0 is Hadoop's default

	CacheEnable         bool          // hadoop.kms.cache.enable
	CacheTimeout        time.Duration // hadoop.kms.cache.timeout.ms, after last access
	CurrentCacheTimeout time.Duration // hadoop.kms.current.key.cache.timeout.ms, after write

	// The queue of ready-made EDEKs. Where the primary is a KMS elsewhere there is
	// none, and these are not looked at.
	QueueSize         int           // hadoop.security.kms.encrypted.key.cache.size
	QueueLowWatermark float64       // ...low.watermark
	QueueExpiry       time.Duration // ...expiry
	QueueFillers      int           // ...num.fill.threads

	// SourceTimeout is the limit of one call to a source; 0 is 10 s.
	SourceTimeout time.Duration
	// SourcePause is how long a source that failed SourceFailures calls on end is
	// left alone before one request may try it again; 0 is 5 s.
	SourcePause time.Duration
	// SourceWaiting is how many requests may wait for sources at a time; 0 is 256.
	SourceWaiting int
	// SourceFailures is how many calls to a source must fail, one after another
	// and for want of an answer, until it is left alone; 0 is 3.
	SourceFailures uint32
}

// Shared is a store whose keys several nodes change.
type Shared interface {
	metastore.Epochs
	metastore.Notices
	metastore.Hearing
}

// Defaults of Config, and limits.
const (
	defaultSourceTimeout  = 10 * time.Second
	defaultSourcePause    = 5 * time.Second
	defaultSourceFailures = 3
	defaultSourceWaiting  = 256

	// fillTimeout ends a refill of the queue in the background.
	fillTimeout = time.Minute
	// cachedKeys and cachedVersions bound the caches; a cluster has some hundred
	// keys.
	cachedKeys     = 1 << 14
	cachedVersions = 1 << 15
)

// Ring is the key management service. Its methods may be called from many
// goroutines. Each takes who asks, decides whether he may, and leaves audit
// events as Hadoop's KMS does: UNAUTHORIZED where rules say no, OK where the
// request was served. ERROR events, which name method and URL, are left to the
// face that knows these. Errors are *claviger.Error. After Close they are of
// kind Closed.
type Ring struct {
	cfg     Config
	log     *slog.Logger
	guard   audit.Guard // cfg.Audit, if it is one
	primary primary
	queue   *eek.Queue // nil where the primary keeps ready-made EDEKs itself

	versions *cache[claviger.KeyVersion]
	current  *cache[claviger.KeyVersion] // by key
	keys     *cache[*claviger.Metadata]  // by key; entries are shared and not changed

	sources *sources
	usage   *usage
	// unserved bounds what is counted of versions that no source is asked for.
	unserved unserved
	used     *lastUses
	opened   openings

	origins origins
	clashes clashes
	// conflicts are versions that have the name of another one at their source.
	conflicts conflicts
	aliases   *cache[string] // name here of a key that was asked for by another spelling
	aliased   atomic.Bool    // there are any

	epochs *epochs // nil: nobody else changes keys

	manage keyLocks
	closed atomic.Bool
	close  sync.Once
}

// New builds a Ring and starts its queue. The providers remain the caller's to
// close, after the Ring. Kind Invalid where the figures cannot work.
func New(cfg Config) (*Ring, error) {
	const op = "keyring.New"
	if cfg.Primary == nil || cfg.Policy == nil || cfg.Audit == nil {
		return nil, claviger.Errorf(op, claviger.Internal, "", "Primary, Policy and Audit must be given")
	}
	if cfg.Groups == nil {
		cfg.Groups = func(string) []string { return nil }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.DefaultCipher == "" {
		cfg.DefaultCipher = claviger.DefaultCipher
	}
	if cfg.DefaultBitLength == 0 {
		cfg.DefaultBitLength = claviger.DefaultBitLength
	}
	cfg.SourceTimeout = orDefault(cfg.SourceTimeout, defaultSourceTimeout)
	cfg.SourcePause = orDefault(cfg.SourcePause, defaultSourcePause)
	if cfg.SourceWaiting <= 0 {
		cfg.SourceWaiting = defaultSourceWaiting
	}
	cfg.CompareEvery = orDefault(cfg.CompareEvery, defaultCompareEvery)
	cfg.SourceFailures = orDefault(cfg.SourceFailures, defaultSourceFailures)

	r := &Ring{cfg: cfg, log: cfg.Log}
	r.guard, _ = cfg.Audit.(audit.Guard)
	var err error
	if r.primary, err = newPrimary(cfg.Primary); err != nil {
		return nil, err
	}
	if r.sources, err = newSources(cfg, r.log); err != nil {
		return nil, err
	}
	if cfg.CacheEnable {
		r.versions = newCache[claviger.KeyVersion](cfg.CacheTimeout, true, cachedVersions)
		r.keys = newCache[*claviger.Metadata](cfg.CacheTimeout, true, cachedKeys)
		r.current = newCache[claviger.KeyVersion](cfg.CurrentCacheTimeout, false, cachedKeys)
	}
	if r.primary.queued {
		r.queue, err = eek.NewQueue(eek.QueueConfig{
			Fill: r.makeEDEKs, Size: cfg.QueueSize, LowWatermark: cfg.QueueLowWatermark, Expiry: cfg.QueueExpiry,
			Workers: cfg.QueueFillers, FillTimeout: fillTimeout,
			OnError: func(key string, err error) {
				r.log.Warn("refilling the queue of EDEKs failed", "key", key, "error", err)
			},
		})
		if err != nil {
			return nil, err
		}
		r.primary.onLost(r.queue.Drain) // EDEKs made under the lost version could not be opened
	}
	if cfg.Shared != nil {
		r.epochs = newEpochs(cfg.Shared.Epoch, r.forget)
	}
	r.usage = newUsage(cfg.Usage, cfg.Clock, cfg.UsesKept, r.log)
	r.origins.history = cfg.History
	r.aliases = newCache[string](foreignTimeout, false, cachedKeys)
	r.used = newLastUses(cfg.LastUses, r.log)
	r.rememberHomes()
	return r, nil
}

func orDefault[T ~int64 | ~uint32](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Queued returns how many ready-made EDEKs there are, of all keys. It is for those
// who ask now and then.
func (r *Ring) Queued() int {
	if r.queue == nil {
		return 0
	}
	return r.queue.Ready()
}

// Close stops the queues and writes the counters. It does not close the
// providers. It is called when the faces have ended their requests: what a
// request still under way counts is lost. The error tells that the counters
// could not be written.
func (r *Ring) Close() error {
	var err error
	r.close.Do(func() {
		r.closed.Store(true)
		r.epochs.close()
		if r.queue != nil {
			r.queue.Close()
		}
		err = errors.Join(r.usage.close(), r.used.close())
	})
	return err
}

// PrimaryURI names the primary provider as Hadoop's messages do.
func (r *Ring) PrimaryURI() string { return r.primary.URI() }

// Health asks the primary for a sign of life. An error is for an operator. What
// sources do is told by Sources: a dead one leaves this service usable.
func (r *Ring) Health(ctx context.Context) error {
	if r.closed.Load() {
		return claviger.E("keyring.Health", claviger.Closed, "", nil)
	}
	return r.primary.check(ctx)
}
