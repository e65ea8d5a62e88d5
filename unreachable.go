package claviger

import "errors"

// Unreachable marks an error of a part that runs on another machine, such as a database or an HSM. The part cannot be
// reached or is not ready, and may work again without a change of the configuration. A server that starts waits for
// such a part. Unreachable(nil) is nil.
func Unreachable(err error) error {
	if err == nil {
		return nil
	}
	return &unreachableError{err}
}

// IsUnreachable reports whether Unreachable has marked the error.
func IsUnreachable(err error) bool {
	var u *unreachableError
	return errors.As(err, &u)
}

type unreachableError struct{ error }

func (u *unreachableError) Unwrap() error { return u.error }
