package claviger

import "errors"

// Away marks an error of something that another machine runs, a database or an HSM, and
// that may be there again without a change of the configuration: it is not reached, or
// not ready. A start waits for such a thing. nil stays nil.
func Away(err error) error {
	if err == nil {
		return nil
	}
	return &awayError{err}
}

// IsAway tells an error that Away has marked.
func IsAway(err error) bool {
	var a *awayError
	return errors.As(err, &a)
}

type awayError struct{ error }

func (a *awayError) Unwrap() error { return a.error }
