package hsm

import (
	"errors"

	"claviger"
	"claviger/provider"
)

// misfitError says that a token and a store do not fit together.
type misfitError struct{ error }

func (e misfitError) Unwrap() error { return e.error }

// IsMisfit tells an error which says that a token and a store do not fit together. An
// operator must decide what is done.
func IsMisfit(err error) bool {
	var m misfitError
	return errors.As(err, &m)
}

// staleError says that a store is a copy, or older than its token.
type staleError struct{ error }

func (e staleError) Unwrap() error { return e.error }

// stalef makes the error for the log, with an answer for callers as misfit does.
func stalef(format string, args ...any) staleError {
	return staleError{misfitOf("this server's metastore may be a copy, or an older state, of the one that has used "+
		"the HSM token, so no key is made or rolled; an operator must decide which of them goes on "+
		"(claviger metastore accept); the server's log and /readyz say why", format, args...)}
}

// IsStale tells an error which says that another copy of the store has used the token
// since this one did. It is a misfit.
func IsStale(err error) bool {
	var s staleError
	return errors.As(err, &s)
}

// hereError is a misfit of a store that the token was last used with at this very place: no
// other store uses the token, as far as can be seen. A server starts all the same, and serves
// the keys that are there.
type hereError struct{ error }

func (e hereError) Unwrap() error { return e.error }

func isHere(err error) bool {
	var h hereError
	return errors.As(err, &h)
}

// errMismatch marks a check value that differs.
var errMismatch error = unusable{errors.New("check value differs")}

// unusable is an error that is a provider.ErrUnusable too.
type unusable struct{ error }

func (u unusable) Unwrap() []error { return []error{u.error, provider.ErrUnusable} }

// unfit tells a version that is missing on the token, or another there.
func unfit(err error) bool {
	return errors.Is(err, provider.ErrUnusable) || claviger.Is(err, claviger.KeyNotFound)
}
