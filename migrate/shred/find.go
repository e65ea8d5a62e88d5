package shred

import (
	"os"
	"path/filepath"
	"syscall"

	"claviger/migrate"
)

// The kinds of leftovers, in migrate.Leftover.What.
const (
	FolderCopy = "a copy of the Key Trustee KMS's .keytrustee folder, with its private OpenPGP keys"
	SiteCopy   = "a copy of kts-site.xml, with the organization's auth secret"
)

const siteFile = "kts-site.xml"

// Known returns the leftovers among paths: .keytrustee folders, and kts-site.xml by its own path or by that of its
// folder. It leaves out an empty folder that this user cannot remove, because nothing secret is in it.
func Known(paths []string) []migrate.Leftover {
	var list []migrate.Leftover
	for _, p := range paths {
		p, what := siteIn(p)
		_, err := os.Lstat(p)
		if err != nil && what == SiteCopy {
			_, err = os.Lstat(shreddingOf(p))
		}
		if err == nil && !(emptyFolder(p) && syscall.Access(filepath.Dir(p), 2) != nil) {
			list = append(list, migrate.Leftover{Path: p, What: what, Secret: true})
		}
	}
	return list
}

// siteIn reports whether p is kts-site.xml, the folder of such a file, or another folder.
func siteIn(p string) (file, what string) {
	if filepath.Base(p) == siteFile {
		return p, SiteCopy
	}
	for _, in := range []string{filepath.Join(p, siteFile), shreddingOf(filepath.Join(p, siteFile))} {
		if st, err := os.Lstat(in); err == nil && st.Mode().IsRegular() {
			return filepath.Join(p, siteFile), SiteCopy
		}
	}
	return p, FolderCopy
}

// shreddingOf returns the name that a kts-site.xml gets before it is overwritten. Without the new name, a file that
// was overwritten and not removed could not be recognized later.
func shreddingOf(file string) string {
	return filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".shredding")
}

// emptyFolder reports whether the path is a folder without files.
func emptyFolder(p string) bool {
	list, err := os.ReadDir(p)
	return err == nil && len(list) == 0
}
