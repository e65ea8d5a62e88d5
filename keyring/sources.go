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

// homeTimeout is the time, since the last use, for which homes keeps the source that served a version. Versions do not
// move.
const homeTimeout = 24 * time.Hour

// sources are the providers for versions that the primary does not know.
type sources struct {
	list  []*source       // in the order in which they are tried
	homes *cache[*source] // the source that has served a version; nil if there is no source
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

// migration returns the source from which keys are migrated: the source that is named for re-encryption, or else the
// last of the provider list; nil if there is no source.
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

// remember reads from the counters which source served which version in earlier runs.
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

// forget drops the cached answers of the sources about a key.
func (a *sources) forget(key string) {
	for _, s := range a.list {
		s.keys.drop(key)
	}
}

// forgetAll drops the cached answers of the sources about all keys.
func (a *sources) forgetAll() {
	for _, s := range a.list {
		s.keys.dropAll(func(string) bool { return true })
	}
}

// find calls try with the source that served the version before, or with the sources in order until one does not say
// "not found". After a source that refuses or does not answer, no other source is tried (see the package comment).
// Kinds VersionNotFound, SourceUnreachable, SourceRefused, and a source's other errors about the EDEKs.
func (a *sources) find(version string, q lookup, try func(*source) error) (*source, error) {
	if s, ok := a.homes.get(version); ok {
		err := try(s)
		if err == nil {
			return s, nil
		}
		if !notFound(err) {
			return nil, s.finalError(err, q)
		}
		a.homes.drop(version) // the source was restored, or its key was deleted
	}
	for _, s := range a.list {
		err := try(s)
		if err == nil {
			return s, nil
		}
		if !notFound(err) {
			return nil, s.finalError(err, q)
		}
	}
	return nil, claviger.E("keyring.source", claviger.VersionNotFound, version, nil)
}

// SourceState is the state of a source, for consoles and metrics.
type SourceState struct {
	URI          string
	Reencryption bool
	// State is "closed" if calls go to the source, "open" if no calls go there after failures, "half-open" if one call
	// may try the source.
	State string
	// LastFailure is nil if each call got an answer so far.
	LastFailure *SourceFailure
	// LastCall is nil if there was none.
	LastCall *SourceCall
}

// Sources returns the states of the sources, in the order in which they are tried.
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

// CheckSource probes the source with that index, unless its breaker is open. The error is for an operator.
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
		why := "it is not called for a while after failures"
		if f := s.lastFail.Load(); f != nil {
			why = fmt.Sprintf("%s, the last at %s: %s", why, stamp(f.At), reason(f.Err))
		}
		return claviger.Errorf("keyring.CheckSource", claviger.SourceUnreachable, "",
			"the source %s (property %s) %s: %s", s.URI(), s.property, noAnswerText(s.lastError()), why)
	}
	return claviger.Errorf("keyring.CheckSource", claviger.SourceUnreachable, "", "the source %s (property %s) %s: %s",
		s.URI(), s.property, noAnswerText(err), reason(err))
}
