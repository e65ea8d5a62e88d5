package shred

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// shredder overwrites and removes files below one folder. It opens them through the folder's descriptor, and touches
// only plain files that have one name. So a user who can write into the folder cannot make us overwrite a file
// elsewhere.
type shredder struct {
	root      *os.Root
	remaining []string // the files that remain, with the reasons
}

// openShredder opens a folder. It refuses a link to a folder.
func openShredder(dir string) (*shredder, error) {
	before, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	if !before.IsDir() {
		return nil, fmt.Errorf("%s is %s, not a folder: it was not touched", dir, kindOfFile(before))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	after, err := root.Stat(".")
	if err != nil || !os.SameFile(before, after) {
		return nil, errors.Join(fmt.Errorf("%s was replaced meanwhile: it was not touched", dir), err, root.Close())
	}
	return &shredder{root: root}, nil
}

func kindOfFile(st fs.FileInfo) string {
	if st.Mode()&fs.ModeSymlink != 0 {
		return "a symbolic link"
	}
	return "a file of type " + st.Mode().Type().String()
}

// plain returns the facts of a plain file with one name. It returns nil if the file does not exist, or must stay; in
// the second case it adds the reason to s.remaining.
func (s *shredder) plain(name string) (fs.FileInfo, error) {
	st, err := s.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing to do, and no error
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		s.remaining = append(s.remaining, name+" is "+kindOfFile(st))
		return nil, nil
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 {
		s.remaining = append(s.remaining,
			fmt.Sprintf("%s has %d names (hard links), and overwriting it would change the file under all of "+
				"them: find the other names (find / -xdev -inum %d)", name, sys.Nlink, sys.Ino))
		return nil, nil
	}
	return st, nil
}

// shred overwrites a plain file with random bytes and removes it.
func (s *shredder) shred(name string) error {
	st, err := s.plain(name)
	if st == nil || err != nil {
		return err
	}
	// O_NONBLOCK: if the file was replaced by a pipe, the open does not wait for a reader.
	f, err := s.root.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // the Close below reports errors
	now, err := f.Stat()
	if err != nil || !os.SameFile(st, now) {
		return errors.Join(fmt.Errorf("%s was replaced meanwhile: it was not touched", name), err)
	}
	if _, err := io.CopyN(f, rand.Reader, now.Size()); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := s.root.Remove(name); err != nil {
		return err
	}
	d, err := s.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
