package claviger

import "errors"

// Away marks an error of a part that another machine runs, as a database or an HSM: the part is not reached or not
// ready, and may come back without a change of the configuration. A start waits for such a part. nil stays nil.
func Away(err error) error {
	if err == nil {
		return nil
	}
	return &awayError{err}
}

// IsAway reports whether Away has marked the error.
func IsAway(err error) bool {
	var a *awayError
	return errors.As(err, &a)
}

type awayError struct{ error }

func (a *awayError) Unwrap() error { return a.error }
