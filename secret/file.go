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
)

// File is a file that others on this machine must not read or change.
type File struct {
	Path string
	What string // what it is, before its path in messages; "" for nothing
	// Deny are the bits that its mode must not have; 0 stands for 0o007. A group may
	// mostly read: Hadoop's keytabs are root:hadoop 0440.
	Deny fs.FileMode
	Harm string // what others could do, behind the fault of the mode; may be empty
}

func (f File) name() string {
	if f.What == "" {
		return f.Path
	}
	return f.What + " " + f.Path
}

// Refuse returns an error where the file's mode gives others what Deny names. A file
// that is not there is an error that wraps fs.ErrNotExist.
func (f File) Refuse() error {
	info, err := os.Stat(f.Path)
	if err != nil {
		return err
	}
	if text := f.modeFault(info); text != "" {
		return errors.New(text)
	}
	return nil
}

// Exposed says what others could do with files: by their modes and owners, and by the
// folders that they lie in, each of which is named once. A file that is not there, or
// cannot be asked about, is left out.
func Exposed(files ...File) []string {
	var faults, folders []string
	within := make(map[string][]string) // names of files by folder
	for _, f := range files {
		info, err := os.Stat(f.Path)
		if err != nil {
			continue
		}
		if text := f.modeFault(info); text != "" {
			faults = append(faults, text)
		}
		if owner := stranger(info); owner != "" {
			faults = append(faults,
				fmt.Sprintf("%s belongs to the user %s, who can read and change it; cure: chown %s %s",
					f.name(), owner, ourselves(), f.Path))
		}
		for _, dir := range above(f.Path) {
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
		what := within[dir][0]
		if more := len(within[dir]) - 1; more > 0 {
			what += fmt.Sprintf(" and %d more files", more)
		}
		// In a folder with the sticky bit, such as /tmp, each user moves his own files alone.
		if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			faults = append(faults,
				fmt.Sprintf("folder %s may be written by everybody (mode %04o), who can "+
					"replace %s; cure: chmod o-w %s", dir, info.Mode().Perm(), what, dir))
		}
		if owner := stranger(info); owner != "" {
			faults = append(faults,
				fmt.Sprintf("folder %s belongs to the user %s, who can replace %s; cure: chown %s %s", dir,
					owner, what, ourselves(), dir))
		}
	}
	return faults
}

// modeFault says what of Deny a mode has.
func (f File) modeFault(info fs.FileInfo) string {
	mode := info.Mode()
	deny := f.Deny
	if deny == 0 {
		deny = 0o007
	}
	bad := mode.Perm() & deny
	if bad == 0 {
		return ""
	}
	who, class, bits := "everybody", "o", bad&0o007
	if bits == 0 {
		who, class, bits = "its group", "g", bad>>3&0o007
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
	text := fmt.Sprintf("%s may be %s by %s (mode %04o)", f.name(), act, who, mode.Perm())
	if f.Harm != "" {
		text += ", " + f.Harm
	}
	return text + "; cure: " + f.closing(info, deny, "chmod "+cure+" "+f.Path)
}

// closing is the cure of a mode. Where this process reads the file by the very bits that
// must go, chmod alone would shut it out: the file has to be given to its user or group
// first.
func (f File) closing(info fs.FileInfo, deny fs.FileMode, chmod string) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if us := os.Geteuid(); !ok || us == 0 || int(stat.Uid) == us {
		return chmod
	}
	after := info.Mode().Perm() &^ deny
	if inGroup(int(stat.Gid)) && after&0o040 != 0 {
		return chmod
	}
	if deny&0o040 != 0 { // the owner alone may read it
		return fmt.Sprintf("chown %s %s, then %s", ourselves(), f.Path, chmod)
	}
	return fmt.Sprintf("chgrp %s %s, then chmod 0640 %[2]s (%s, of which %s is no member)", groupName(os.Getegid()),
		f.Path, Rights(f.Path), ourselves())
}

// above are the folders in which a file lies, the nearest first: those of its name, and
// where symbolic links lead elsewhere, those of the file itself.
func above(path string) []string {
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

// stranger names the owner of a file that belongs neither to root nor to the user that
// this process runs as. Root cannot tell: the files may be a server's, which runs as another.
func stranger(info fs.FileInfo) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	us := os.Geteuid()
	if !ok || us == 0 || stat.Uid == 0 || int(stat.Uid) == us {
		return ""
	}
	return userName(int(stat.Uid))
}

func ourselves() string { return userName(os.Geteuid()) }

// Ourselves names the user that this process runs as.
func Ourselves() string { return ourselves() }

// Owner names the user that a file belongs to; "" where the system does not say.
func Owner(info fs.FileInfo) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return userName(int(stat.Uid))
}

func userName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil && !strings.ContainsAny(u.Username, " \n") {
		return u.Username
	}
	return id
}
