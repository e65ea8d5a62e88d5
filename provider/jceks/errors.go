package jceks

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"claviger"
	"claviger/keystore"
)

// contentError is the error of a keystore file that was read, but has wrong content. Its text is for the operator.
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
	case e.otherFormat() != "":
		return text + "; name the keystore that Hadoop's KMS has written, or a file that does not exist yet to begin " +
			"a new one. Hadoop cannot use a key that Java's keytool made, in any keystore"
	case errors.As(e.err, new(*keystore.DamagedError)) || e.corrupt():
		return text + "; put back a backup of the file"
	}
	return text
}

func (e *contentError) Unwrap() error { return e.err }

// corrupt reports whether the file cannot be parsed. Hadoop too reports then that the file is damaged, and not that the
// password is wrong.
func (e *contentError) corrupt() bool {
	var format *keystore.FormatError
	return errors.As(e.err, &format)
}

// otherFormat returns the format of a keystore that is not JCEKS, and "" otherwise.
func (e *contentError) otherFormat() keystore.Format {
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

// notRestoredError is the error of a write that failed after the new file was in place, if the old file could not be
// restored.
type notRestoredError struct{ err error }

func (e *notRestoredError) Error() string { return e.err.Error() }

func (e *notRestoredError) Unwrap() error { return e.err }

// writeError adds the cure to the error of a write.
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
	if errors.As(err, new(*notRestoredError)) {
		return fmt.Errorf("keystore %s was written, but the change may be lost in a power cut: %w; see the kernel's "+
			"log for errors of the disk, and check the key before you repeat the change", p.file.path, err)
	}
	return fmt.Errorf("keystore %s could not be written, and nothing was changed: %w%s", p.file.path, err, cure)
}

// internal makes an error of kind Internal. It returns nil for nil.
func internal(op, key string, err error) error {
	if err == nil {
		return nil
	}
	return claviger.E(op, claviger.Internal, key, err)
}

// explainOpen adds the path to an error of Open, and says what to do.
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

// logReadError logs why the file cannot be read, unless it logged the same reason before. The caller must hold
// stateLock.
func (p *Provider) logReadError(err error) {
	if text := err.Error(); text != p.lastReadError {
		p.lastReadError = text
		p.log.Error("keystore cannot be read; its last state is used, and nothing is written", "file", p.file.path,
			"reason", err)
	}
}
