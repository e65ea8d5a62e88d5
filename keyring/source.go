package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"claviger"
	"claviger/eek"
	"claviger/provider"
	"claviger/secret"
)

const (
	// foreignTimeout is the time for which a source's metadata of a key is used: the same for which Hadoop uses a
	// current version. For that long the old rules may guard a key that was made again at the source under other rules.
	foreignTimeout = 30 * time.Second
	// sourceChunk is the number of EDEKs in one call to a source, whose limit is SourceTimeout.
	sourceChunk = 250
)

// absentSettles is the time for which a source that numbers its versions must say that it has no version of a name,
// although its count includes the version, before EDEKs of that name are re-encrypted: longer than Hadoop's KMS keeps
// what it has read (hadoop.kms.cache.timeout.ms). It is a variable for tests.
var absentSettles = 10 * time.Minute

// source is a provider for versions that the primary does not know. A circuit breaker keeps requests from waiting for a
// dead source.
type source struct {
	provider.Provider
	crypter
	scheme       string // of the provider's URI
	remote       bool   // another KMS
	reencryption bool   // see Source.Reencryption
	property     string // the property of the configuration that names the source; for messages
	log          *slog.Logger

	timeout    time.Duration // of one call
	failures   uint32        // calls in a row without an answer that open the breaker
	breaker    *gobreaker.CircuitBreaker[struct{}]
	health     provider.Health // nil: the source cannot be probed
	unanswered unanswered
	probing    probing

	keys     *cache[*claviger.Metadata] // the source's metadata of its keys
	lastFail atomic.Pointer[SourceFailure]
	lastCall atomic.Pointer[SourceCall]
	// has contains the names of versions that the source was found to have. absent contains those that it says it does
	// not have, each with the time of the first such answer. When the source is found to have the version, the entry is
	// removed.
	has, absent sync.Map
}

// SourceFailure is a call to a source that got no answer.
type SourceFailure struct {
	At  time.Time
	Err error
}

// SourceCall is a call to a source, with or without an answer.
type SourceCall struct {
	At   time.Time // when it ended
	Took time.Duration
	Err  error // nil: the source answered
}

func newSource(s Source, cfg Config, log *slog.Logger) (*source, error) {
	c, err := crypterOf(s.Provider, false, eek.CheckNone)
	if err != nil {
		return nil, err
	}
	src := &source{
		Provider: s.Provider, crypter: c, scheme: schemeOf(s.Provider), reencryption: s.Reencryption,
		property: "hadoop.kms.key.provider.uri", log: log, timeout: cfg.SourceTimeout, failures: cfg.SourceFailures,
		keys: newCache[*claviger.Metadata](foreignTimeout, false, cachedKeys),
	}
	_, src.remote = c.(remote)
	src.health, _ = s.Provider.(provider.Health)
	if s.Reencryption {
		src.property = "hadoop.kms.key.provider.reencryption.source.uri"
	}
	src.breaker = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        s.URI(),
		MaxRequests: 1,
		Timeout:     cfg.SourcePause,
		ReadyToTrip: func(n gobreaker.Counts) bool {
			return n.ConsecutiveFailures >= cfg.SourceFailures && (src.health == nil || src.unanswered.shared())
		},
		IsSuccessful: func(err error) bool { return err == nil || !isUnreachable(err) },
		IsExcluded:   func(err error) bool { return errors.Is(err, errCancelled) },
		OnStateChange: func(uri string, from, to gobreaker.State) {
			log.Warn("circuit breaker of a source of key versions", "source", uri, "from", from.String(), "to",
				to.String())
		},
	})
	return src, nil
}

// metadata returns the source's metadata of a key, from the cache for foreignTimeout. The request has exactly this
// spelling of the name: a source may answer to names that it does not list. Kind KeyNotFound, which is not cached.
func (s *source) metadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	return s.keys.fetch(ctx, key, func(ctx context.Context, key string) (m *claviger.Metadata, err error) {
		err = s.call(ctx, func(ctx context.Context) (err error) {
			m, err = oneMetadata(ctx, s, key)
			return err
		})
		return m, err
	})
}

// guarded returns the source's metadata of a key, unless guard refuses it. A source without the key has no version of
// it, even if it answers otherwise.
func (s *source) guarded(ctx context.Context, key string,
	guard func(*claviger.Metadata) error) (*claviger.Metadata, error) {
	m, err := s.metadata(ctx, key)
	if err != nil {
		return nil, err
	}
	if err := guard(m); err != nil {
		return nil, ruleError{err}
	}
	return m, nil
}

