package secret

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"claviger/shellword"
)

// ExposedCode returns messages about the ways in which a user other than root and u could change a file whose code a
// process of u runs, or put another file in its place: by the mode or owner of the file or of a folder above it. It is
// stricter than Exposed: no group but root's may write. Files that do not exist are skipped.
func (u User) ExposedCode(f File) []string {
	f.Deny = 0o002
	faults := u.Exposed(f)
	for _, path := range append([]string{f.Path}, foldersOf(f.Path)...) {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		group := writingGroup(info)
		if group == "" {
			continue
		}
		what, risk := f.name(), f.Risk
		if path != f.Path {
			what, risk = "folder "+path, "which can replace "+f.name()
		}
		faults = append(faults, fmt.Sprintf("%s may be written by the group %s (mode %04o), %s; cure: chmod g-w %s",
			what, group, info.Mode().Perm(), risk, shellword.Quote(path)))
	}
	return faults
}

// writingGroup returns the group that may write a file, or replace files in a folder; "" if there is none, or only the
// group of root or the owner's own group. Many systems give each user such a group, of the user's name, and let it
// write.
func writingGroup(info fs.FileInfo) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Perm()&0o020 == 0 || stat.Gid == 0 || info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
		return ""
	}
	group := groupName(int(stat.Gid))
	if group == userName(int(stat.Uid)) {
		return ""
	}
	return group
}
