package jceks

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"claviger"
	"claviger/keystore"
)

// contentError is the error of a keystore file that could be read from disk, and whose content is wrong. Its text is
// for the operator.
type contentError struct {
	path string
	err  error
}

func (e *contentError) Error() string {
	text := fmt.Sprintf("keystore %s: %v", e.path, e.err)
	switch {
	case errors.Is(e.err, keystore.ErrPassword):
		return text + "; the password is that of the environment variable " + passwordEnv +
			", else of the file that the property " + passwordFileProperty + " names, else \"none\""
	case e.other() != "":
		return text +
			"; name the keystore that Hadoop's KMS has written, or a file that is not there yet, to begin a new one. A " +
			"key that Java's keytool made is no key of Hadoop's in any keystore"
	case errors.As(e.err, new(*keystore.DamagedError)) || e.corrupt():
		return text + "; put back a backup of the file"
	}
	return text
}

func (e *contentError) Unwrap() error { return e.err }

// corrupt reports whether the file cannot be parsed: then Hadoop, too, takes the file for damaged, and not the
// password for wrong.
func (e *contentError) corrupt() bool {
	var format *keystore.FormatError
	return errors.As(e.err, &format)
}

// other names the kind of a keystore of another kind.
func (e *contentError) other() keystore.Format {
	var format *keystore.FormatError
	if !errors.As(e.err, &format) {
		return ""
	}
	return format.Is
}

func isCorrupt(err error) bool {
	var c *contentError
	return errors.As(err, &c) && c.corrupt()
}

// doubtError: a write failed after its result was in place, and the result could not be taken back.
type doubtError struct{ err error }

func (e *doubtError) Error() string { return e.err.Error() }

func (e *doubtError) Unwrap() error { return e.err }

// writeError adds to the error of a write what to do about it.
func (p *Provider) writeError(err error) error {
	cure := ""
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		cure = "; make room on the disk: a write needs twice the keystore's size"
	case errors.Is(err, fs.ErrPermission):
		cure = "; the server's user must be allowed to make files in the keystore's folder"
	case errors.Is(err, syscall.EROFS):
		cure = "; the file system is mounted read-only"
	}
	if errors.As(err, new(*doubtError)) {
		return fmt.Errorf("keystore %s was written, but may not outlast a power cut: %w; see the kernel's log for the "+
			"disk, and look at the key before doing it again", p.file.path, err)
	}
	return fmt.Errorf("keystore %s could not be written, and nothing was changed: %w%s", p.file.path, err, cure)
}

// internal makes an error of kind Internal. nil stays nil.
func internal(op, key string, err error) error {
	if err == nil {
		return nil
	}
	return claviger.E(op, claviger.Internal, key, err)
}

func explainOpen(err error, path string) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("keystore %s: %w; the server's user must be allowed to read it", path, err)
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("keystore %s: %w", path, err)
	}
	return err
}

// complain logs why the file cannot be read, once for the same reason. It needs the gate.
func (p *Provider) complain(err error) {
	if text := err.Error(); text != p.complaint {
		p.complaint = text
		p.log.Error("keystore cannot be read; what was read before is used, and nothing is written", "file",
			p.file.path,
			"reason", err)
	}
}
