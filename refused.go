package claviger

import "fmt"

// RefusedError is the error of work that was refused, or that needs a decision of a person. A command that ends with it
// has exit status 3.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }

func (e *RefusedError) Unwrap() error { return e.Err }

// Refuse returns a RefusedError whose text is made from a format.
func Refuse(format string, args ...any) error {
	return &RefusedError{fmt.Errorf(format, args...)}
}
