package keystore

import (
	"errors"
	"fmt"
)

// ErrPassword means that a check with the password failed. The check of a keystore depends on the password, so the
// reason may be a wrong password or a damaged file. ParseJCEKS can distinguish some damaged files (see DamagedError).
var ErrPassword = errors.New("wrong password or damaged file")

// FormatError means that bytes do not have the expected form: they are not a keystore, or the file is truncated,
// damaged, or above a limit.
type FormatError struct {
	Format string // "JCEKS", "Java serialisation", ...
	Offset int    // offset of the byte at which reading stopped
	What   string // what was found and what was expected
	Is     Format // the real format of the file, if it is known
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s: byte %d: %s", e.Format, e.Offset, e.What)
}

// DamagedError means that the password of a keystore is right and its content is damaged: an entry opens, but the
// check over the whole file fails.
type DamagedError struct {
	Alias string // alias of the entry that the password opened
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("damaged file: the password is right (it opens entry %q), but the SHA-1 check over the whole "+
		"file fails", e.Alias)
}
