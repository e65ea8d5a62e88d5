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

// Source is a provider with versions that the primary does not know.
type Source struct {
	provider.Provider
	// Reencryption: hadoop.kms.key.provider.reencryption.source.uri names the source, not the provider list.
	Reencryption bool
}

// Config configures a Ring.
type Config struct {
	Primary provider.Provider
	Sources []Source // in the order in which they are tried
	// Policy returns the ACLs in force; it is called once for each request.
	Policy func() *authz.Policy
	// KeyAuthorization is hadoop.kms.key.authorization.enable.
	KeyAuthorization bool
	// Groups returns the groups of a user's short name; nil: no groups.
	Groups func(user string) []string
	Audit  audit.Logger
	Log    *slog.Logger // nil discards
	// Reencryption is hadoop.kms.reencryption.crypto.enable: EDEKs of a source's versions may be re-encrypted under the
	// primary's versions.
	Reencryption bool
	// SelfCheck checks the results of the primary in re-encryptions; "": it does not.
	SelfCheck SelfCheck
	// Usage keeps the counters of source versions; nil: the counters are lost when the process ends.
	Usage metastore.Usage
	// UsesKept keeps the counts that Usage has not accepted until the next process starts; nil: they are lost when this
	// process ends.
	UsesKept UsesKept
	// LastUses keeps the times of the last uses of the primary's versions; nil: they are not kept.
	LastUses metastore.LastUses
	// PurgeMinUnused is the time for which a key must have been deleted and unused before a purge:
	// claviger.purge.min.unused. 0: no limit.
	PurgeMinUnused time.Duration
	// Clock is the store's clock. It dates what Usage keeps, and shows whether the times that a purge compares can be
	// right; nil: this process's clock is used.
	Clock metastore.Clock
	// MayDestroy is called before a deletion destroys keys, and with purge set before a purge does. It returns an error
	// of kind Unavailable if another node's settings would keep the keys. MayDestroy is nil if there is no other node.
	MayDestroy func(ctx context.Context, purge bool) error

	// Migrator takes over keys when users request it; nil if there is no source to migrate from.
	Migrator Migrator

	// History reads the records of migrations from the metastore; nil if there is none.
	History History

	// OwnVersions are full names of versions. EDEKs of these names belong to this KMS's versions, although a source has
	// other versions of these names: claviger.migration.ours.
	OwnVersions map[string]bool
	// SourceVersions are full names of versions that are deleted here, or that two keys of the source have had. All
	// EDEKs of these names belong to the source's versions: claviger.migration.theirs.
	SourceVersions map[string]bool
	// CompareEvery is the interval at which WatchSources compares the migrated keys with their sources; 0 is 30 s.
	CompareEvery time.Duration
	// Settings keeps the names of versions that are in conflict with a source; nil: they are not kept.
	Settings metastore.Settings
	// Numbers keeps the numbers of the primary's versions, so that a new version never gets a number that a source has
	// used. Numbers is nil if the primary numbers versions in another way.
	Numbers metastore.Numbers

	// Shared reports changes that other nodes make to the primary's keys; nil if there are no other nodes.
	Shared Shared
	// Lease is the time for which cached keys are used after the last contact with Shared: claviger.metastore.lease. 0:
	// no limit.
	Lease time.Duration

	DefaultCipher    string // hadoop.security.key.default.cipher; "" is Hadoop's default
	DefaultBitLength int    // hadoop.security.key.default.bitlength; 0 is Hadoop's default

	CacheEnable         bool          // hadoop.kms.cache.enable
	CacheTimeout        time.Duration // hadoop.kms.cache.timeout.ms, after last access
	CurrentCacheTimeout time.Duration // hadoop.kms.current.key.cache.timeout.ms, after write

	// ImpliedLease, if above 0, lets the Ring make EDEKs without an encryption by the primary, see eek.Implied. The
	// primary must be a provider.Leaser, and give a lease of this length of each key version. There is no queue then.
	ImpliedLease time.Duration

	// The settings of the queue of ready-made EDEKs. They have no effect if the primary is another KMS, which has its
	// own queue.
	QueueSize         int           // hadoop.security.kms.encrypted.key.cache.size
	QueueLowWatermark float64       // ...low.watermark
	QueueExpiry       time.Duration // ...expiry
	QueueFillers      int           // ...num.fill.threads

	// SourceTimeout is the limit of one call to a source; 0 is 10 s.
	SourceTimeout time.Duration
	// SourcePause is the time without calls to a source after SourceFailures failed calls in a row. Then one request
	// may try it again; 0 is 5 s.
	SourcePause time.Duration
	// SourceWaiting is the number of requests that may wait for sources at a time; 0 is 256.
	SourceWaiting int
	// SourceFailures is the number of calls in a row without an answer after which the breaker of a source opens; 0
	// is 3.
	SourceFailures uint32
}

