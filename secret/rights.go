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
)

// Rights says to whom a file belongs: "root:softhsm, mode 0770"; "" where the system does
// not say.
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

// Admit says of a refusal by the system which file or folder above it keeps this process's
// user out, to whom that belongs, what the user needs, and how to have it; "" where it is
// none, or nothing keeps the user out any more.
func Admit(err error) string {
	var at *fs.PathError
	if !errors.Is(err, fs.ErrPermission) || !errors.As(err, &at) {
		return ""
	}
	path, need := shutAt(at.Path)
	if path == "" {
		return ""
	}
	info, serr := os.Stat(path)
	if serr != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s belongs to %s, and user %s needs to %s it: %s", path, Rights(path), ourselves(), need.what,
		ways(path, info, int(stat.Uid), int(stat.Gid), need))
}

// right is what a process needs of a file: the bits of one class.
type right struct {
	what string
	bits fs.FileMode
}

var (
	toRead  = right{"read", 4}
	toWrite = right{"write to", 6}
	toEnter = right{"enter", 1}
	toList  = right{"list and enter", 5}
	toMake  = right{"make files in", 7}
)

// shutAt finds what this process lacks on the way to a file; "" is nothing.
func shutAt(path string) (string, right) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", right{}
	}
	dirs := []string{}
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	for _, dir := range slices.Backward(dirs) {
		if denied(dir, 1) {
			return dir, toEnter
		}
	}
	info, err := os.Stat(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if dir := filepath.Dir(abs); denied(dir, 2) {
			return dir, toMake
		}
	case err != nil:
	case info.IsDir() && denied(abs, 5):
		return abs, toList
	case info.IsDir() && denied(abs, 2):
		return abs, toMake
	case denied(abs, 4):
		return abs, toRead
	case denied(abs, 2):
		return abs, toWrite
	}
	return "", right{}
}

// denied asks the system whether it refuses this process a right to a file: 4 to read, 2 to
// write, 1 to enter, or their sum.
func denied(path string, bits uint32) bool {
	return errors.Is(syscall.Access(path, bits), fs.ErrPermission)
}

// nobody is a user that several services may share: it is given no right to a file.
const nobody = 65534

// ways are the commands by which this process's user gets a right to a file, the narrowest
// first. A mode alone helps only the owner and members of the group: a group that the user
// is not in has to be changed, or joined. Where another user seems to be the server's, to
// run as that one comes first, and the rest is for where it is not.
func ways(path string, info fs.FileInfo, uid, gid int, need right) string {
	us := ourselves()
	if uid == os.Geteuid() {
		return fmt.Sprintf("chmod u+%s %s", letters(need.bits), path)
	}
	first := ""
	switch name, theirs := groupsUser(gid); {
	case uid != 0:
		first = fmt.Sprintf("run as its owner (sudo -u %s)", userName(uid))
	case theirs:
		first = fmt.Sprintf("run as the server's user (sudo -u %s)", name)
	case os.Geteuid() == nobody:
		first = "run as the server's user"
	}
	if os.Geteuid() == nobody {
		return first
	}
	var list []string
	group := groupName(gid)
	switch granted := info.Mode().Perm()>>3&need.bits == need.bits; {
	case inGroup(gid):
		list = append(list, fmt.Sprintf("chmod g+%s %s", letters(need.bits), path))
	case granted && gid != 0:
		list = append(list, fmt.Sprintf("usermod -aG %s %s, and start the process anew", group, us))
	case uid == 0 && (need == toEnter || need == toRead && filepath.Ext(path) == ".xml"):
		// Configuration stays root's: the server need not be able to change it.
		list = append(list, fmt.Sprintf("chgrp %[1]s %[3]s && chmod g+%[2]s %[3]s", groupName(os.Getegid()),
			letters(need.bits), path))
	}
	rest := strings.Join(append(list, fmt.Sprintf("chown %s %s", us, path)), "; or ")
	if first == "" {
		return rest
	}
	return fmt.Sprintf("%s; or, where %s is the server's user, %s", first, us, rest)
}

// groupsUser returns the user of a group's name, where that is another one than this
// process's and not root.
func groupsUser(gid int) (name string, ok bool) {
	g, err := user.LookupGroupId(strconv.Itoa(gid))
	if err != nil || gid == 0 {
		return "", false
	}
	u, err := user.Lookup(g.Name)
	return g.Name, err == nil && u.Uid != strconv.Itoa(os.Geteuid())
}

// letters are bits as chmod has them: 5 is "rx".
func letters(bits fs.FileMode) string {
	text := ""
	for i, l := range []string{"r", "w", "x"} {
		if bits&(4>>i) != 0 {
			text += l
		}
	}
	return text
}

func inGroup(gid int) bool {
	if gid == os.Getegid() {
		return true
	}
	groups, err := os.Getgroups()
	return err == nil && slices.Contains(groups, gid)
}

func groupName(gid int) string {
	id := strconv.Itoa(gid)
	if g, err := user.LookupGroupId(id); err == nil && !strings.ContainsAny(g.Name, " \n") {
		return g.Name
	}
	return id
}
