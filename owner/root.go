package owner

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// RootError says that root does not write beside a file of another user.
type RootError struct {
	File string
	name string // of the file's user
	sudo string // the user as sudo -u takes it
}

func (e *RootError) Error() string {
	return fmt.Sprintf("this process runs as root, and %s belongs to user %s, whose server could not read what root "+
		"makes (files, and objects of a token that keeps them in files); nothing was done: run it as that user (sudo "+
		"-u '%s' ...), or, where root is to run the server, chown -R root %[1]s", e.File, e.name, e.sudo)
}

// RefuseRoot returns a *RootError where root is about to write beside files of another user. What root
// makes is root's: a keystore file that is replaced, a store that is restored, the objects of a token that
// keeps them in files, as SoftHSM does. The server, as that other user, could not read them, and a PKCS#11
// library would report such objects as absent. A missing file counts by its folder. Any other user passes:
// the system refuses what he may not write.
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

// GiveFromRoot gives the file made, where this process runs as root, to the user of the file like.
func GiveFromRoot(made, like string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Stat(like)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	return os.Chown(made, int(owner.Uid), int(owner.Gid))
}
