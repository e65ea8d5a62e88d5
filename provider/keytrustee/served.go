package keytrustee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"claviger/durable"
	"claviger/filestamp"
	"claviger/owner"
	"claviger/trustee"
)

const (
	// ServedFile marks a .keytrustee folder from which a KMS was started. One mark is in the folder. Another is beside
	// the folder, named FOLDER.served.json; it stays when the folder is moved or not mounted. Each start of the KMS
	// writes both.
	ServedFile = "served.json"
	// LockFile is a file in the folder. A running KMS holds a shared lock on it (package owner).
	LockFile = "served.lock"
)

// served is the content of a mark.
type served struct {
	Folder   string    `json:"folder"`   // trustee.Mark of the folder
	Identity string    `json:"identity"` // as in keytrustee.conf
	Started  time.Time `json:"started"`
}

// besideFolder returns the path of the mark beside a folder.
func besideFolder(dir string) string { return filepath.Clean(dir) + "." + ServedFile }

// lockFolder locks the folder for a running KMS. Several KMS processes may share the lock.
func lockFolder(dir, conf string, log *slog.Logger) (release func(), err error) {
	release, err = owner.Share(filepath.Join(dir, LockFile), dir, owner.Self("a Key Trustee KMS", conf))
	if errors.As(err, new(*owner.InUseError)) {
		return nil, fmt.Errorf("%w, which is destroying the folder: this KMS does not start", err)
	}
	if err != nil {
		log.Warn("the folder of this KMS cannot be locked, so claviger migrate finish --shred cannot detect that a "+
			"KMS runs from it", "folder", dir, "err", err)
		return func() {}, nil
	}
	return release, nil
}

// markServed writes both marks.
func markServed(f *trustee.Folder, now time.Time, log *slog.Logger) {
	mark, err := trustee.Mark(f.Path)
	var text []byte
	if err == nil {
		text, err = json.Marshal(served{mark, f.Identity.String(), now.UTC().Truncate(time.Second)})
	}
	if err == nil {
		err = errors.Join(f.WriteFile(ServedFile, text), durable.Replace(besideFolder(f.Path), text, 0o600))
	}
	if err != nil {
		log.Warn("the marks of this KMS's folder cannot be written, so a later start in an empty folder, or claviger "+
			"migrate finish --shred, may not detect that a KMS was started from it", "folder", f.Path, "err",
			err)
	}
}

// readServed reads a mark; nil if there is none. A mark that cannot be decoded is returned empty.
func readServed(file string) (*served, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a missing mark is not an error
	}
	if err != nil {
		return nil, err
	}
	s := &served{}
	if json.Unmarshal(text, s) != nil {
		*s = served{}
	}
	return s, nil
}

// servedBefore fails if a KMS was started before from the missing folder. A new identity could open none of the keys of
// that KMS.
func servedBefore(dir string) error {
	file := besideFolder(dir)
	s, err := readServed(file)
	if err != nil || s == nil {
		return err
	}
	return fmt.Errorf("%s does not exist or is empty, but a KMS was started from it at %s with the identity %s (see "+
		"%s). A new identity could not open the keys of that KMS, so no identity was made. "+
		"Put the folder back: mount its disk, or copy %s, %s and %s from another host of this KMS or from a backup. "+
		"To give up all keys of that identity, remove %s and start again",
		dir, s.Started.UTC().Format(time.RFC3339), s.Identity, file, trustee.ConfFile, trustee.PublicRing,
		trustee.PrivateRing, file)
}

// privateKeys are patterns of the files in a folder that have private OpenPGP keys.
var privateKeys = []string{trustee.PrivateRing, trustee.PrivateRing + "~", trustee.PrivateRing + ".new",
	"private-keys-v1.d/*.key"}