// counts returns the source's metadata of keys, which count their versions. A key that the source does not have is not
// in the map. If the request fails, each key is requested by itself, because Hadoop's KMS refuses all keys if one
// cannot be read. counts returns the metadata that it has read even with an error.
func (s *source) counts(ctx context.Context, names []string) (map[string]*claviger.Metadata, error) {
	var ms []*claviger.Metadata
	err := s.call(ctx, func(ctx context.Context) (err error) {
		ms, err = s.Metadata(ctx, names...)
		return err
	})
	counts := make(map[string]*claviger.Metadata, len(names))
	switch {
	case err == nil && len(ms) != len(names):
		return nil, claviger.Errorf("keyring.CompareSources", claviger.Internal, "",
			"the source %s returned %d keys for a request for %d", s.URI(), len(ms), len(names))
	case err == nil:
		for i, m := range ms { // a source that folds case may spell the name in another way
			if m != nil {
				counts[names[i]] = m
			}
		}
		return counts, nil
	case len(names) == 1 || noAnswer(err) || ctx.Err() != nil:
		return nil, err
	}
	var errs []error
	for _, name := range names {
		one, err := s.counts(ctx, []string{name})
		maps.Copy(counts, one)
		if errs = append(errs, err); err != nil && noAnswer(err) {
			break
		}
	}
	return counts, errors.Join(errs...)
}

// open lets the source open EDEKs, all of the version v, on behalf of the user as ("": in our own name).
func (s *source) open(ctx context.Context, v claviger.VersionRef, as string,
	edeks []claviger.EDEK) ([]secret.Bytes, error) {
	deks := make([]secret.Bytes, 0, len(edeks))
	for chunk := range slices.Chunk(edeks, sourceChunk) {
		var opened []secret.Bytes
		err := s.call(ctx, func(ctx context.Context) (err error) {
			opened, err = s.Unwrap(ctx, unread(v), as, chunk)
			if err == nil && !s.remote && len(chunk[0].Material) == 0 {
				// An EDEK without material is opened without a call to a block encrypter. Read the version: an opened
				// version is counted and remembered.
				_, err = s.Version(ctx, v.Name())
			}
			return err
		})
		if err == nil {
			err = checkOpened(chunk, opened)
		}
		deks = append(deks, opened...)
		if err != nil {
			secret.WipeAll(deks...)
			return nil, err
		}
	}
	return deks, nil
}

// unread returns a version of which only the name is known.
func unread(v claviger.VersionRef) claviger.KeyVersion {
	return claviger.KeyVersion{Key: v.Key, Name: v.Name()}
}

// probeVersion finds out whether the source has a version. Another KMS opens a random EDEK, in our own name. That needs
// only the right that a re-encryption needs. From a block encrypter the version is read, without a use of its key; so a
// key that the token has lost does not count as a call without an answer. Kind VersionNotFound if the source has no
// such version.
func (s *source) probeVersion(ctx context.Context, v claviger.VersionRef) error {
	return s.call(ctx, func(ctx context.Context) error {
		if !s.remote {
			_, err := s.Version(ctx, v.Name())
			return err
		}
		random := make([]byte, 2*claviger.IVSize)
		_, _ = rand.Read(random) // never fails: crypto/rand
		edek := claviger.EDEK{Version: v.Name(), IV: random[:claviger.IVSize], Material: random[claviger.IVSize:]}
		deks, err := s.Unwrap(ctx, unread(v), "", []claviger.EDEK{edek})
		secret.WipeAll(deks...)
		return err
	})
}

// mayHave reports whether the source has a version of that name. If the source's count includes the version, but the
// source does not show names, it may not number its versions: it may be a Key Trustee KMS. So the version is probed;
// without an answer the count decides. The answer "no" is not cached, only its time: one node of the source may not
// have seen the roll yet.
func (s *source) mayHave(ctx context.Context, v claviger.VersionRef) bool {
	if _, has := s.has.Load(v.Name()); has {
		return true
	}
	err := s.probeVersion(ctx, v)
	switch {
	case err == nil:
		s.has.Store(v.Name(), true)
		s.absent.Delete(v.Name())
	case claviger.Is(err, claviger.VersionNotFound):
		s.recordAbsent(v)
		return false
	}
	return true
}

// recordAbsent records the time of the source's first answer that it has no version of that name.
func (s *source) recordAbsent(v claviger.VersionRef) { s.absent.LoadOrStore(v.Name(), time.Now()) }

// settled reports whether the source has said for long enough that it has no version of that name, although its count
// includes it.
func (s *source) settled(v claviger.VersionRef) bool {
	since, ok := s.absent.Load(v.Name())
	at, _ := since.(time.Time)
	return ok && time.Since(at) >= absentSettles
}

// lastError returns the last failure, or nil.
func (s *source) lastError() error {
	if f := s.lastFail.Load(); f != nil {
		return f.Err
	}
	return nil
}
