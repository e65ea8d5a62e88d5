// Package shred destroys the copies of a Key Trustee KMS's secrets that a migration leaves
// on a host. Cloudera's procedure has an operator copy them to each node, and take none of
// them away again: the KMS's private OpenPGP keys, by which their holder reads every
// deposit of the source, and kts-site.xml, which holds the organization's auth secret.
//
// A folder from which a KMS runs is spared. A run that was killed is finished by the
// next.
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

// Overwriting says what shredding is worth.
const Overwriting = "Files are overwritten once and removed. On SSDs, on copy-on-write file systems " +
	"(btrfs, ZFS, overlays) and where there are snapshots or backups, the old bytes may stay readable nevertheless: " +
	"take the organization's auth secret and the client at the Key Trustee Server out of use as well"

// Leftover shreds l, if agreed says yes, and records in l what became of it. doubt is why the
// folder may be the only one with a KMS's private key, "" where that is ruled out. agreed
// may record in l why it says no.
func Leftover(l *migrate.Leftover, agreed func(doubt string) (bool, error)) error {
	done, err := leftover(l, agreed)
	l.Shredded = done && err == nil && len(l.Left) == 0
	if l.Shredded && emptyFolder(l.Path) {
		l.Left = append(l.Left, "the folder itself, which is empty now, since this user may not remove it: "+
			"as root, rmdir "+l.Path)
	}
	if errors.Is(err, fs.ErrPermission) {
		cure := "shred -u " + l.Path
		if l.What != SiteCopy {
			cure = "find " + l.Path + " -type f -exec shred -u {} +"
		}
		err = fmt.Errorf("this user may not; as root: %s (%w)", cure, err)
	}
	if err != nil {
		return fmt.Errorf("shredding %s: %w", l.Path, err)
	}
	return nil
}

func leftover(l *migrate.Leftover, agreed func(doubt string) (bool, error)) (done bool, err error) {
	var doubt string
	if l.What == FolderCopy {
		if doubt, err = keytrustee.Doubt(l.Path); err != nil {
			return false, err
		}
	}
	if ok, err := agreed(doubt); err != nil || !ok {
		return false, err
	}
	if l.What == SiteCopy {
		l.Left, err = Site(l.Path)
	} else {
		l.Left, err = Folder(l.Path)
	}
	return true, err
}

// keytrusteeFiles are the files of a .keytrustee folder that are known, as patterns,
// the private keys first: Cloudera's, ours, and what GnuPG 1 and 2 keep beside them.
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

// keytrusteeFolders are those in it.
var keytrusteeFolders = []string{"private-keys-v1.d", "openpgp-revocs.d", ".ssl"}

// Folder shreds the known files of a .keytrustee folder, and removes it if nothing else is
// in it. left is what stays, with the reasons. It refuses the folder of a Key Trustee
// Server, and that of a KMS which runs, or was started from it as it is.
func Folder(dir string) (left []string, err error) {
	s, err := openShredder(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.root.Close()) }()
	if _, err := s.root.Lstat("keytrustee.db"); err == nil {
		return nil, fmt.Errorf("%s holds keytrustee.db: it is the folder of a Key Trustee "+
			"Server, not a copy of a KMS's, and is not touched", dir)
	}
	_, err = s.root.Lstat(trustee.PrivateRing)
	if errors.Is(err, fs.ErrNotExist) && filepath.Base(dir) != ".keytrustee" {
		return nil, fmt.Errorf("%s is not named .keytrustee and holds no %s: it is not touched",
			dir, trustee.PrivateRing)
	}
	if _, err := keytrustee.Doubt(dir); err != nil {
		return nil, err
	}
	// Until all is done: a KMS that starts from the folder in between would make keys with
	// what is destroyed.
	release, err := owner.Claim(filepath.Join(dir, keytrustee.LockFile), dir,
		owner.Self("claviger migrate finish --shred", ""))
	if err != nil {
		return nil, err
	}
	defer release()
	var names []string
	err = fs.WalkDir(s.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, pattern := range keytrusteeFiles {
		for _, name := range names {
			if ok, err := path.Match(pattern, name); err != nil {
				return nil, err
			} else if ok {
				if err := s.shred(name); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(keytrusteeFiles, func(p string) bool { ok, _ := path.Match(p, name); return ok }) {
			s.left = append(s.left, name+" is no file that is known of such a folder")
		}
	}
	for _, sub := range keytrusteeFolders {
		if st, err := s.root.Lstat(sub); err != nil || !st.IsDir() {
			continue
		}
		if err := s.root.Remove(sub); err != nil && !errors.Is(err, fs.ErrNotExist) &&
			!errors.Is(err, syscall.ENOTEMPTY) {
			return s.left, err
		}
	}
	if len(s.left) > 0 {
		return s.left, nil
	}
	if err := durable.Remove(dir); !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	return nil, nil // an empty folder has no secret; emptyFolder says that it is there
}

// Site shreds a kts-site.xml, if the file is one, and what a run that was killed has made
// of it. left is what stays, with the reasons.
func Site(file string) (left []string, err error) {
	s, err := openShredder(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.root.Close()) }()
	name, doomed := filepath.Base(file), filepath.Base(shreddingOf(file))
	if err := s.shred(doomed); err != nil {
		return nil, err
	}
	st, err := s.plain(name)
	if st == nil || err != nil {
		return s.left, err
	}
	c := hadoopconf.New(filepath.Dir(file), nil)
	if err := c.AddFile(file, false); err != nil {
		return nil, err
	}
	if len(c.Under("cloudera.trustee.keyprovider.")) == 0 {
		return nil, fmt.Errorf("%s has no property cloudera.trustee.keyprovider.*: it is no copy of kts-site.xml, "+
			"and is not touched", file)
	}
	if err := s.root.Rename(name, doomed); err != nil {
		return nil, err
	}
	return s.left, s.shred(doomed)
}
