// Package durable writes files that must survive a power cut.
//
// A file survives if its content was synced, and if the folder that has its name was synced. Every function here syncs
// both before it returns nil. After an error the file has the old or the new content, and is complete in both cases.
// Which of the two it has is certain only after the next success.
//
// All access to the disk goes through the interface FS, so that the suite in durable/durabletest can make each step
// fail or cut the power before it. The suite also demands that a test fails for each sync that is left out.
//
// google/renameio and natefinch/atomic write complete files too. Neither syncs the folder (natefinch/atomic does not
// sync the file either), neither can create a file without overwriting one, and neither has an interface for injected
// faults.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// AlreadyError says that a file existed before Create.
type AlreadyError struct{ Path string }

func (e *AlreadyError) Error() string {
	return e.Path + " already exists and was not overwritten; choose another name, or move it away"
}

// Is reports whether target is fs.ErrExist.
func (e *AlreadyError) Is(target error) bool { return target == fs.ErrExist }

// Create writes a file that does not exist yet, completely or not at all. If the file exists, the error is an
// *AlreadyError, and the file is not changed.
func Create(path string, data []byte, mode fs.FileMode) error {
	return CreateFrom(path, mode, write(data))
}

// CreateFrom is Create with a function that writes the content.
func CreateFrom(path string, mode fs.FileMode, content func(io.Writer) error) error {
	if _, err := os.Lstat(path); err == nil { // saves the work; p.Create checks again
		return &AlreadyError{path}
	}
	p, err := Prepare(path, mode, content)
	if err != nil {
		return err
	}
	if err := p.Create(); err != nil {
		_ = p.Discard() // the first error counts
		return err
	}
	return nil
}

// Replace writes a file completely or not at all, whether it exists or not. If root replaces the file of another user,
// the new file belongs to that user too.
func Replace(path string, data []byte, mode fs.FileMode) error {
	p, err := Prepare(path, mode, write(data), ownerOf(path))
	if err != nil {
		return err
	}
	if err := p.Replace(); err != nil {
		_ = p.Discard() // the first error counts
		return err
	}
	return nil
}

