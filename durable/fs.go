package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
)

// FS has the operations of a file system that this package uses. Errors are those of package os.
type FS interface {
	OpenFile(name string, flag int, mode fs.FileMode) (File, error)
	Mkdir(name string, mode fs.FileMode) error
	Link(from, to string) error
	Rename(from, to string) error
	Remove(name string) error
	// SyncFolder syncs the names in a folder.
	SyncFolder(name string) error
}

// File is an open file of an FS.
type File interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
	Chmod(mode fs.FileMode) error
	Chown(uid, gid int) error
	Stat() (fs.FileInfo, error)
	Fd() uintptr
}

// OS is the file system of the operating system.
type OS struct{}

var _ FS = OS{}

// OpenFile is os.OpenFile.
func (OS) OpenFile(name string, flag int, mode fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err // a nil *os.File in a File would not be nil
	}
	return f, nil
}

// Mkdir is os.Mkdir.
func (OS) Mkdir(name string, mode fs.FileMode) error { return os.Mkdir(name, mode) }

// Link is os.Link.
func (OS) Link(from, to string) error { return os.Link(from, to) }

// Rename is os.Rename.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove is os.Remove.
func (OS) Remove(name string) error { return os.Remove(name) }

// SyncFolder calls fsync for the folder.
func (OS) SyncFolder(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	// EINVAL means that the file system cannot sync a folder (fsync(2)). Then no other call can do it.
	if err = d.Sync(); errors.Is(err, syscall.EINVAL) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// mount is an FS that replaces the operating system's file system in a folder.
type mount struct {
	folder string
	fs     FS
}

var mounts atomic.Pointer[[]mount]

// Mount makes this package use fs for a folder and everything below it, until unmount is called. It is for tests.
func Mount(folder string, fs FS) (unmount func()) {
	m := mount{filepath.Clean(folder), fs}
	updateMounts(func(list []mount) []mount { return append([]mount{m}, list...) })
	return func() {
		updateMounts(func(list []mount) []mount {
			i := slices.Index(list, m)
			return slices.Delete(list, i, i+1)
		})
	}
}

// updateMounts replaces the list of mounts by f's result.
func updateMounts(f func([]mount) []mount) {
	for {
		old := mounts.Load()
		var list []mount
		if old != nil {
			list = slices.Clone(*old)
		}
		if list = f(list); mounts.CompareAndSwap(old, &list) {
			return
		}
	}
}

// system returns the FS for a path.
func system(path string) FS {
	list := mounts.Load()
	if list == nil || len(*list) == 0 {
		return OS{}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return OS{}
	}
	for _, m := range *list {
		if rest, under := strings.CutPrefix(abs, m.folder); under && (rest == "" || rest[0] == filepath.Separator) {
			return m.fs
		}
	}
	return OS{}
}