// Shared is a store whose keys several nodes change.
type Shared interface {
	metastore.Epochs
	metastore.Notices
	metastore.NoticeProgress
}

// Defaults of Config, and limits.
const (
	defaultSourceTimeout  = 10 * time.Second
	defaultSourcePause    = 5 * time.Second
	defaultSourceFailures = 3
	defaultSourceWaiting  = 256

	// fillTimeout limits a refill of the queue in the background.
	fillTimeout = time.Minute
	// cachedKeys and cachedVersions bound the caches. A cluster has some hundred keys.
	cachedKeys     = 1 << 14
	cachedVersions = 1 << 15
)

// Ring is the key management service. Its methods may be called from many goroutines. Each takes the caller, checks the
// rules, and writes audit events as Hadoop's KMS does: UNAUTHORIZED if the rules refuse, OK if the request was served.
// Package kmsapi writes ERROR events, because it knows method and URL. Errors are *claviger.Error. After Close they are
// of kind Closed.
type Ring struct {
	cfg     Config
	log     *slog.Logger
	guard   audit.Guard // cfg.Audit if it is a Guard, otherwise nil
	primary primary
	queue   *eek.Queue // nil if the primary keeps ready-made EDEKs itself, or EDEKs are implied
	implied atomic.Int64

	versions *cache[claviger.KeyVersion]
	current  *cache[claviger.KeyVersion] // by key
	keys     *cache[*claviger.Metadata]  // by key; entries are shared and not changed

	sources *sources
	usage   *usage
	// unserved bounds the counters of versions whose source is not configured.
	unserved unserved
	used     *lastUses
	opened   openings

	origins origins
	clashes clashes
	// conflicts are versions whose name another version at the source has too.
	conflicts conflicts
	aliases   *cache[string] // by another spelling of a key's name, the name that the key has here
	aliased   atomic.Bool    // aliases may have an entry

	epochs *epochs // nil: no other node changes keys

	manage keyLocks
	closed atomic.Bool
	close  sync.Once
}

// New builds a Ring and starts its queue. The caller closes the Ring, and then the providers. The error is of kind
// Invalid if a number in cfg is not possible.
func New(cfg Config) (*Ring, error) {
	const op = "keyring.New"
	if cfg.Primary == nil || cfg.Policy == nil || cfg.Audit == nil {
		return nil, claviger.Errorf(op, claviger.Internal, "", "Primary, Policy and Audit must be given")
	}
	cfg.setDefaults()
	r := &Ring{cfg: cfg, log: cfg.Log}
	r.guard, _ = cfg.Audit.(audit.Guard)
	var err error
	if r.primary, err = newPrimary(cfg.Primary, cfg.SelfCheck, cfg.ImpliedLease); err != nil {
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
	if r.primary.makesEDEKs && cfg.ImpliedLease <= 0 {
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

// setDefaults sets fields that the caller left out.
func (cfg *Config) setDefaults() {
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
	if cfg.SourceWaiting <= 0 {
		cfg.SourceWaiting = defaultSourceWaiting
	}
	cfg.SourceTimeout = orDefault(cfg.SourceTimeout, defaultSourceTimeout)
	cfg.SourcePause = orDefault(cfg.SourcePause, defaultSourcePause)
	cfg.CompareEvery = orDefault(cfg.CompareEvery, defaultCompareEvery)
	cfg.SourceFailures = orDefault(cfg.SourceFailures, defaultSourceFailures)
}

func orDefault[T ~int64 | ~uint32](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Queued returns the number of ready-made EDEKs of all keys. It visits each key: do not call it for each request.
func (r *Ring) Queued() int {
	if r.queue == nil {
		return 0
	}
	return r.queue.Ready()
}

// QueuedOf returns the number of ready-made EDEKs of a key.
func (r *Ring) QueuedOf(key string) int {
	if r.queue == nil {
		return 0
	}
	return r.queue.Len(key)
}

// Implied returns the number of EDEKs that were made without an encryption by the primary.
func (r *Ring) Implied() int64 { return r.implied.Load() }

// Close stops the queue and writes the counters. It does not close the providers. Call it after the last request: the
// counts of a request that is still running are lost. The error means that the counters could not be written.
func (r *Ring) Close() (err error) {
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

// Health checks the primary. The error is for an operator. It does not check the sources (see Sources): the service
// works while a source is dead.
func (r *Ring) Health(ctx context.Context) error {
	if r.closed.Load() {
		return claviger.E("keyring.Health", claviger.Closed, "", nil)
	}
	return r.primary.check(ctx)
}
