package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/sony/gobreaker/v2"

	"claviger"
	"claviger/metastore"
	"claviger/shares"
)

// homeTimeout is how long it is remembered, since the last use, which source served a version. Versions do not
// move.
const homeTimeout = 24 * time.Hour

// sources are the providers that are asked for versions which the primary does not know.
type sources struct {
	list  []*source       // in the order in which they are asked
	homes *cache[*source] // which source has served a version; nil where there is no source
	waits waits           // of requests, for sources
}

func newSources(cfg Config, log *slog.Logger) (*sources, error) {
	all := &sources{waits: waits{places: shares.New(int64(cfg.SourceWaiting), true)}}
	for _, s := range cfg.Sources {
		src, err := newSource(s, cfg, log)
		if err != nil {
			return nil, err
		}
		all.list = append(all.list, src)
	}
	if !all.none() {
		all.homes = newCache[*source](homeTimeout, true, cachedVersions)
	}
	return all, nil
}

// none reports whether there is no source.
func (a *sources) none() bool { return len(a.list) == 0 }

// configured reports whether a source of that URI is configured.
func (a *sources) configured(uri string) bool {
	return slices.ContainsFunc(a.list, func(s *source) bool { return s.URI() == uri })
}

// migration is the source that keys are migrated from: the one named for re-encryption, or else the last of the
// provider list; nil where there is no source.
func (a *sources) migration() *source {
	for _, s := range a.list {
		if s.reencryption {
			return s
		}
	}
	if a.none() {
		return nil
	}
	return a.list[len(a.list)-1]
}

// remember takes from the counters which source served which version in earlier runs.
func (a *sources) remember(uses []metastore.Use) {
	byURI := make(map[string]*source, len(a.list))
	for _, s := range a.list {
		byURI[s.URI()] = s
	}
	for _, use := range uses {
		if s := byURI[use.Source]; s != nil && use.Version != OtherVersions {
			a.homes.put(use.Version, s)
		}
	}
}

// forget drops what the sources said of a key.
func (a *sources) forget(key string) {
	for _, s := range a.list {
		s.keys.drop(key)
	}
}

// forgetAll drops what the sources said of all keys.
func (a *sources) forgetAll() {
	for _, s := range a.list {
		s.keys.dropAll(func(string) bool { return true })
	}
}

// find calls try with the source that served the version before, or with the sources in order until one does not
// say "not found". A source that refuses or does not answer ends the walk, see the package comment. Kinds
// VersionNotFound, SourceUnreachable, SourceRefused, and what else a source may say of the EDEKs.
func (a *sources) find(version string, q question, try func(*source) error) (*source, error) {
	if s, ok := a.homes.get(version); ok {
		err := try(s)
		if err == nil {
			return s, nil
		}
		if !notThere(err) {
			return nil, s.verdict(err, q)
		}
		a.homes.drop(version) // the source was rebuilt, or its key deleted
	}
	for _, s := range a.list {
		err := try(s)
		if err == nil {
			return s, nil
		}
		if !notThere(err) {
			return nil, s.verdict(err, q)
		}
	}
	return nil, claviger.E("keyring.source", claviger.VersionNotFound, version, nil)
}

// SourceState tells how a source does, for consoles and metrics.
type SourceState struct {
	URI          string
	Reencryption bool
	// State is "closed" where calls go to the source, "open" where no call does after failures, "half-open" where
	// one call may try the source.
	State string
	// LastFailure is nil where each call got an answer so far.
	LastFailure *SourceFailure
	// LastCall is nil where there was none.
	LastCall *SourceCall
}

// Sources tells how the sources do, in the order in which they are asked.
func (r *Ring) Sources() []SourceState {
	states := make([]SourceState, len(r.sources.list))
	for i, s := range r.sources.list {
		states[i] = SourceState{
			URI: s.URI(), Reencryption: s.reencryption,
			State: s.breaker.State().String(), LastFailure: s.lastFail.Load(), LastCall: s.lastCall.Load(),
		}
	}
	return states
}

// CheckSource probes the source at that place of the order, unless its breaker is open. The error is for an
// operator.
func (r *Ring) CheckSource(ctx context.Context, i int) error {
	s := r.sources.list[i]
	if s.health == nil {
		return nil
	}
	err := s.call(ctx, s.health.Check)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		why := "it is left alone for a while after failures"
		if f := s.lastFail.Load(); f != nil {
			why = fmt.Sprintf("%s, the last at %s: %s", why, stamp(f.At), reason(f.Err))
		}
		return claviger.Errorf("keyring.CheckSource", claviger.SourceUnreachable, "",
			"the source %s (property %s) %s: %s", s.URI(), s.property, silence(s.lastError()), why)
	}
	return claviger.Errorf("keyring.CheckSource", claviger.SourceUnreachable, "", "the source %s (property %s) %s: %s",
		s.URI(), s.property, silence(err), reason(err))
}
