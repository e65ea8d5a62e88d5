package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"claviger"
	"claviger/durable"
	"claviger/hadoopconf"
	"claviger/migrate"
	"claviger/owner"
	"claviger/provider/keytrustee"
	"claviger/trustee"
)

// What Cloudera's procedure has an operator copy to each node, and has nobody take
// away again: the Key Trustee KMS's private OpenPGP keys, by which whoever has them
// reads every deposit of the source, and kts-site.xml, which holds the
// organization's auth secret.
const (
	leftFolder = "a copy of the Key Trustee KMS's .keytrustee folder, with its private OpenPGP keys"
	leftSite   = "a copy of kts-site.xml, with the organization's auth secret"
	leftTrust  = "the truststore, perhaps with the source's certificates: remove those (keytool -delete) unless something else needs them; nothing in it is secret"
	leftGuess  = "looks like a Key Trustee KMS's own folder or a copy of it; if it is a copy, name it by --leftover"
)

// settingLeftovers is the metastore's setting with the paths that the configuration
// named while it named them: a JSON list. When the source may go they no longer
// stand in any file.
const settingLeftovers = "migration.leftovers"

// usualFolder is where Cloudera's packages have the folder.
const usualFolder = "/var/lib/kms-keytrustee/keytrustee/.keytrustee"

// keytrusteeURI begins the URI of a .keytrustee folder.
const keytrusteeURI = "keytrustee://file@"

// namedLeftovers are the paths that the configuration names now.
func namedLeftovers(conf *hadoopconf.Conf) []string {
	var paths []string
	for _, property := range []string{hadoopconf.ProviderURI, hadoopconf.SourceURI} {
		for _, uri := range strings.Split(conf.String(property), ",") {
			if p, ok := strings.CutPrefix(strings.TrimSpace(uri), keytrusteeURI); ok {
				paths = append(paths, filepath.Clean(p))
			}
		}
	}
	if p, ok := conf.Path(hadoopconf.TrusteeConf); ok && p != "" {
		paths = append(paths, filepath.Clean(p)) // a file, although its property's name ends in "dir"
	}
	return paths
}

