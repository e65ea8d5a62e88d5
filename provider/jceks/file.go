package jceks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"claviger/durable"
	"claviger/keystore"
	"claviger/owner"
	"claviger/secret"
)

// file is the keystore's file with the files beside it. For /etc/kms.keystore:
//
//	kms.keystore_NEW            Hadoop's new state, before its rename to kms.keystore
//	kms.keystore_OLD            the old state, during a write
//	kms.keystore_..._ORPHANED_<ms>  a _NEW or _OLD that a later write found and renamed
//	kms.keystore_CORRUPTED_<ms> a damaged file that was replaced by _OLD
//	.kms.keystore.crc           checksums of Hadoop's LocalFileSystem, see flush
//	.kms.keystore.tmp-...       our new state, before its rename to kms.keystore
//	.kms.keystore.lock          the locks of our writers and of the server that uses the file; never removed
//
// A crash may end a write at any point. load can read every state in which this program or Hadoop can leave these
// files.
type file struct {
	path     string
	password secret.Bytes
	log      *slog.Logger
}

func (f *file) suffixed(s string) string { return f.path + s }

// hiddenFile returns the path of the hidden file with that suffix that belongs to the file path.
func hiddenFile(path, suffix string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+suffix)
}

// identity distinguishes the states of a file. Each write makes a new file, so the inode differs even if two writes
// have the same time.
type identity struct {
	dev, inode   uint64
	size         int64
	mtime, ctime int64 // ns
}