func write(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// ownerOf returns a function that gives a new file the owner of the file path, which it will replace. Only root can do
// that, and only root needs it: after a command of root, the server's user must still own the file.
func ownerOf(path string) func(File) error {
	return func(f File) error {
		if os.Geteuid() != 0 {
			return nil
		}
		st, err := os.Lstat(path)
		if err != nil {
			return nil //nolint:nilerr // there is no file yet, so the new file belongs to root
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok || sys.Uid == 0 && sys.Gid == 0 {
			return nil
		}
		return f.Chown(int(sys.Uid), int(sys.Gid))
	}
}

// Pending is a complete file on the disk with a temporary name. Create or Replace gives it its final name.
type Pending struct{ path, temp string }

// Prepare writes a file beside path. finish is called before the file is synced.
func Prepare(path string, mode fs.FileMode, content func(io.Writer) error, finish ...func(File) error) (*Pending,
	error) {
	p := &Pending{path: path}
	f, err := p.open(mode)
	if err != nil {
		return nil, named("written", path, err)
	}
	if err = content(f); err == nil {
		for _, step := range finish {
			err = errors.Join(err, step(f))
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = p.Discard() // the first error counts
		return nil, named("written", path, err)
	}
	return p, nil
}

// open makes the temporary file. Its name is random, so it differs from the names of other writers, and from the names
// that killed writers have left.
func (p *Pending) open(mode fs.FileMode) (File, error) {
	temp := filepath.Join(filepath.Dir(p.path), "."+filepath.Base(p.path)+".tmp-"+rand.Text()[:12])
	f, err := system(temp).OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err == nil {
		p.temp = temp
	}
	return f, err
}

// Create gives the file its name and syncs the folder. If the name is taken, the error is an
// *AlreadyError.
func (p *Pending) Create() error {
	err := system(p.path).Link(p.temp, p.path)
	switch {
	case errors.Is(err, fs.ErrExist):
		return &AlreadyError{p.path}
	case errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EPERM):
		// EPERM is what link(2) returns on a file system without hard links.
		return p.claim()
	case err != nil:
		return named("made", p.path, err)
	}
	err = p.Discard()
	if err == nil {
		err = SyncFolder(filepath.Dir(p.path))
	}
	if err != nil {
		_ = system(p.path).Remove(p.path) // otherwise a retry would fail with AlreadyError
		return named("made", p.path, err)
	}
	return nil
}

// Publish gives the file temp, which another library has written, the name path, and syncs both. If
// the name is taken, the error is an *AlreadyError, and temp stays.
func Publish(temp, path string) error {
	if err := SyncFile(temp); err != nil {
		return named("made", path, err)
	}
	return (&Pending{path: path, temp: temp}).Create()
}

// claim is Create for file systems without hard links: it makes an empty file with the name, and then replaces that
// file.
func (p *Pending) claim() error {
	f, err := system(p.path).OpenFile(p.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &AlreadyError{p.path}
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return named("made", p.path, err)
	}
	return p.Replace()
}

// Replace gives the file its name, also if another file has that name, and syncs the folder.
func (p *Pending) Replace() error {
	if err := system(p.path).Rename(p.temp, p.path); err != nil {
		return named("replaced", p.path, err)
	}
	p.temp = ""
	if err := SyncFolder(filepath.Dir(p.path)); err != nil {
		return named("replaced", p.path, err)
	}
	return nil
}

// Discard removes the temporary file if it still exists.
func (p *Pending) Discard() error {
	if p.temp == "" {
		return nil
	}
	if err := system(p.temp).Remove(p.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p.temp = ""
	return nil
}

// named replaces the temporary name in an error by path, which the reader knows.
func named(what, path string, err error) error {
	var p *fs.PathError
	var l *os.LinkError
	switch {
	case errors.As(err, &p):
		err = fmt.Errorf("%s: %w", p.Op, p.Err)
	case errors.As(err, &l):
		err = fmt.Errorf("%s: %w", l.Op, l.Err)
	}
	return fmt.Errorf("%s cannot be %s: %w", path, what, err)
}

// Rename moves a file or folder, also over an existing file, and syncs the folders.
func Rename(from, to string) error {
	if err := system(to).Rename(from, to); err != nil {
		return err
	}
	err := SyncFolder(filepath.Dir(to))
	if filepath.Dir(from) != filepath.Dir(to) {
		err = errors.Join(err, SyncFolder(filepath.Dir(from)))
	}
	return err
}

// Link gives a file a second name, and syncs the folder.
func Link(from, to string) error {
	if err := system(to).Link(from, to); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(to))
}

// Remove removes files, and syncs the folder. A file that does not exist is not an error.
func Remove(paths ...string) error {
	var errs []error
	folders := map[string]bool{}
	for _, path := range paths {
		err := system(path).Remove(path)
		switch {
		case err == nil:
			folders[filepath.Dir(path)] = true
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	for folder := range folders {
		errs = append(errs, SyncFolder(folder))
	}
	return errors.Join(errs...)
}

// MakeFolder makes a folder and its missing parents, and syncs their names.
func MakeFolder(path string, mode fs.FileMode) error {
	path = filepath.Clean(path)
	st, err := os.Stat(path)
	if err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MakeFolder(parent, mode); err != nil {
			return err
		}
	}
	if err := system(path).Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncFolder(parent)
}

// OpenLog opens a file for appending, and makes it if it does not exist. Its name is synced when
// OpenLog returns. The content is synced by Sync.
func OpenLog(path string, mode fs.FileMode) (File, error) {
	f, err := system(path).OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, mode)
	if err != nil {
		return nil, err
	}
	// Also if the file existed: its maker may have been killed before this.
	if err := SyncFolder(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Overwrite overwrites the first bytes of an existing file in place, and syncs them. Most file systems do that on a
// full disk too. A crash can leave old and new bytes, so data must be one short line.
func Overwrite(path string, data []byte) error {
	f, err := system(path).OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// SyncFile syncs a file that another library has written.
func SyncFile(path string) error {
	f, err := system(path).OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncFolder syncs the names in a folder that were made, changed and removed.
func SyncFolder(path string) error { return system(path).SyncFolder(path) }
