package secret

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"claviger/shellword"
)

// File is a file that other users of this machine must not read or change.
type File struct {
	Path string
	Kind string // kind of file, for messages, where it comes before the path; may be empty
	// Deny has the bits that the mode must not have; 0 means 0o007. In most cases the group may read: Hadoop's keytabs
	// are root:hadoop 0440.
	Deny fs.FileMode
	Risk string // what others could do with a denied bit, for messages; may be empty
}

func (f File) name() string {
	if f.Kind == "" {
		return f.Path
	}
	return f.Kind + " " + f.Path
}

// Refuse returns an error if the file's mode has a bit of Deny. For a missing file, the error wraps fs.ErrNotExist.
func (f File) Refuse() error {
	info, err := os.Stat(f.Path)
	if err != nil {
		return err
	}
	if text := f.modeFault(info, Self()); text != "" {
		return errors.New(text)
	}
	return nil
}

// Exposed returns messages about files that other users could read or change, because of the mode or owner of a file or
// of a folder above it. There is one message for each folder. Files that do not exist or cannot be inspected are
// skipped.
func Exposed(files ...File) []string { return Self().Exposed(files...) }

// Exposed is the function Exposed for files of a server that runs as the user.
func (u User) Exposed(files ...File) []string {
	var faults, folders []string
	within := make(map[string][]string) // names of the files below each folder
	for _, f := range files {
		info, err := os.Stat(f.Path)
		if err != nil {
			continue
		}
		if text := f.modeFault(info, u); text != "" {
			faults = append(faults, text)
		}
		if owner := u.otherOwner(info); owner != "" {
			faults = append(faults,
				fmt.Sprintf("%s belongs to the user %s, who can read and change it; cure: chown %s %s",
					f.name(), owner, u.Name, shellword.Quote(f.Path)))
		}
		for _, dir := range foldersOf(f.Path) {
			if within[dir] == nil {
				folders = append(folders, dir)
			}
			within[dir] = append(within[dir], f.name())
		}
	}
	for _, dir := range folders {
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		content := within[dir][0]
		if more := len(within[dir]) - 1; more > 0 {
			content += fmt.Sprintf(" and %d more files", more)
		}
		// In a folder with the sticky bit, such as /tmp, users can replace only their own files.
		if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			faults = append(faults,
				fmt.Sprintf("folder %s may be written by everybody (mode %04o), who can "+
					"replace %s; cure: chmod o-w %s", dir, info.Mode().Perm(), content, shellword.Quote(dir)))
		}
		if owner := u.otherOwner(info); owner != "" {
			cure := fmt.Sprintf("chown %s %s", u.Name, shellword.Quote(dir))
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && commonFolder(dir, int(stat.Uid)) {
				cure = "move the files to a folder that " + u.Name + " or root owns, and leave this folder as it is"
			}
			faults = append(faults,
				fmt.Sprintf("folder %s belongs to the user %s, who can replace %s; cure: %s", dir, owner, content,
					cure))
		}
	}
	return faults
}

// modeFault returns a message if the mode has a bit of Deny, and "" otherwise.
func (f File) modeFault(info fs.FileInfo, u User) string {
	mode := info.Mode()
	deny := f.Deny
	if deny == 0 {
		deny = 0o007
	}
	bad := mode.Perm() & deny
	if bad == 0 {
		return ""
	}
	users, class, bits := "everybody", "o", bad&0o007
	if bits == 0 {
		users, class, bits = "its group", "g", bad>>3&0o007
	}
	act, right := "run", "x"
	switch {
	case bits&0o004 != 0:
		act, right = "read", "r"
	case bits&0o002 != 0:
		act, right = "written", "w"
	}
	cure := class + "-" + right
	switch deny {
	case 0o007:
		cure = "o="
	case 0o077:
		cure = "go="
	}
	text := fmt.Sprintf("%s may be %s by %s (mode %04o)", f.name(), act, users, mode.Perm())
	if f.Risk != "" {
		text += ", " + f.Risk
	}
	return text + "; cure: " + f.cure(info, u, deny, "chmod "+cure+" "+shellword.Quote(f.Path))
}

// cure returns the commands that correct a mode. If the user can read the file only because of the denied bits, chmod
// alone would lock the user out. Then the file must get another owner or group first.
func (f File) cure(info fs.FileInfo, u User, deny fs.FileMode, chmod string) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || u.IsRoot() || int(stat.Uid) == u.uid {
		return chmod
	}
	after := info.Mode().Perm() &^ deny
	if u.inGroup(int(stat.Gid)) && after&0o040 != 0 {
		return chmod
	}
	if deny&0o040 != 0 { // only the owner may read it
		return fmt.Sprintf("chown %s %s, then %s", u.Name, shellword.Quote(f.Path), chmod)
	}
	return fmt.Sprintf("chgrp %s %s, then chmod 0640 %[2]s (%s, and %s is not in that group)", groupName(u.groups[0]),
		shellword.Quote(f.Path), Rights(f.Path), u.Name)
}

// foldersOf returns the folders above a file, the nearest first. If the path has symbolic links, the folders above the
// target follow.
func foldersOf(path string) []string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	names := []string{abs}
	if real, err := filepath.EvalSymlinks(abs); err == nil && real != abs {
		names = append(names, real)
	}
	var list []string
	seen := make(map[string]bool)
	for _, name := range names {
		for dir := filepath.Dir(name); !seen[dir]; dir = filepath.Dir(dir) {
			seen[dir] = true
			list = append(list, dir)
		}
	}
	return list
}

// otherOwner returns the owner of a file, unless that is root or the user; then it returns "". If the user is root, it
// also returns "", because the files may belong to a server that runs as another user.
func (u User) otherOwner(info fs.FileInfo) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || u.IsRoot() || stat.Uid == 0 || int(stat.Uid) == u.uid {
		return ""
	}
	return userName(int(stat.Uid))
}

// CurrentUser returns the name of the user that this process runs as.
func CurrentUser() string { return userName(os.Geteuid()) }

// Owner returns the name of a file's owner, and "" if the system has no owners.
func Owner(info fs.FileInfo) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return userName(int(stat.Uid))
}

// userName returns the name of a user, or the number if there is no name that a shell can use.
func userName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil && !strings.ContainsAny(u.Username, " \n") {
		return u.Username
	}
	return id
}
