package owner

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"claviger/shellword"
)

// RootError says that a command of root was refused, because a file belongs to another user.
type RootError struct {
	File string
	User string // the file's owner
	sudo string // the owner, in the form of sudo -u
}

func (e *RootError) Error() string {
	return fmt.Sprintf("this process runs as root, and %s belongs to user %s, whose server could not read what root "+
		"makes (files, and objects of a token that keeps them in files); nothing was done: run it as that user (sudo "+
		"-u %s ...), or, where root is to run the server, chown -R root %s", e.File, e.User, shellword.Quote(e.sudo),
		shellword.Quote(e.File))
}

// RefuseRoot returns a *RootError if this process runs as root, and one of the files belongs to another user. For a
// file that does not exist, the owner of its folder counts. It returns nil for any other user, because the system
// refuses writes without the right to them.
//
// Root owns the files that it makes: a keystore file that it replaces, a store that it restores, the objects of a token
// that keeps them in files, like SoftHSM. A server of the other user could not read them, and a PKCS#11 library would
// report such objects as absent.
func RefuseRoot(files ...string) error { return refuseRoot(os.Geteuid(), files) }

// refuseRoot is RefuseRoot for a process of the user uid.
func refuseRoot(uid int, files []string) error {
	if uid != 0 {
		return nil
	}
	for _, file := range files {
		st, err := os.Stat(file)
		if err != nil {
			file = filepath.Dir(file)
			if st, err = os.Stat(file); err != nil {
				continue // opening it gives a better error
			}
		}
		owner, ok := st.Sys().(*syscall.Stat_t)
		if !ok || owner.Uid == 0 || st.IsDir() && st.Mode()&os.ModeSticky != 0 {
			continue
		}
		id := strconv.FormatUint(uint64(owner.Uid), 10)
		if u, err := user.LookupId(id); err == nil {
			return &RootError{file, u.Username, u.Username}
		}
		return &RootError{file, id, "#" + id} // sudo takes a number after a #
	}
	return nil
}

// GiveFromRoot gives file to the owner of ownerFrom, if this process runs as root. It gives away only the file that
// root has just made: the owner of the folder could put a link to any file of root in its place meanwhile.
func GiveFromRoot(file, ownerFrom string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Stat(ownerFrom)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	// Not to follow a symbolic link, and not to wait at a named pipe.
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	made, err := f.Stat()
	if err == nil {
		if sys, ok := made.Sys().(*syscall.Stat_t); !ok || !made.Mode().IsRegular() || sys.Nlink != 1 {
			err = fmt.Errorf("%s was replaced, and was not given to the owner of %s", file, ownerFrom)
		} else {
			err = f.Chown(int(owner.Uid), int(owner.Gid))
		}
	}
	return errors.Join(err, f.Close())
}
