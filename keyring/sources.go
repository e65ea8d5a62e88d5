package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"claviger"
	"claviger/authz"
	"claviger/eek"
	"claviger/provider"
	"claviger/secret"
)

const (
	// homeTimeout is how long it is remembered, since it was last used, which
	// source served a version. Versions don't move.
	homeTimeout = 24 * time.Hour
	// foreignTimeout is how long a source's metadata of a key is believed: as long as
	// Hadoop believes in a current version. So long a key that was made anew at the
	// source under other rules may be guarded by the old ones.
	foreignTimeout = 30 * time.Second
	// sourceChunk is how many EDEKs go into one call to a source, which has
	// SourceTimeout for them.
	sourceChunk = 250
)

// source is a Source with what keeps a dead one from being waited for.
type source struct {
	provider.Provider
	blocks   provider.BlockEncrypter // one of the two is not nil
	service  provider.EDEKService
	property string // which names it, for messages
	timeout  time.Duration
	log      *slog.Logger
	breaker  *gobreaker.CircuitBreaker[struct{}]
	failures uint32          // calls on end without an answer that make the breaker open
	health   provider.Health // nil: it cannot be asked for a sign of life
	blame    blame
	asking   asking
	keys     *cache[*claviger.Metadata] // what it said of its keys
	lastFail atomic.Pointer[SourceFailure]
	lastCall atomic.Pointer[SourceCall]
}

// SourceFailure is a call to a source that got no answer.
type SourceFailure struct {
	At  time.Time
	Err error
}

// SourceCall is a call to a source, whatever became of it.
type SourceCall struct {
	At   time.Time // when it ended
	Took time.Duration
	Err  error // nil: the source answered
}

// SourceState tells how a source does, for consoles and metrics.
type SourceState struct {
	URI          string
	Reencryption bool
	// State is "closed" where calls go to the source, "open" where it is left
	// alone after failures, "half-open" where one call may try it.
	State string
	// LastFailure is nil where each call got an answer so far.
	LastFailure *SourceFailure
	// LastCall is nil where there was none.
	LastCall *SourceCall
}

func newSource(s Source, cfg Config, log *slog.Logger) (*source, error) {
	blocks, service, err := abilities(s.Provider)
	if err != nil {
		return nil, err
	}
	src := &source{Provider: s.Provider, blocks: blocks, service: service, timeout: cfg.SourceTimeout,
		failures: cfg.SourceFailures, log: log, property: "hadoop.kms.key.provider.uri"}
	src.health, _ = s.Provider.(provider.Health)
	src.keys = newCache[*claviger.Metadata](foreignTimeout, false, cachedKeys)
	if s.Reencryption {
		src.property = "hadoop.kms.key.provider.reencryption.source.uri"
	}
	src.breaker = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        s.URI(),
		MaxRequests: 1,
		Timeout:     cfg.SourcePause,
		ReadyToTrip: func(n gobreaker.Counts) bool {
			return n.ConsecutiveFailures >= cfg.SourceFailures && (src.health == nil || src.blame.shared())
		},
		IsSuccessful: func(err error) bool { return err == nil || !silent(err) },
		IsExcluded:   func(err error) bool { return errors.Is(err, errLeft) },
		OnStateChange: func(uri string, from, to gobreaker.State) {
			log.Warn("circuit breaker of a source of key versions", "source", uri, "from", from.String(), "to", to.String())
		},
	})
	return src, nil
}

// Sources tells how the sources do, in the order in which they are asked.
func (r *Ring) Sources() []SourceState {
	states := make([]SourceState, len(r.sources))
	for i, s := range r.sources {
		states[i] = SourceState{
			URI: s.URI(), Reencryption: r.cfg.Sources[i].Reencryption,
			State: s.breaker.State().String(), LastFailure: s.lastFail.Load(), LastCall: s.lastCall.Load(),
		}
	}
	return states
}