// MayBeOriginal returns the reason why a .keytrustee folder may not be a copy, but a KMS's only folder, with the only
// private key that opens its deposits. It returns "" if the folder has no private key. Nothing in a folder proves that
// it is a copy: Cloudera's KMS, older versions of claviger, and a KMS that cannot write there leave no mark. An error
// means that the folder is certainly not a copy, or could not be read.
func MayBeOriginal(dir string) (string, error) {
	o, running, err := owner.Of(filepath.Join(dir, LockFile))
	if err != nil {
		return "", err
	}
	if running {
		return "", fmt.Errorf("%s is in use by %s: its private key opens the deposits of that KMS. Nothing was changed",
			dir, o)
	}
	mark, err := trustee.Mark(dir)
	if err != nil {
		return "", err
	}
	reason := "no mark in it says whether a KMS was started from it"
	for _, file := range []string{filepath.Join(dir, ServedFile), besideFolder(dir)} {
		s, err := readServed(file)
		switch {
		case err != nil:
			return "", err
		case s == nil:
		case s.Folder == mark:
			return "", fmt.Errorf("%s is not a copy: a Key Trustee KMS was started from it at %s, and its private key "+
				"may be the only one that opens the deposits. Nothing was changed. "+
				"If that KMS is retired for good and you have a backup of the folder, remove %s and %s and try again",
				dir, s.Started.UTC().Format(time.RFC3339), filepath.Join(dir, ServedFile), besideFolder(dir))
		default:
			reason = fmt.Sprintf("a KMS was started from it at %s, and it was copied, moved or restored since, or its "+
				"host was renamed", s.Started.UTC().Format(time.RFC3339))
		}
	}
	for _, pattern := range privateKeys {
		if found, err := filepath.Glob(filepath.Join(escapeGlob(dir), pattern)); err != nil || len(found) > 0 {
			return reason, err
		}
	}
	return "", nil
}

// escapeGlob escapes a path for filepath.Glob.
func escapeGlob(dir string) string {
	var b []byte
	for _, c := range []byte(dir) {
		if c == '*' || c == '?' || c == '[' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return string(b)
}

// folderWatch checks that the private key in memory is still in the KMS's folder. If it is not, keys that are made now
// could not be opened after a restart. A nil folderWatch checks nothing.
type folderWatch struct {
	folder *trustee.Folder

	mu    sync.Mutex
	stamp filestamp.Stamp // of the private ring when the key was last found in it
}

// check fails if the private key is not in the folder.
func (w *folderWatch) check(now time.Time) error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	ring := filepath.Join(w.folder.Path, trustee.PrivateRing)
	stamp, err := filestamp.Of(ring)
	if err == nil && stamp.Exists() && stamp == w.stamp {
		return nil
	}
	switch {
	case err != nil:
	case !stamp.Exists():
		err = &fs.PathError{Op: "stat", Path: ring, Err: syscall.ENOENT}
	default:
		err = w.compareKeys(now)
	}
	if err != nil {
		return fmt.Errorf("the private key of this running KMS is no longer in %s: %w. Keys that are made now could "+
			"not be opened after a restart, so the KMS changes no key. Before this process ends, put the folder back, "+
			"or copy %s, %s and %s from another host of this KMS or from a backup",
			w.folder.Path, err, trustee.ConfFile, trustee.PublicRing, trustee.PrivateRing)
	}
	w.stamp = stamp
	return nil
}

// CheckPlace fails if the private key of this KMS is not in its folder.
func (p *Provider) CheckPlace(context.Context) error { return p.cfg.watch.check(p.cfg.Now()) }

// compareKeys fails if the private key in the folder does not open a message that is encrypted to the key in memory.
func (w *folderWatch) compareKeys(now time.Time) error {
	f, err := trustee.LoadFolder(w.folder.Path)
	if err != nil {
		return err
	}
	sealed, err := w.folder.Identity.Seal([]byte("claviger"), now)
	if err != nil {
		return err
	}
	if _, err := f.Identity.Open(sealed, now); err != nil {
		return fmt.Errorf("it holds %s, and the key in memory belongs to %s", f.Identity, w.folder.Identity)
	}
	return nil
}
