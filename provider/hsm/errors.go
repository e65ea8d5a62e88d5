package hsm

import (
	"errors"

	"claviger"
	"claviger/provider"
)

// misfitError says that a token and a store do not fit together.
type misfitError struct{ error }

func (e misfitError) Unwrap() error { return e.error }

// IsMisfit reports whether err says that a token and a store do not fit together. Then an operator must decide.
func IsMisfit(err error) bool {
	var m misfitError
	return errors.As(err, &m)
}

// staleError says that a store is a copy, or older than its token.
type staleError struct{ error }

func (e staleError) Unwrap() error { return e.error }

// stalef makes a staleError for the log. Callers get a general answer, as with misfit.
func stalef(format string, args ...any) staleError {
	return staleError{misfitOf("this server's metastore may be a copy, or an older state, of the metastore that has "+
		"used the HSM token, so no key is made or rolled; an operator must decide which metastore stays in use "+
		"(claviger metastore accept); the server's log and /readyz say why", format, args...)}
}

// IsStale reports whether err says that another copy of the store has used the token since this copy used it. Such an
// error is a misfit too.
func IsStale(err error) bool {
	var s staleError
	return errors.As(err, &s)
}

// samePlaceError is a misfit of a store at the place where the token was last used. As far as claviger can see, no
// other store uses the token. So a server starts, and serves the keys that are there.
type samePlaceError struct{ error }

func (e samePlaceError) Unwrap() error { return e.error }

func isSamePlace(err error) bool {
	var h samePlaceError
	return errors.As(err, &h)
}

// errMismatch says that a check value differs.
var errMismatch error = unusable{errors.New("check value differs")}

// unusable is an error that wraps provider.ErrUnusable too.
type unusable struct{ error }

func (u unusable) Unwrap() []error { return []error{u.error, provider.ErrUnusable} }

// isUnusable reports whether err says that the token lacks a version, or holds another key of its name.
func isUnusable(err error) bool {
	return errors.Is(err, provider.ErrUnusable) || claviger.Is(err, claviger.KeyNotFound)
}