// CheckSource asks the source of that place for a sign of life, unless it is left alone
// after failures. An error is for an operator.
func (r *Ring) CheckSource(ctx context.Context, i int) error {
	s := r.sources[i]
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
			why = fmt.Sprintf("%s, the last at %s: %s", why, stamp(f.At), said(f.Err))
		}
		return claviger.Errorf("keyring.CheckSource", claviger.SourceUnreachable, "",
			"the source %s (property %s) %s: %s", s.URI(), s.property, silence(s.lastError()), why)
	}
	return claviger.Errorf("keyring.CheckSource", claviger.SourceUnreachable, "", "the source %s (property %s) %s: %s",
		s.URI(), s.property, silence(err), said(err))
}

var (
	errTimeout = errors.New("no answer within")
	// errLeft marks a call that its caller gave up, which tells nothing of the
	// source.
	errLeft = errors.New("the caller has gone")
)

// noAnswer reports whether the error means that the source is not there,
// rather than that it said no.
func noAnswer(err error) bool {
	if errors.Is(err, errTimeout) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch claviger.KindOf(err) {
	case claviger.Unavailable, claviger.SourceUnreachable, claviger.Closed:
		return true
	}
	return false
}

// silent is noAnswer of a call that reached nothing. A source that answers that it cannot
// serve one user now is alive: that user must not have it left alone for all others.
func silent(err error) bool { return noAnswer(err) && !errors.Is(err, provider.ErrAnswered) }

// unwrap has the source open EDEKs that are all of one version.
func (s *source) unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	deks := make([]secret.Bytes, 0, len(edeks))
	for len(edeks) > 0 {
		chunk := edeks[:min(len(edeks), sourceChunk)]
		edeks = edeks[len(chunk):]
		var opened []secret.Bytes
		err := s.call(ctx, func(ctx context.Context) (err error) {
			if s.service != nil {
				opened, err = s.service.Unwrap(ctx, key, as, chunk)
				return err
			}
			opened, err = eek.Unwrap(ctx, s.blocks, chunk)
			if err == nil && len(chunk[0].Material) == 0 {
				// Nothing to encrypt may mean that nobody was asked; and what is served
				// counts, and is remembered.
				_, err = s.Version(ctx, chunk[0].Version)
			}
			return err
		})
		if err == nil {
			err = fits(chunk, opened)
		}
		deks = append(deks, opened...)
		if err != nil {
			wipeAll(deks)
			return nil, err
		}
	}
	return deks, nil
}

// fits checks that a source's answer is one DEK per EDEK, of its length.
func fits(edeks []claviger.EDEK, deks []secret.Bytes) error {
	if len(deks) != len(edeks) {
		return claviger.Errorf("keyring.unwrap", claviger.Internal, edeks[0].Version, "%d DEKs for %d EDEKs", len(deks), len(edeks))
	}
	for i := range deks {
		if len(deks[i]) != len(edeks[i].Material) {
			return claviger.Errorf("keyring.unwrap", claviger.Internal, edeks[i].Version, "a DEK of %d bytes for an EDEK of %d", len(deks[i]), len(edeks[i].Material))
		}
	}
	return nil
}

// mayBeForeign reports whether err, from looking for the version at the
// primary, leaves it possible that a source has it. That no source has it is not
// remembered: one may have rolled to it a moment later, and "not found" is a client's
// final answer. What a user may ask for in vain is bounded as all waiting is, see away.
func (r *Ring) mayBeForeign(err error, version string) bool {
	if len(r.sources) == 0 || !claviger.Is(err, claviger.VersionNotFound) || r.cfg.Ours[version] {
		return false
	}
	_, ok := claviger.KeyOfVersion(version)
	return ok
}

