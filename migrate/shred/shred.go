// Package shred destroys the copies of a Key Trustee KMS's secrets that a migration leaves on a host. In Cloudera's
// procedure an operator copies these secrets to each node, and never removes the copies. The secrets are the KMS's
// private OpenPGP keys, which open every deposit of the source, and kts-site.xml, which has the organization's auth
// secret.
//
// The package does not touch a folder from which a KMS runs. If a run is killed, the next run does the rest.
package shred

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"claviger/durable"
	"claviger/hadoopconf"
	"claviger/migrate"
	"claviger/owner"
	"claviger/provider/keytrustee"
	"claviger/trustee"
)

// Overwriting is the text for operators about the limits of shredding.
const Overwriting = "Files are overwritten once and removed. On SSDs, on copy-on-write file systems " +
	"(btrfs, ZFS, overlays), and in snapshots and backups, the old bytes may stay readable: " +
	"also revoke the organization's auth secret and the client at the Key Trustee Server"

// Leftover shreds l if agreed returns true, and records the result in l. risk is the reason why the folder may
// have the only copy of a KMS's private key, or "" if it certainly has not. If agreed returns false, it may record
// the reason in l.
func Leftover(l *migrate.Leftover, agreed func(risk string) (bool, error)) error {
	done, err := leftover(l, agreed)
	l.Shredded = done && err == nil && len(l.Remaining) == 0
	if l.Shredded && emptyFolder(l.Path) {
		l.Remaining = append(l.Remaining, "the empty folder itself, which this user may not remove: as root, "+
			"rmdir "+l.Path)
	}
	if errors.Is(err, fs.ErrPermission) {
		cure := "shred -u " + l.Path
		if l.What != SiteCopy {
			cure = "find " + l.Path + " -type f -exec shred -u {} +"
		}
		err = fmt.Errorf("this user may not do that; as root: %s (%w)", cure, err)
	}
	if err != nil {
		return fmt.Errorf("shredding %s: %w", l.Path, err)
	}
	return nil
}

func leftover(l *migrate.Leftover, agreed func(risk string) (bool, error)) (done bool, err error) {
	var risk string
	if l.What == FolderCopy {
		if risk, err = keytrustee.MayBeOriginal(l.Path); err != nil {
			return false, err
		}
	}
	if ok, err := agreed(risk); err != nil || !ok {
		return false, err
	}
	if l.What == SiteCopy {
		l.Remaining, err = Site(l.Path)
	} else {
		l.Remaining, err = Folder(l.Path)
	}
	return true, err
}

// keytrusteeFiles are patterns of the known files in a .keytrustee folder, private keys first: Cloudera's files,
// ours, and those of GnuPG 1 and 2.
var keytrusteeFiles = []string{
	trustee.PrivateRing, trustee.PrivateRing + "~", trustee.PrivateRing + ".new", "." + trustee.PrivateRing + "-*",
	"." + trustee.PrivateRing + ".new-*",
	"private-keys-v1.d/*.key", "openpgp-revocs.d/*.rev",
	".ssl/ssl-cert-keytrustee-pk.pem", ".ssl/ssl-cert-keytrustee.pem", ".ssl/ssl-cert-keytrustee-ca.pem",
	trustee.ConfFile, "." + trustee.ConfFile + "-*",
	trustee.PublicRing, trustee.PublicRing + "~", "." + trustee.PublicRing + "-*",
	"pubring.kbx", "pubring.kbx~", "trustdb.gpg", "random_seed", "gpg.conf", "gpg-agent.conf", ".gpg-v21-migrated",
	"newest.json", ".newest.json-*",
	keytrustee.ServedFile, "." + keytrustee.ServedFile + "-*", keytrustee.LockFile,
}

// keytrusteeFolders are the known folders in a .keytrustee folder.
var keytrusteeFolders = []string{"private-keys-v1.d", "openpgp-revocs.d", ".ssl"}

// Folder shreds the known files of a .keytrustee folder, and removes the folder if nothing else is in it. left are
// the files that stay, with the reasons. Folder refuses the folder of a Key Trustee Server, and a folder from which
// a KMS runs or was started.
func Folder(dir string) (left []string, err error) {
	s, err := openShredder(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.root.Close()) }()
	if err := s.needKMSFolder(dir); err != nil {
		return nil, err
	}
	// The lock is held to the end: a KMS that starts from the folder in between would make keys under an identity
	// that is being destroyed.
	release, err := owner.Claim(filepath.Join(dir, keytrustee.LockFile), dir,
		owner.Self("claviger migrate finish --shred", ""))
	if err != nil {
		return nil, err
	}
	defer release()
	if err := s.shredKnown(); err != nil {
		return nil, err
	}
	for _, sub := range keytrusteeFolders {
		if st, err := s.root.Lstat(sub); err != nil || !st.IsDir() {
			continue
		}
		if err := s.root.Remove(sub); err != nil && !errors.Is(err, fs.ErrNotExist) &&
			!errors.Is(err, syscall.ENOTEMPTY) {
			return s.remaining, err
		}
	}
	if len(s.remaining) > 0 {
		return s.remaining, nil
	}
	if err := durable.Remove(dir); !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	return nil, nil // the folder is empty, so it has no secret; the caller reports that it stays
}

// needKMSFolder returns an error unless the folder is the copy of a Key Trustee KMS's .keytrustee folder.
func (s *shredder) needKMSFolder(dir string) error {
	if _, err := s.root.Lstat("keytrustee.db"); err == nil {
		return fmt.Errorf("%s holds keytrustee.db: it is the folder of a Key Trustee Server, not a copy of a KMS's "+
			"folder, and was not touched", dir)
	}
	_, err := s.root.Lstat(trustee.PrivateRing)
	if errors.Is(err, fs.ErrNotExist) && filepath.Base(dir) != ".keytrustee" {
		return fmt.Errorf("%s is not named .keytrustee and holds no %s: it was not touched", dir, trustee.PrivateRing)
	}
	_, err = keytrustee.MayBeOriginal(dir)
	return err
}

// shredKnown shreds the known files of a .keytrustee folder, in the order of keytrusteeFiles. It records the other
// files in s.remaining.
func (s *shredder) shredKnown() error {
	var names []string
	err := fs.WalkDir(s.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, pattern := range keytrusteeFiles {
		for _, name := range names {
			if ok, err := path.Match(pattern, name); err != nil {
				return err
			} else if ok {
				if err := s.shred(name); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(keytrusteeFiles, func(p string) bool { ok, _ := path.Match(p, name); return ok }) {
			s.remaining = append(s.remaining, name+" is not a known file of such a folder")
		}
	}
	return nil
}

// Site shreds a file that is a kts-site.xml, and the renamed file that a killed run left. left are the files that
// stay, with the reasons.
func Site(file string) (left []string, err error) {
	s, err := openShredder(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.root.Close()) }()
	name, renamed := filepath.Base(file), filepath.Base(shreddingOf(file))
	if err := s.shred(renamed); err != nil {
		return nil, err
	}
	st, err := s.plain(name)
	if st == nil || err != nil {
		return s.remaining, err
	}
	c := hadoopconf.New(filepath.Dir(file), nil)
	if err := c.AddFile(file, false); err != nil {
		return nil, err
	}
	if len(c.WithPrefix("cloudera.trustee.keyprovider.")) == 0 {
		return nil, fmt.Errorf("%s has no property cloudera.trustee.keyprovider.*: it is not a copy of kts-site.xml, "+
			"and was not touched", file)
	}
	if err := s.root.Rename(name, renamed); err != nil {
		return nil, err
	}
	return s.remaining, s.shred(renamed)
}
