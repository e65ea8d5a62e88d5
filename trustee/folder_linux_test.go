package trustee

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"claviger"
)

// asOtherUser calls f as a user that is not root. If the test runs as root, only the thread of f changes its user, and
// the thread ends after f. Only the real user changes: access(2) uses it.
func asOtherUser(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // without an Unlock, so the thread ends with the goroutine
		const nobody, same = 65534, ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, same, same); errno != 0 {
			t.Error(errno)
			return
		}
		f()
	}()
	<-done
}

// TestMakeFolderWithoutRights: a folder that cannot be written is refused before an identity is made.
func TestMakeFolderWithoutRights(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.Mkdir(path, 0o500); err != nil {
		t.Fatal(err)
	}
	asOtherUser(t, func() {
		if err := MakeFolder(path); !claviger.Is(err, claviger.Invalid) || !errors.Is(err, fs.ErrPermission) ||
			!strings.Contains(err.Error(), "must be writable") {
			t.Error(err)
		}
	})
}

// TestFolderClosesFiles: LoadFolder leaves no file open.
func TestFolderClosesFiles(t *testing.T) {
	_, path := folder(t)
	if _, err := LoadFolder(path); err != nil {
		t.Fatal(err)
	}
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(open) == 0 {
		t.Fatal(open, err)
	}
	for _, fd := range open {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, path) {
			t.Errorf("%s is open", name)
		}
	}
}