// noteLeftovers adds to the setting what the configuration names, and the paths that an
// operator gives, and returns all. A given path where nothing is, nor was before on any host
// of this metastore, is misspelt: what is meant would stay.
func (s *service) noteLeftovers(ctx context.Context, given []string) ([]string, error) {
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	text, ok, err := store.Setting(ctx, settingLeftovers)
	if err != nil {
		return nil, err
	}
	var noted []string
	if ok {
		if err := json.Unmarshal([]byte(text), &noted); err != nil {
			return nil, fmt.Errorf("metastore %s: setting %s: %w", store.URI(), settingLeftovers, err)
		}
	}
	for _, p := range given {
		if !slices.Contains(noted, p) && len(knownLeftovers([]string{p})) == 0 && !there(p) {
			return nil, &exitError{exitRefused, fmt.Errorf("--leftover %s: there is nothing%s; nothing was done",
				claviger.Printable(p), claviger.DidYouMean(p, beside(p)))}
		}
	}
	all := slices.Clone(noted)
	for _, p := range slices.Concat(namedLeftovers(s.Conf), given) {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if len(all) == len(noted) {
		return all, nil
	}
	b, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return all, store.SetSetting(ctx, settingLeftovers, string(b))
}

func there(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// beside returns the paths of what is in the folder of p.
func beside(p string) (paths []string) {
	entries, _ := os.ReadDir(filepath.Dir(p)) // none: nothing is near
	for _, e := range entries {
		paths = append(paths, filepath.Join(filepath.Dir(p), e.Name()))
	}
	return paths
}

// knownLeftovers says which of the paths are on this host.
func knownLeftovers(paths []string) []migrate.Leftover {
	var list []migrate.Leftover
	for _, p := range paths {
		p, what := siteIn(p)
		_, err := os.Lstat(p)
		if err != nil && what == leftSite {
			_, err = os.Lstat(shreddingOf(p))
		}
		if err == nil && !(emptyFolder(p) && syscall.Access(filepath.Dir(p), 2) != nil) { // one that we cannot remove is done with
			list = append(list, migrate.Leftover{Path: p, What: what, Secret: true})
		}
	}
	return list
}

// leftovers is knownLeftovers, and what may be one beside them.
func (s *service) leftovers(paths []string) []migrate.Leftover {
	list := knownLeftovers(paths)
	guess := func(p, what string) {
		if _, err := os.Lstat(p); err == nil && !slices.ContainsFunc(list, func(l migrate.Leftover) bool { return l.Path == p }) {
			list = append(list, migrate.Leftover{Path: p, What: what})
		}
	}
	guess(usualFolder, leftGuess)
	// Copied over a folder of that name, scp -r makes a folder in it.
	guess("/var/lib/kms-keytrustee/kms-keytrustee/keytrustee/.keytrustee", leftGuess)
	if st, err := sslStores(s.Conf, s.Log, "hadoop.ssl.client.conf", "ssl-client.xml"); err == nil { // else there is no store to name
		if trust, whence, err := st.clientTrust(); err == nil && whence != "" {
			guess(trust.Path, leftTrust)
		}
	}
	return list
}

// siteIn tells kts-site.xml from a folder, also where its folder is named.
func siteIn(p string) (file, what string) {
	if filepath.Base(p) == siteFile {
		return p, leftSite
	}
	for _, in := range []string{filepath.Join(p, siteFile), shreddingOf(filepath.Join(p, siteFile))} {
		if st, err := os.Lstat(in); err == nil && st.Mode().IsRegular() {
			return filepath.Join(p, siteFile), leftSite
		}
	}
	return p, leftFolder
}

const siteFile = "kts-site.xml"

// keytrusteeFiles are the files of a .keytrustee folder that are known, as patterns,
// the private keys first: Cloudera's, ours, and what GnuPG 1 and 2 keep beside them.
var keytrusteeFiles = []string{
	trustee.PrivateRing, trustee.PrivateRing + "~", trustee.PrivateRing + ".new", "." + trustee.PrivateRing + "-*", "." + trustee.PrivateRing + ".new-*",
	"private-keys-v1.d/*.key", "openpgp-revocs.d/*.rev",
	".ssl/ssl-cert-keytrustee-pk.pem", ".ssl/ssl-cert-keytrustee.pem", ".ssl/ssl-cert-keytrustee-ca.pem",
	trustee.ConfFile, "." + trustee.ConfFile + "-*", trustee.PublicRing, trustee.PublicRing + "~", "." + trustee.PublicRing + "-*",
	"pubring.kbx", "pubring.kbx~", "trustdb.gpg", "random_seed", "gpg.conf", "gpg-agent.conf", ".gpg-v21-migrated", "newest.json", ".newest.json-*",
	keytrustee.ServedFile, "." + keytrustee.ServedFile + "-*", keytrustee.LockFile,
}

// keytrusteeFolders are those in it.
var keytrusteeFolders = []string{"private-keys-v1.d", "openpgp-revocs.d", ".ssl"}

// shredder overwrites and removes. It opens what it removes by descriptors below one
// folder, and touches plain files with one name only: who can write into a folder
// must not be able to make us overwrite a file elsewhere.
type shredder struct {
	root *os.Root
	left []string // what stays, with the reason
}

// overwriting says what shredding is worth.
const overwriting = "Files are overwritten once and removed. On SSDs, on copy-on-write file systems (btrfs, ZFS, overlays) and where there are snapshots or backups, the old bytes may stay readable nevertheless: " +
	"take the organization's auth secret and the client at the Key Trustee Server out of use as well"

// shredFolder shreds the known files of a folder, and removes it if nothing else is
// in it. What a run that was killed has left is found by the next.
func shredFolder(dir string) (left []string, err error) {
	s, err := openShredder(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.root.Close()) }()
	if _, err := s.root.Lstat("keytrustee.db"); err == nil {
		return nil, fmt.Errorf("%s holds keytrustee.db: it is the folder of a Key Trustee Server, not a copy of a KMS's, and is not touched", dir)
	}
	if _, err := s.root.Lstat(trustee.PrivateRing); errors.Is(err, fs.ErrNotExist) && filepath.Base(dir) != ".keytrustee" {
		return nil, fmt.Errorf("%s is not named .keytrustee and holds no %s: it is not touched", dir, trustee.PrivateRing)
	}
	if _, err := keytrustee.Doubt(dir); err != nil {
		return nil, err
	}
	// Until all is done: a KMS that starts from the folder in between would make keys with
	// what is destroyed.
	release, err := owner.Claim(filepath.Join(dir, keytrustee.LockFile), dir, owner.Self("claviger migrate finish --shred", ""))
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
		if err := s.root.Remove(sub); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return s.left, err
		}
	}
	if len(s.left) > 0 {
		return s.left, nil
	}
	if err := removeEmpty(dir); !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	return nil, nil // an empty folder has no secret; emptyFolder says that it is there
}