// decryptForeign opens an EDEK of a version that only a source can know. The
// rules of the key are asked before the source is.
func (r *Ring) decryptForeign(ctx context.Context, q *request, named *string, e claviger.EDEK) (secret.Bytes, error) {
	version := e.Version
	key, _ := claviger.KeyOfVersion(version)
	if r.cfg.KeyAuthorization {
		if err := r.belongs(ctx, version, key, named); err != nil {
			return nil, err
		}
		if err := q.needOurs(ctx, key, authz.KeyDecryptEEK); err != nil {
			return nil, err
		}
	}
	guard := func(m *claviger.Metadata) error { return q.needKey(ctx, m, authz.KeyDecryptEEK) }
	var deks []secret.Bytes
	err := r.away(ctx, "keyring.Decrypt", e.Version, func() (err error) {
		deks, err = r.unwrapAtSource(ctx, q, useDecrypt, key, q.caller.Short, guard, []claviger.EDEK{e})
		return err
	})
	if err != nil {
		wipeAll(deks)
		return nil, err
	}
	return deks[0], nil
}

// needOurs asks the rules of the key of that name here, if there is one. A source's
// key that has its name is guarded by them beside its own.
func (q *request) needOurs(ctx context.Context, key string, right authz.KeyOp) error {
	ours, err := q.ring.metadataHere(ctx, key)
	if err != nil {
		return err
	}
	return q.needKey(ctx, ours, right)
}

// metadataAt returns what the source says of a key, asked for by that very
// spelling: what a source answers to counts, not what it lists. It is believed for
// foreignTimeout. Kind KeyNotFound, which is not remembered.
func (r *Ring) metadataAt(ctx context.Context, s *source, key string) (*claviger.Metadata, error) {
	return s.keys.fetch(ctx, key, func(ctx context.Context, key string) (m *claviger.Metadata, err error) {
		err = s.call(ctx, func(ctx context.Context) (err error) {
			m, err = oneMetadata(ctx, s, key)
			return err
		})
		return m, err
	})
}

// ruled is a refusal by rules of ours, in a walk over the sources: it ends the
// walk, and is not the source's.
type ruled struct{ error }

func (r ruled) Unwrap() error { return r.error }

// guardedAt asks a source for its metadata of a key and what guard says to it. A
// source without the key has no version of it, whatever else it would answer.
func (r *Ring) guardedAt(ctx context.Context, s *source, key string,
	guard func(*claviger.Metadata) error) (*claviger.Metadata, error) {
	m, err := r.metadataAt(ctx, s, key)
	if err != nil {
		return nil, err
	}
	if err := guard(m); err != nil {
		return nil, ruled{err}
	}
	return m, nil
}

// unwrapAtSource finds the source that has the EDEKs' version, which is one, and
// has it open them on behalf of as ("" = in our own name), if guard does not object
// to its key.
func (r *Ring) unwrapAtSource(ctx context.Context, q *request, use, key, as string, guard func(*claviger.Metadata) error, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	version := edeks[0].Version
	ask := question{what: "key version '" + version + "'", name: version, as: as}
	ours, err := r.mayBeOurs(ctx, version)
	if err != nil {
		return nil, err
	}
	notThese, err := r.madeThere(ctx, version) // where an operator has said that EDEKs of it are a source's
	if err != nil {
		return nil, err
	}
	var deks []secret.Bytes
	s, err := r.findSource(version, ask, func(s *source) error {
		if r.cfg.Theirs[version] && s.URI() == notThese {
			return claviger.E("keyring.source", claviger.VersionNotFound, version, nil)
		}
		m, err := r.guardedAt(ctx, s, key, guard)
		if err != nil {
			return err
		}
		twice, err := r.mayBeAnothers(ctx, s, use, version, m, ours)
		switch {
		case err != nil:
			return ruled{err}
		case twice != nil:
			err = r.needNotThere(ctx, s, key, version, twice)
		default:
			deks, err = s.unwrap(ctx, key, as, edeks)
		}
		return r.needNotCounted(ctx, s, key, version, err)
	})
	if err != nil {
		return nil, err
	}
	q.did.askedOf(s.URI())
	r.homes.put(version, s)
	r.usage.add(s.URI(), version, use, len(edeks))
	return deks, nil
}