// identify returns the zero identity if there is no file.
func identify(path string) (identity, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return identity{}, nil
	}
	if err != nil {
		return identity{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return identity{
		dev: st.Dev, inode: st.Ino, size: st.Size,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// read parses the file, and returns the identity of the state that it read.
func (f *file) read(path string) (*keystore.JCEKS, identity, error) {
	// The file may be replaced between stat and open. Then the identities differ, and the new file is read.
	for range 10 {
		before, err := identify(path)
		if err != nil {
			return nil, identity{}, err
		}
		data, err := readLimited(path)
		if err != nil {
			return nil, identity{}, err
		}
		if after, err := identify(path); err != nil || after != before {
			continue
		}
		s, err := keystore.ParseJCEKS(data, f.password)
		if err != nil {
			return nil, before, &contentError{path: path, err: err}
		}
		return s, before, nil
	}
	return nil, identity{}, fmt.Errorf("%s was changed repeatedly while it was read", path)
}

func readLimited(path string) ([]byte, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	return io.ReadAll(io.LimitReader(r, keystore.MaxJCEKS+1))
}

// needsNoRecovery reports whether the file can be read without recovery: no write is running, and none was interrupted.
func (f *file) needsNoRecovery() bool {
	return exists(f.path) && !exists(f.suffixed("_NEW")) && !exists(f.suffixed("_OLD"))
}

// load reads the keystore, and finishes or undoes a change that a crash interrupted. The caller must hold the lock.
// load looks for the files in the order of Hadoop's locateKeystore. If there is no file, it returns the zero identity
// and an empty store. A file that load renames gets another identity, so the next call reads it a second time.
func (f *file) load() (*keystore.JCEKS, identity, error) {
	newPath, oldPath := f.suffixed("_NEW"), f.suffixed("_OLD")
	if exists(f.path) {
		if exists(newPath) {
			return nil, identity{},
				fmt.Errorf("keystore %s: it and %s should not exist together: one of them is from a backup or was "+
					"written after a crash; find out which one has the right keys, and move the other one away",
					f.path, newPath)
		}
		s, id, err := f.read(f.path)
		switch {
		case err == nil:
			return s, id, f.remove(oldPath)
		case !isCorrupt(err) || !exists(oldPath):
			return nil, identity{}, err
		}
		s, id, errOld := f.read(oldPath)
		if errOld != nil {
			return nil, identity{}, fmt.Errorf("%w; the old state cannot be used either: %w", err, errOld)
		}
		damaged := f.stamped("_CORRUPTED_")
		f.log.Warn("keystore is damaged; the state before the last write is used", "file", f.path, "reason", err,
			"renamedTo", damaged)
		if err := f.rename(f.path, damaged); err != nil {
			return nil, identity{}, err
		}
		if err := f.rename(oldPath, f.path); err != nil {
			return nil, identity{}, err
		}
		return s, id, nil
	}
	var broken error
	for _, p := range []struct{ use, drop string }{{newPath, oldPath}, {oldPath, newPath}} {
		if !exists(p.use) {
			continue
		}
		s, id, err := f.read(p.use)
		if isCorrupt(err) {
			broken = err
			continue
		}
		if err != nil {
			return nil, identity{}, err
		}
		f.log.Warn("a write of the keystore was interrupted; it is completed now", "file", f.path, "from", p.use)
		if err := f.rename(p.use, f.path); err != nil {
			return nil, identity{}, err
		}
		if err := f.remove(p.drop); err != nil {
			return nil, identity{}, err
		}
		return s, id, nil
	}
	if broken != nil && exists(oldPath) {
		// Hadoop would begin an empty store here, and all keys would seem to be lost.
		return nil, identity{}, fmt.Errorf("%w; the file %s itself is missing", broken, f.path)
	}
	return keystore.NewJCEKS(), identity{}, nil
}

// stamped returns the path with a suffix and the time in milliseconds.
func (f *file) stamped(suffix string) string {
	return f.suffixed(suffix + strconv.FormatInt(time.Now().UnixMilli(), 10))
}

// rename renames a file and Hadoop's checksums of it.
func (f *file) rename(from, to string) error {
	if err := durable.Remove(hiddenFile(to, ".crc")); err != nil {
		return err
	}
	if err := durable.Rename(from, to); err != nil {
		return err
	}
	err := durable.Rename(hiddenFile(from, ".crc"), hiddenFile(to, ".crc"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove removes a file and Hadoop's checksums of it. Neither need exist.
func (f *file) remove(path string) error {
	return durable.Remove(path, hiddenFile(path, ".crc"))
}

// sweep removes the temporary files of killed writers. The caller must hold the lock.
func (f *file) sweep() error {
	entries, err := os.ReadDir(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	var files []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(hiddenFile(f.path, ".tmp"))) {
			files = append(files, filepath.Join(filepath.Dir(f.path), e.Name()))
		}
	}
	return durable.Remove(files...)
}

// flush replaces the keystore by s, durably, or changes nothing. The caller must hold the lock.
//
// Hadoop renames the file to _OLD, writes _NEW, renames _NEW to the file, and removes _OLD. In between the keystore
// does not exist under its name. This program writes a temporary file, which Hadoop does not read, keeps the old state
// as _OLD (a hard link), and puts the new state in place with one rename. So there is always a complete keystore that
// Hadoop's loader can read, even after a crash, and while a Java process reads it.
//
// Hadoop's LocalFileSystem keeps checksums of the file in .NAME.crc. It refuses a file that does not match them, and
// does not check a file without checksums. Two files cannot be replaced in one step, so flush removes the checksums
// first, and does not write them again: the keystore ends with its own, stronger check. Java writes checksums again
// with its next change.
func (f *file) flush(s *keystore.JCEKS) (identity, error) {
	data, err := s.Marshal(f.password)
	if err != nil {
		return identity{}, err
	}
	for _, suffix := range []string{"_NEW", "_OLD"} {
		if stale := f.suffixed(suffix); exists(stale) {
			if err := f.rename(stale, f.stamped(suffix+"_ORPHANED_")); err != nil {
				return identity{}, err
			}
		}
	}
	if err := f.sweep(); err != nil {
		return identity{}, err
	}
	mode := fs.FileMode(0o600)
	ownerFrom := filepath.Dir(f.path)
	if st, err := os.Stat(f.path); err == nil {
		mode, ownerFrom = st.Mode().Perm(), f.path
	}
	next, err := durable.Prepare(f.path, 0o600, func(w io.Writer) error { _, err := w.Write(data); return err },
		func(w durable.File) error { f.copyOwner(w, ownerFrom); return w.Chmod(mode) })
	if err != nil {
		return identity{}, errors.Unwrap(err) // without the path, which the caller adds
	}
	oldPath := f.suffixed("_OLD")
	err = durable.Remove(hiddenFile(f.path, ".crc"))
	before, backup := inode(f.path), false
	if err == nil && before != (identity{}) {
		// A file system without hard links allows no backup. This is safe: the rename below is atomic.
		if errLink := durable.Link(f.path, oldPath); errLink == nil {
			backup = true
		} else {
			f.log.Debug("no backup while the keystore is written", "file", f.path, "reason", errLink)
		}
	}
	if err == nil {
		err = next.Replace()
	}
	if err != nil {
		_ = next.Discard() // the first error counts
		if err := f.restore(before, backup); err != nil {
			return identity{}, &notRestoredError{err}
		}
		return identity{}, err
	}
	// The new state is in place and durable. An error after this must not look like a failed write.
	if err := f.remove(oldPath); err != nil {
		f.log.Warn("backup of the keystore could not be removed", "file", oldPath, "reason", err)
	}
	// If this fails, the next call treats the file as changed, and reads it.
	id, _ := identify(f.path)
	return id, nil
}

// restore puts the old state back after a failed write. The new state may be in place without being durable.
func (f *file) restore(before identity, backup bool) error {
	switch {
	case inode(f.path) == before: // the old state is still in place
		if backup {
			_ = f.remove(f.suffixed("_OLD")) // if it stays, the next write renames it
		}
		return nil
	case backup:
		return durable.Rename(f.suffixed("_OLD"), f.path)
	case before == identity{}:
		return durable.Remove(f.path)
	}
	return errors.New("there is no backup of the old state, because the file system has no hard links")
}

// inode returns the part of a file's identity that does not change when the file gets a second name.
func inode(path string) identity {
	id, _ := identify(path) // the zero identity if that fails
	return identity{dev: id.dev, inode: id.inode}
}

// copyOwner gives a file the owner of the file from, if the process runs as root. So the keystore still belongs to the
// server's user after an administrator has changed it as root.
func (f *file) copyOwner(w interface{ Chown(uid, gid int) error }, from string) {
	st, err := os.Stat(from)
	if err != nil || os.Geteuid() != 0 {
		return
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		if err := w.Chown(int(sys.Uid), int(sys.Gid)); err != nil {
			f.log.Warn("could not set the owner of the keystore", "file", f.path, "reason", err)
		}
	}
}

// openLock opens the lock file. It follows no symbolic link, see owner.Open.
func (f *file) openLock() (*os.File, error) {
	name := hiddenFile(f.path, ".lock")
	created := !exists(name)
	w, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err == nil && created {
		f.copyOwner(w, filepath.Dir(f.path))
	}
	return w, err
}

// Claim claims the keystore for a process, until release is called or the process ends. If alone is true, no other
// process may claim it; otherwise other servers may. If another claim conflicts, the error is an *owner.InUseError.
// shared reports whether other servers had claimed the keystore before. Writers exclude each other even without a
// claim.
func (p *Provider) Claim(o owner.Owner, alone bool) (release func(), shared bool, err error) {
	w, err := p.file.openLock()
	if err != nil {
		return nil, false, fmt.Errorf("keystore %s: %w", p.file.path, err)
	}
	defer w.Close() //nolint:errcheck // nothing was written
	name := "keystore " + p.file.path
	if alone {
		release, err = owner.Claim(w.Name(), name, o)
		return release, false, err
	}
	_, shared, err = owner.Of(w.Name())
	if err != nil {
		return nil, false, err
	}
	release, err = owner.Share(w.Name(), name, o)
	return release, shared, err
}

// lock takes the lock that all writers of this program take. It is an open-file-description lock: the system releases
// it when the process ends, and it also excludes two providers in one process from each other.
func (f *file) lock(ctx context.Context) (unlock func(), err error) {
	w, err := f.openLock()
	if err != nil {
		return nil, err
	}
	name := w.Name()
	unlock = func() { _ = w.Close() }
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.FcntlFlock(w.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart,
			Len: 1})
		if err == nil {
			return unlock, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			unlock()
			return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
		}
		select {
		case <-ctx.Done():
			unlock()
			return nil, fmt.Errorf("waiting for another writer's lock on %s: %w", name, ctx.Err())
		case <-time.After(wait):
		}
	}
}
