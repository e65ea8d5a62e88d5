package claviger

import "errors"

// Away marks an error of a part that runs on another machine, such as a database or an HSM. The part cannot be reached
// or is not ready, and may work again without a change of the configuration. A server that starts waits for such a
// part. Away(nil) is nil.
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
