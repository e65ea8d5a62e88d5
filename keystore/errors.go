package keystore

import (
	"errors"
	"fmt"
)

// ErrPassword says that a check which needs the password failed. A keystore's
// check is keyed with the password, so that a wrong password and a damaged file
// look the same, unless ParseJCEKS could tell them apart (see DamagedError).
var ErrPassword = errors.New("wrong password or damaged file")

// FormatError says that bytes are not of the form that they should be: no
// keystore at all, cut short, damaged, or beyond a limit.
type FormatError struct {
	Format string // "JCEKS", "Java serialisation", ...
	Offset int    // of the byte at which reading stopped
	What   string // what was found and what was expected
	Is     Format // what a whole file is instead, where that is known
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s: byte %d: %s", e.Format, e.Offset, e.What)
}

// DamagedError says that a keystore's password is right and its content is not
// what was written: an entry opens, but the check over the whole file fails.
type DamagedError struct {
	Alias string // of the entry that the password opened
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("damaged file: the password is right (it opens entry %q), but the SHA-1 check over the whole "+
		"file fails", e.Alias)
}