// needNotCounted is given what came of asking a source for a version of a key. That it has
// none of that name is no final answer where the source counts so many: one of its nodes may
// not have seen the roll yet, and another one knows the version. Kind SourceUnreachable then,
// until it is settled; else err.
func (r *Ring) needNotCounted(ctx context.Context, s *source, key, version string, err error) error {
	asked := [2]string{s.URI(), version}
	if err == nil {
		r.conflicts.absent.Delete(asked)
		return nil
	}
	number, ok := claviger.VersionNumber(version)
	if !ok || !notThere(err) {
		return err
	}
	list, readErr := r.origins.of(ctx, key)
	if readErr != nil {
		return ruled{readErr}
	}
	if slices.ContainsFunc(list, func(o Origin) bool { return o.Source == s.URI() && o.TakenOver && !o.Numbered }) {
		return err // it names none by a number
	}
	s.keys.drop(key) // what it said a while ago may be of before a roll, or a deletion
	m, again := r.metadataAt(ctx, s, key)
	switch {
	case again != nil:
		return again
	case m.Versions <= number || r.settled(s, version):
		return err
	}
	r.conflicts.absent.LoadOrStore(asked, time.Now())
	err = claviger.Errorf("keyring.source", claviger.SourceUnreachable, version, "key version '%s' is not held here, "+
		"and the source %s counts %d versions of the key, and says that it has none of that name: another of its nodes "+
		"may have it. It is asked again, and believed after %v; if all its nodes say so, it has lost the version: restore "+
		"it there from a backup",
		version, s.URI(), m.Versions, absentSettles)
	return ruled{claviger.Answer(err, fmt.Sprintf("the KMS that may hold key version '%s' counts a version of that "+
		"name, and says now that it has none; try again", version))}
}

