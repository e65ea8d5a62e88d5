package claviger

import (
	"errors"
	"io/fs"
	"testing"
)

// TestRefuse: a refusal has the formatted text, and keeps the cause.
func TestRefuse(t *testing.T) {
	err := Refuse("nothing was done: %w", fs.ErrNotExist)
	if err.Error() != "nothing was done: file does not exist" || !errors.Is(err, fs.ErrNotExist) ||
		!errors.As(err, new(*RefusedError)) {
		t.Error(err)
	}
}
