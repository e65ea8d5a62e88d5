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
	// ServedFile is the mark of a KMS that runs from a .keytrustee folder. One mark is in the
	// folder; another is beside it, named after the folder and this file, and stays when the folder
	// is moved or not mounted. Each start of the KMS writes both.
	ServedFile = "served.json"
	// LockFile is in the folder. A KMS shares its lock (package owner) while it runs.
	LockFile = "served.lock"
)

// served is the content of a mark.
type served struct {
	Folder   string    `json:"folder"`   // trustee.Mark of the folder
	Identity string    `json:"identity"` // as keytrustee.conf has it
	Started  time.Time `json:"started"`
}

// besideFolder names the mark beside a folder.
func besideFolder(dir string) string { return filepath.Clean(dir) + "." + ServedFile }

// share claims the folder for a running KMS, together with other KMS processes of the folder.
func share(dir, conf string, log *slog.Logger) (release func(), err error) {
	release, err = owner.Share(filepath.Join(dir, LockFile), dir, owner.Self("a Key Trustee KMS", conf))
	if errors.As(err, new(*owner.InUseError)) {
		return nil, fmt.Errorf("%w, which destroys the folder: this KMS does not start", err)
	}
	if err != nil {
		log.Warn("the folder of this KMS cannot be locked, so that claviger migrate finish --shred cannot see that a "+
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
		log.Warn("the folder of this KMS cannot be marked in both places, so that a later start in an empty folder, "+
			"or claviger migrate finish --shred, may not know that it was the folder of a KMS", "folder", f.Path, "err",
			err)
	}
}

// readServed reads a mark; nil if there is none. A mark that cannot be decoded is returned empty.
func readServed(file string) (*served, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a missing mark is no error
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

// servedBefore refuses to make an identity in an empty place where a KMS had one: the new identity
// could open none of its keys.
func servedBefore(dir string) error {
	file := besideFolder(dir)
	s, err := readServed(file)
	if err != nil || s == nil {
		return err
	}
	return fmt.Errorf("%s is not there, or empty, and a KMS was started from it at %s with the identity %s, as %s "+
		"says. A new identity could open none of its keys, so none was made. "+
		"Put the folder back: mount its disk, or copy %s, %s and %s from another host of this KMS or from a backup. "+
		"Where all keys of that identity are given up, remove %s and start again",
		dir, s.Started.UTC().Format(time.RFC3339), s.Identity, file, trustee.ConfFile, trustee.PublicRing,
		trustee.PrivateRing, file)
}

// privateKeys are patterns for the files of a folder that hold private OpenPGP keys.
var privateKeys = []string{trustee.PrivateRing, trustee.PrivateRing + "~", trustee.PrivateRing + ".new",
	"private-keys-v1.d/*.key"}

// Doubt says why a .keytrustee folder may be a KMS's own, with the only private key that opens its
// deposits; "" if the folder holds no private key. Nothing in a folder proves that it is a copy:
// Cloudera's KMS, older versions of ours, and a KMS that may not write there leave no mark. An
// error says that the path is certainly no such folder, or could not be read.
func Doubt(dir string) (string, error) {
	o, running, err := owner.Of(filepath.Join(dir, LockFile))
	if err != nil {
		return "", err
	}
	if running {
		return "", fmt.Errorf("%s is in use by %s: its private key opens the deposits of that KMS. It is not touched",
			dir, o)
	}
	mark, err := trustee.Mark(dir)
	if err != nil {
		return "", err
	}
	doubt := "no mark in it says whether a KMS was started from it"
	for _, file := range []string{filepath.Join(dir, ServedFile), besideFolder(dir)} {
		s, err := readServed(file)
		switch {
		case err != nil:
			return "", err
		case s == nil:
		case s.Folder == mark:
			return "", fmt.Errorf("%s is no copy: a Key Trustee KMS was started from it at %s, and its private key "+
				"may be the only one that opens the deposits. It is not touched. "+
				"Where that KMS is retired for good and a backup of the folder is kept, remove %s and %s and call "+
				"this again",
				dir, s.Started.UTC().Format(time.RFC3339), filepath.Join(dir, ServedFile), besideFolder(dir))
		default:
			doubt = fmt.Sprintf("a KMS was started from it at %s, and it was copied, moved or restored since, or its "+
				"host renamed", s.Started.UTC().Format(time.RFC3339))
		}
	}
	for _, pattern := range privateKeys {
		if found, err := filepath.Glob(filepath.Join(globbed(dir), pattern)); err != nil || len(found) > 0 {
			return doubt, err
		}
	}
	return "", nil
}

// globbed quotes a path for filepath.Glob.
func globbed(dir string) string {
	var b []byte
	for _, c := range []byte(dir) {
		if c == '*' || c == '?' || c == '[' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return string(b)
}

// place watches whether the private key that this KMS has in memory is still in its folder. Without
// it, keys that are made now could not be opened after a restart. A nil place watches nothing.
type place struct {
	folder *trustee.Folder

	mu    sync.Mutex
	stamp filestamp.Stamp // of the private ring, when the key was last found in it
}

// check is an error if the key is not there.
func (p *place) check(now time.Time) error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	ring := filepath.Join(p.folder.Path, trustee.PrivateRing)
	stamp, err := filestamp.Of(ring)
	if err == nil && stamp.Exists() && stamp == p.stamp {
		return nil
	}
	switch {
	case err != nil:
	case !stamp.Exists():
		err = &fs.PathError{Op: "stat", Path: ring, Err: syscall.ENOENT}
	default:
		err = p.holds(now)
	}
	if err != nil {
		return fmt.Errorf("the private key with which this KMS runs is not in %s any more: %w. After a restart "+
			"nothing could open what is made now, so no key is changed. "+
			"Put the folder back, or %s, %s and %s of another host of this KMS or of a backup, before this process "+
			"ends",
			p.folder.Path, err, trustee.ConfFile, trustee.PublicRing, trustee.PrivateRing)
	}
	p.stamp = stamp
	return nil
}

// CheckPlace is an error while the private key of this KMS is not in its folder.
func (p *Provider) CheckPlace(context.Context) error { return p.cfg.place.check(p.cfg.Now()) }

// holds reads the folder and opens, with its key, a message that is sealed to the key in memory.
func (p *place) holds(now time.Time) error {
	f, err := trustee.LoadFolder(p.folder.Path)
	if err != nil {
		return err
	}
	sealed, err := p.folder.Identity.Seal([]byte("claviger"), now)
	if err != nil {
		return err
	}
	if _, err := f.Identity.Open(sealed, now); err != nil {
		return fmt.Errorf("it holds %s, and the key in memory is that of %s", f.Identity, p.folder.Identity)
	}
	return nil
}