// versionAtSource tells of a version that the primary does not know: without
// material, whatever the source would show.
func (r *Ring) versionAtSource(ctx context.Context, q *request, version string) (*claviger.KeyVersion, error) {
	notFound := claviger.E("keyring.Version", claviger.VersionNotFound, version, nil)
	if !r.mayBeForeign(notFound, version) {
		return nil, nil
	}
	key, _ := claviger.KeyOfVersion(version)
	if r.cfg.KeyAuthorization {
		if err := q.needOurs(ctx, key, authz.KeyRead); err != nil {
			return nil, err
		}
	}
	var v claviger.KeyVersion
	var s *source
	ask := question{what: "key version '" + version + "'", name: version}
	err := r.away(ctx, "keyring.Version", version, func() (err error) {
		s, err = r.findSource(version, ask, func(s *source) error {
			guard := func(m *claviger.Metadata) error { return q.needKey(ctx, m, authz.KeyRead) }
			if _, err := r.guardedAt(ctx, s, key, guard); err != nil {
				return err
			}
			err := s.call(ctx, func(ctx context.Context) (err error) {
				v, err = s.Version(ctx, version)
				return err
			})
			return r.needNotCounted(ctx, s, key, version, err)
		})
		return err
	})
	if claviger.Is(err, claviger.VersionNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v.Material = nil // not wiped: the source may hold on to it
	q.did.askedOf(s.URI())
	q.ok(ctx, v.Key, "")
	return &v, nil
}

// findSource calls try with the source that served the version before, or with
// the sources in order until one does not say "not found". One that refuses or
// does not answer ends the walk, see the package comment. Kinds VersionNotFound,
// SourceUnreachable, SourceRefused, and what else a source may say of the EDEKs.
func (r *Ring) findSource(version string, ask question, try func(*source) error) (*source, error) {
	if s, ok := r.homes.get(version); ok {
		err := try(s)
		if err == nil {
			return s, nil
		}
		if !notThere(err) {
			return nil, s.verdict(err, ask)
		}
		r.homes.drop(version) // the source was rebuilt, or its key deleted
	}
	for _, s := range r.sources {
		err := try(s)
		if err == nil {
			return s, nil
		}
		if !notThere(err) {
			return nil, s.verdict(err, ask)
		}
	}
	return nil, claviger.E("keyring.source", claviger.VersionNotFound, version, nil)
}

// verdict is what ends a walk: a refusal by our rules as it is, what a source said
// explained.
func (s *source) verdict(err error, ask question) error {
	var own ruled
	if errors.As(err, &own) {
		return own.error
	}
	return s.explain(err, ask)
}

// notThere reports whether a source said that it has no such version.
func notThere(err error) bool {
	if errors.As(err, new(ruled)) {
		return false
	}
	switch claviger.KindOf(err) {
	case claviger.VersionNotFound, claviger.KeyNotFound:
		return true
	}
	return false
}

// question is what a source was asked, for messages.
type question struct {
	what string // "key version 'k@0'"
	name string // Error.Key
	as   string // the user on whose behalf, "" for ourselves
}

// explain makes of a source's error what the caller and the operator need.
func (s *source) explain(err error, ask question) error {
	const op = "keyring.source"
	switch kind := claviger.KindOf(err); {
	case errors.Is(err, errLeft):
		return claviger.E(op, claviger.Unavailable, ask.name, err)
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		why := "it is left alone for a while after failures"
		if f := s.lastFail.Load(); f != nil {
			why = fmt.Sprintf("%s, the last at %s: %s", why, f.At.UTC().Format(time.RFC3339), said(f.Err))
		}
		return s.unreachable(ask, s.lastError(), why)
	case errors.Is(err, provider.ErrAnswered):
		return claviger.Errorf(op, claviger.SourceUnreachable, ask.name, "%s is not held here, and the source %s, which may hold it, cannot serve this now: %s", ask.what, s.URI(), said(err))
	case noAnswer(err):
		return s.unreachable(ask, err, said(err))
	case kind == claviger.Denied || kind == claviger.KeyDenied:
		who := "this KMS, which asked in its own name,"
		if ask.as != "" {
			who = "user '" + ask.as + "'"
		}
		// What the source's provider says names the property there that would allow it.
		return claviger.Errorf(op, claviger.SourceRefused, ask.name, "the source %s refused %s %s: %s",
			s.URI(), who, ask.what, said(err))
	case kind == claviger.Internal:
		// Its text is for the log only, see claviger.Internal.
		s.log.Error("a source of key versions failed", "source", s.URI(), "asked for", ask.what, "error", err)
		return claviger.E(op, claviger.SourceUnreachable, ask.name, &brokenSource{uri: s.URI(), what: ask.what, err: err})
	default: // BadIV, WrongKey and the like: of what was asked, not of the source
		return err
	}
}

// brokenSource is an error of a source whose own words are not for the caller.
type brokenSource struct {
	uri, what string
	err       error
}

func (b *brokenSource) Error() string {
	return fmt.Sprintf("%s is not held here, and the source %s, which may hold it, failed at it; see the logs of both", b.what, b.uri)
}

func (b *brokenSource) Unwrap() error { return b.err }

func (s *source) unreachable(ask question, err error, why string) error {
	cure := fmt.Sprintf("check that it runs, that this host reaches it, and the property %s", s.property)
	if login := (*provider.LoginError)(nil); errors.As(err, &login) {
		cure = "the cure is at this server's login: claviger.client.kerberos.*"
	}
	return claviger.Errorf("keyring.source", claviger.SourceUnreachable, ask.name,
		"%s is not held here, and the source %s, which may hold it, %s: %s; %s",
		ask.what, s.URI(), silence(err), why, cure)
}

// lastError is the last failure; nil where there was none.
func (s *source) lastError() error {
	if f := s.lastFail.Load(); f != nil {
		return f.Err
	}
	return nil
}

// silence words an error of a source that gave no answer: where our own login fails the
// source may answer all others.
func silence(err error) string {
	if login := (*provider.LoginError)(nil); errors.As(err, &login) {
		return "does not let this server log in"
	}
	return "does not answer"
}

// said is the first line of what went wrong at a source.
func said(err error) string {
	line, _, _ := strings.Cut(claviger.Reason(err), "\n")
	return line
}
