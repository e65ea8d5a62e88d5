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
	"syscall"
)

// User is a user of this machine. Its methods find the rights to files that the user lacks.
type User struct {
	// Name is the name of the user, or the number if there is no name that a shell can use.
	Name   string
	uid    int
	groups []int // the first is the user's own group
}

// Self is the user that this process runs as.
func Self() User {
	u := User{Name: CurrentUser(), uid: os.Geteuid(), groups: []int{os.Getegid()}}
	if more, err := os.Getgroups(); err == nil {
		u.groups = append(u.groups, more...)
	}
	return u
}

// UserNamed returns the user with a name or a number.
func UserNamed(name string) (User, error) {
	found, err := user.Lookup(name)
	if err != nil {
		byNumber, failed := user.LookupId(name)
		if failed != nil {
			return User{}, err
		}
		found = byNumber
	}
	uid, err := strconv.Atoi(found.Uid)
	if err != nil {
		return User{}, err
	}
	u := User{Name: userName(uid), uid: uid}
	ids, err := found.GroupIds()
	if err != nil {
		return User{}, fmt.Errorf("the groups of user %s: %w", name, err)
	}
	for _, id := range append([]string{found.Gid}, ids...) {
		gid, err := strconv.Atoi(id)
		if err != nil {
			return User{}, err
		}
		u.groups = append(u.groups, gid)
	}
	return u, nil
}

// IsSelf reports whether this process runs as the user.
func (u User) IsSelf() bool { return u.uid == os.Geteuid() }

// IsRoot reports whether the user is root, who may read and write every file.
func (u User) IsRoot() bool { return u.uid == 0 }

// inGroup reports whether the user is in a group.
func (u User) inGroup(gid int) bool { return slices.Contains(u.groups, gid) }

// denied reports whether the system denies the user a right to a file: 4 to read, 2 to write, 1 to enter, or their sum.
// For the user of this process the system answers. For another user, owner and mode of the file decide.
func (u User) denied(path string, bits uint32) bool {
	if u.IsSelf() {
		return denied(path, bits)
	}
	info, err := os.Stat(path)
	if err != nil || u.IsRoot() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	granted := uint32(info.Mode().Perm())
	switch {
	case int(stat.Uid) == u.uid:
		granted >>= 6
	case u.inGroup(int(stat.Gid)):
		granted >>= 3
	}
	return granted&bits != bits
}

// Lacking is a right to a file that a user needs and does not have.
type Lacking struct {
	Text string // which file or folder, its owner and mode, and the right
	Cure string // commands that grant the right
}

// LacksRead returns the right that a user lacks to read a file, and nil if the user can read it. A file that does not
// exist lacks nothing.
func (u User) LacksRead(path string) *Lacking { return u.lacks(path, toRead) }

// LacksList is LacksRead for a folder that the user must list.
func (u User) LacksList(path string) *Lacking { return u.lacks(path, toList) }

// LacksWrite returns the right that a user lacks to write to a file. If the file does not exist, the user needs the
// right to make files in its folder.
func (u User) LacksWrite(path string) *Lacking { return u.lacks(path, toWrite) }

// LacksMake returns the right that a user lacks to make files in a folder.
func (u User) LacksMake(folder string) *Lacking { return u.lacks(folder, toMake) }

func (u User) lacks(path string, need right) *Lacking {
	at, need := u.missing(path, need)
	if at == "" {
		return nil
	}
	return u.lacking(at, need)
}

// lacking describes a right to a file or folder that the user lacks; nil if the file cannot be looked at.
func (u User) lacking(at string, need right) *Lacking {
	info, err := os.Stat(at)
	if err != nil {
		return nil
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return &Lacking{
		Text: fmt.Sprintf("%s belongs to %s, and user %s needs to %s it", at, Rights(at), u.Name, need.verb),
		Cure: u.cures(at, info, int(stat.Uid), int(stat.Gid), need),
	}
}

// missing returns the first folder above a file, or the file, to which the user lacks a right, and that right. It
// returns "" if the user has the right that is needed.
func (u User) missing(path string, need right) (string, right) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && need != toWrite {
		return "", right{}
	}
	if folder := u.closedFolder(path); folder != "" {
		return folder, toEnter
	}
	switch {
	case err != nil && need == toWrite:
		return u.missing(filepath.Dir(path), toMake)
	case err != nil:
	case u.denied(path, bitsOf(need, info)):
		return path, need
	}
	return "", right{}
}

// bitsOf returns the bits of a right to a file or folder.
func bitsOf(need right, info fs.FileInfo) uint32 {
	if info.IsDir() && need == toRead {
		return uint32(toList.bits)
	}
	return uint32(need.bits)
}
