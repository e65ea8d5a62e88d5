package keyring

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sony/gobreaker/v2"

	"claviger"
	"claviger/provider"
)

var (
	errTimeout = errors.New("no answer within")
	// errCancelled marks a call that its caller gave up. It says nothing about the state of the source.
	errCancelled = errors.New("the request was cancelled")
)

// noAnswer reports whether the error means that the source cannot be reached. A refusal is an answer.
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

// isUnreachable is noAnswer, except for an answer that the source cannot serve one user now. Such a source is alive,
// and the calls of that user must not open the breaker for all others.
func isUnreachable(err error) bool { return noAnswer(err) && !errors.Is(err, provider.ErrAnswered) }

// notFound reports whether a source said that it has no such version.
func notFound(err error) bool {
	if errors.As(err, new(ruleError)) {
		return false
	}
	switch claviger.KindOf(err) {
	case claviger.VersionNotFound, claviger.KeyNotFound:
		return true
	}
	return false
}

// ruleError is a refusal by our own rules while sources are tried. No other source is tried then. The source has not
// answered.
type ruleError struct{ error }

func (r ruleError) Unwrap() error { return r.error }

// lookup describes a request to a source, for messages.
type lookup struct {
	what string // "key version 'k@0'"
	name string // Error.Key
	as   string // the user on whose behalf, "" for ourselves
}

// aboutVersion is the lookup of a version, on behalf of the user as.
func aboutVersion(version, as string) lookup {
	return lookup{what: "key version '" + version + "'", name: version, as: as}
}

// aboutMetadata is the lookup of a key's metadata; name is Error.Key.
func aboutMetadata(key, name string) lookup {
	return lookup{what: "the metadata of key '" + key + "'", name: name}
}

// finalError returns the error after which no other source is tried: a refusal by our rules unchanged, an error of the
// source with an explanation.
func (s *source) finalError(err error, q lookup) error {
	var own ruleError
	if errors.As(err, &own) {
		return own.error
	}
	return s.explain(err, q)
}

// explain returns a source's error with the text that the caller and the operator need.
func (s *source) explain(err error, q lookup) error {
	const op = "keyring.source"
	switch kind := claviger.KindOf(err); {
	case errors.Is(err, errCancelled):
		return claviger.E(op, claviger.Unavailable, q.name, err)
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		why := "it is not called for a while after failures"
		if f := s.lastFail.Load(); f != nil {
			why = fmt.Sprintf("%s, the last at %s: %s", why, stamp(f.At), reason(f.Err))
		}
		return s.unreachable(q, s.lastError(), why)
	case errors.Is(err, provider.ErrAnswered):
		return claviger.Errorf(op, claviger.SourceUnreachable, q.name, "this KMS does not have %s, and the source %s, "+
			"which may have it, cannot serve this now: %s", q.what, s.URI(), reason(err))
	case noAnswer(err):
		return s.unreachable(q, err, reason(err))
	case kind == claviger.Denied || kind == claviger.KeyDenied:
		user := "this server's own user"
		if q.as != "" {
			user = "user '" + q.as + "'"
		}
		// The error of the source's provider names the property at the source that would allow it.
		return claviger.Errorf(op, claviger.SourceRefused, q.name, "the source %s refused %s the request for %s: %s",
			s.URI(), user, q.what, reason(err))
	case kind == claviger.Internal:
		// Its text is for the log only, see claviger.Internal.
		s.log.Error("a source of key versions failed", "source", s.URI(), "request", q.what, "error", err)
		return claviger.E(op, claviger.SourceUnreachable, q.name, &brokenSource{uri: s.URI(), what: q.what, err: err})
	default: // BadIV, WrongKey and others: the request is wrong, not the source
		return err
	}
}

// brokenSource is an error of a source whose own text is not for the caller.
type brokenSource struct {
	uri, what string
	err       error
}

func (b *brokenSource) Error() string {
	return fmt.Sprintf("this KMS does not have %s, and the source %s, which may have it, failed; see the logs of both "+
		"servers", b.what, b.uri)
}

func (b *brokenSource) Unwrap() error { return b.err }

func (s *source) unreachable(q lookup, err error, why string) error {
	cure := fmt.Sprintf("check that the source runs, that this host can reach it, and the property %s", s.property)
	if login := (*provider.LoginError)(nil); errors.As(err, &login) {
		cure = "correct this server's login: claviger.client.kerberos.*"
	}
	return claviger.Errorf("keyring.source", claviger.SourceUnreachable, q.name,
		"this KMS does not have %s, and the source %s, which may have it, %s: %s; %s",
		q.what, s.URI(), noAnswerText(err), why, cure)
}

// noAnswerText returns the words for a source that gave no answer. If only our own login fails, the source may answer
// other clients.
func noAnswerText(err error) string {
	if login := (*provider.LoginError)(nil); errors.As(err, &login) {
		return "does not let this server log in"
	}
	return "does not answer"
}

// reason returns the first line of a source's error.
func reason(err error) string {
	line, _, _ := strings.Cut(claviger.Reason(err), "\n")
	return line
}