// emptyFolder reports whether the path is a folder without files.
func emptyFolder(p string) bool {
	list, err := os.ReadDir(p)
	return err == nil && len(list) == 0
}

// removeEmpty removes a folder, and makes that durable.
func removeEmpty(dir string) error {
	return durable.Remove(dir) // an empty one; nothing else can be removed so
}

// shreddingOf is what a kts-site.xml is renamed to before it is overwritten: one that
// was overwritten and not removed could no longer be told from another file.
func shreddingOf(file string) string {
	return filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".shredding")
}

// shredSite shreds kts-site.xml, if it is one, and what a run that was killed has made
// of it.
func shredSite(file string) (left []string, err error) {
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
		return nil, fmt.Errorf("%s has no property cloudera.trustee.keyprovider.*: it is no copy of kts-site.xml, and is not touched", file)
	}
	if err := s.root.Rename(name, doomed); err != nil {
		return nil, err
	}
	return s.left, s.shred(doomed)
}

// openShredder opens a folder that is one itself, not a link to one.
func openShredder(dir string) (*shredder, error) {
	before, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	if !before.IsDir() {
		return nil, fmt.Errorf("%s is %s, no folder: it is not touched", dir, kindOfFile(before))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	after, err := root.Stat(".")
	if err != nil || !os.SameFile(before, after) {
		return nil, errors.Join(fmt.Errorf("%s was replaced meanwhile: it is not touched", dir), err, root.Close())
	}
	return &shredder{root: root}, nil
}

func kindOfFile(st fs.FileInfo) string {
	if st.Mode()&fs.ModeSymlink != 0 {
		return "a symbolic link"
	}
	return "a file of type " + st.Mode().Type().String()
}

// plain returns a file that is one, with one name; nil where there is none, or where
// it must stay, which is told of.
func (s *shredder) plain(name string) (fs.FileInfo, error) {
	st, err := s.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing to do, and no error
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		s.left = append(s.left, name+" is "+kindOfFile(st))
		return nil, nil
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 {
		s.left = append(s.left, fmt.Sprintf("%s has %d names (hard links), and overwriting it would overwrite them all: find the others (find / -xdev -inum %d)", name, sys.Nlink, sys.Ino))
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
	// O_NONBLOCK: if it became a pipe meanwhile, nobody waits for its reader.
	f, err := s.root.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // closed below, where it matters
	now, err := f.Stat()
	if err != nil || !os.SameFile(st, now) {
		return errors.Join(fmt.Errorf("%s was replaced meanwhile: it is not touched", name), err)
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
