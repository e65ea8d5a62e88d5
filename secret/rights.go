package secret

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"claviger/shellword"
)

// Rights returns the owner, group and mode of a file, as in "root:softhsm, mode 0770". It returns "" if it cannot read
// them.
func Rights(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s:%s, mode %04o", userName(int(stat.Uid)), groupName(int(stat.Gid)), info.Mode().Perm())
}

// Admit returns advice for an error of kind "permission denied": which file or folder denies access to this process's
// user, its owner, the missing right, and commands that grant it. It returns "" for other errors, and if the access is
// allowed now.
func Admit(err error) string {
	var at *fs.PathError
	if !errors.Is(err, fs.ErrPermission) || !errors.As(err, &at) {
		return ""
	}
	self := Self()
	path, need := self.missingRight(at.Path)
	if path == "" {
		return ""
	}
	l := self.lacking(path, need)
	if l == nil {
		return ""
	}
	return l.Text + ": " + l.Cure
}

// right is a right to a file.
type right struct {
	verb string      // for messages
	bits fs.FileMode // mode bits of one class
}

var (
	toRead  = right{"read", 4}
	toWrite = right{"write to", 6}
	toEnter = right{"enter", 1}
	toList  = right{"list and enter", 5}
	toMake  = right{"make files in", 7}
)

// closedFolder returns the first folder above a file that the user may not enter, or "".
func (u User) closedFolder(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	dirs := []string{}
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	for _, dir := range slices.Backward(dirs) {
		if u.denied(dir, 1) {
			return dir
		}
	}
	return ""
}

// missingRight returns the first folder above a file, or the file, to which the user lacks a right, and that right. It
// returns "" if no right is missing.
func (u User) missingRight(path string) (string, right) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", right{}
	}
	if dir := u.closedFolder(abs); dir != "" {
		return dir, toEnter
	}
	info, err := os.Stat(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if dir := filepath.Dir(abs); u.denied(dir, 2) {
			return dir, toMake
		}
	case err != nil:
	case info.IsDir() && u.denied(abs, 5):
		return abs, toList
	case info.IsDir() && u.denied(abs, 2):
		return abs, toMake
	case u.denied(abs, 4):
		return abs, toRead
	case u.denied(abs, 2):
		return abs, toWrite
	}
	return "", right{}
}

// denied reports whether the system denies this process a right to a file: 4 to read, 2 to write, 1 to enter, or their
// sum.
func denied(path string, bits uint32) bool {
	return errors.Is(syscall.Access(path, bits), fs.ErrPermission)
}

// nobody is the number of the user nobody. Several services may run as nobody, so no command grants it a right.
const nobody = 65534

// cures returns commands that give the user a right to a file, beginning with the one that changes least. A
// mode helps only the owner and the members of the group. Otherwise the file needs another group, or the user must join
// the group. If another user seems to be the server's user, the first advice is to run as that user.
func (u User) cures(path string, info fs.FileInfo, uid, gid int, need right) string {
	self, quoted := u.Name, shellword.Quote(path)
	if uid == u.uid {
		return fmt.Sprintf("chmod u+%s %s", letters(need.bits), quoted)
	}
	first := ""
	switch name, hasUser := u.groupsUser(gid); {
	case uid != 0:
		first = fmt.Sprintf("run as its owner (sudo -u %s)", userName(uid))
	case hasUser:
		first = fmt.Sprintf("run as the server's user (sudo -u %s)", name)
	case u.uid == nobody:
		first = "run as the server's user"
	}
	if u.uid == nobody {
		return first
	}
	if commonFolder(path, uid) {
		if first != "" {
			first += "; or "
		}
		return first + "leave the folder as it is, because other users and programs rely on it: name a file " +
			"elsewhere (SoftHSM reads SOFTHSM2_CONF, and otherwise a file below HOME), or move the file"
	}
	var list []string
	group := groupName(gid)
	switch granted := info.Mode().Perm()>>3&need.bits == need.bits; {
	case u.inGroup(gid):
		list = append(list, fmt.Sprintf("chmod g+%s %s", letters(need.bits), quoted))
	case granted && gid != 0:
		list = append(list, fmt.Sprintf("usermod -aG %s %s, and restart the process", group, self))
	case uid == 0 && (need == toEnter || need == toRead && filepath.Ext(path) == ".xml"):
		// Root stays the owner of configuration, because the server need not change it.
		list = append(list, fmt.Sprintf("chgrp %[1]s %[3]s && chmod g+%[2]s %[3]s", groupName(u.groups[0]),
			letters(need.bits), quoted))
	}
	rest := strings.Join(append(list, fmt.Sprintf("chown %s %s", self, quoted)), "; or ")
	if first == "" {
		return rest
	}
	return fmt.Sprintf("%s; or, where %s is the server's user, %s", first, self, rest)
}

// systemFolders are folders that no single service may own or open.
var systemFolders = []string{"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt",
	"/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64",
	"/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/sbin", "/usr/share", "/var", "/var/cache", "/var/lib",
	"/var/log", "/var/run", "/var/spool", "/var/tmp"}

// commonFolder reports whether a path is a folder of the system, or its owner's home folder. No advice opens such a
// folder or gives it away: a user with a right to the folder gets far more than the one file that a service needs.
func commonFolder(path string, uid int) bool {
	path = filepath.Clean(path)
	if slices.Contains(systemFolders, path) || filepath.Dir(path) == "/home" {
		return true
	}
	owner, err := user.LookupId(strconv.Itoa(uid))
	return err == nil && filepath.Clean(owner.HomeDir) == path
}

// groupsUser returns the name of a group. ok is true if there is a user of that name other than root and u.
func (u User) groupsUser(gid int) (name string, ok bool) {
	g, err := user.LookupGroupId(strconv.Itoa(gid))
	if err != nil || gid == 0 {
		return "", false
	}
	other, err := user.Lookup(g.Name)
	return g.Name, err == nil && other.Uid != strconv.Itoa(u.uid)
}

// letters returns bits in the form of chmod: 5 is "rx".
func letters(bits fs.FileMode) string {
	text := ""
	for i, l := range []string{"r", "w", "x"} {
		if bits&(4>>i) != 0 {
			text += l
		}
	}
	return text
}

// groupName returns the name of a group, or the number if there is no name that a shell can use.
func groupName(gid int) string {
	id := strconv.Itoa(gid)
	if g, err := user.LookupGroupId(id); err == nil && !strings.ContainsAny(g.Name, " \n") {
		return g.Name
	}
	return id
}
