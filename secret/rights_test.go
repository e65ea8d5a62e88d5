package secret_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// asOpener names, for the test binary run as another user, the file to open.
const asOpener = "CLAVIGER_TEST_OPEN"

// TestAdmit: each command that a message gives for a file that was refused is run, and the
// file opens then. A mode is no cure for who is neither owner nor in the group.
func TestAdmit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("runs commands as root, and a program as another user; `make test` as root has it")
	}
	const us, group, other, named = 1, 54321, 12345, 2 // 1 and 2 are daemon and bin, each with a group of its name
	base, binary := programForOthers(t)
	self, err := user.LookupId(strconv.Itoa(us))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "dir")
	file := filepath.Join(dir, "file")
	for _, tt := range []struct {
		name             string
		dirUID, dirGID   int
		dirMode          fs.FileMode
		fileUID, fileGID int
		fileMode         fs.FileMode
		write            bool
		culprit, need    string
		ways             []string
	}{
		{"root's", 0, 0, 0o755, 0, 0, 0o600, false, file, "read", []string{"chown US FILE"}},
		{"another group's", 0, 0, 0o755, 0, group, 0o640, false, file, "read",
			[]string{"usermod -aG 54321 US, and start the process anew", "chown US FILE"}},
		{"the group's of another user's name", 0, 0, 0o755, 0, named, 0o640, false, file, "read",
			[]string{"run as the server's user (sudo -u bin)",
				"where US is the server's user, usermod -aG bin US, and start the process anew", "chown US FILE"}},
		{"our group's, without the bit", 0, 0, 0o755, 0, us, 0o600, false, file, "read",
			[]string{"chmod g+r FILE", "chown US FILE"}},
		{"ours, without the bit", 0, 0, 0o755, us, us, 0o200, false, file, "read", []string{"chmod u+r FILE"}},
		{"another user's", 0, 0, 0o755, other, other, 0o600, false, file, "read",
			[]string{"run as its owner (sudo -u 12345)", "where US is the server's user, chown US FILE"}},
		{"read-only", 0, 0, 0o755, 0, us, 0o640, true, file, "write to",
			[]string{"chmod g+rw FILE", "chown US FILE"}},
		{"in a folder of root's", 0, 0, 0o700, us, us, 0o600, false, dir, "enter",
			[]string{"chgrp US DIR && chmod g+x DIR", "chown US DIR"}},
		{"in a folder of another group's", 0, group, 0o750, us, us, 0o600, false, dir, "enter",
			[]string{"usermod -aG 54321 US, and start the process anew", "chown US DIR"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			arrange := func() {
				t.Helper()
				if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700), os.WriteFile(file, nil, 0o600),
					os.Chown(file, tt.fileUID, tt.fileGID), os.Chmod(file, tt.fileMode),
					os.Chown(dir, tt.dirUID, tt.dirGID), os.Chmod(dir, tt.dirMode)); err != nil {
					t.Fatal(err)
				}
			}
			open := func(groups ...uint32) string {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), binary)
				cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s", asOpener, file),
					fmt.Sprintf("CLAVIGER_TEST_WRITE=%v", tt.write))
				cmd.Dir = "/"
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: us, Gid: us,
					Groups: groups}}
				out, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				return string(out)
			}
			arrange()
			text := open()
			head, list, _ := strings.Cut(text, " it: ")
			if !strings.HasPrefix(head, tt.culprit+" belongs to ") || !strings.Contains(head, ", mode 0") ||
				!strings.HasSuffix(head, "user "+self.Username+" needs to "+tt.need) {
				t.Fatalf("%q", text)
			}
			ways := strings.NewReplacer("FILE", file, "DIR", dir, "US", self.Username).
				Replace(strings.ReplaceAll(strings.Join(tt.ways, "; or "), "; or where ", "; or, where "))
			if list != ways {
				t.Errorf("%q, want %q", list, ways)
			}
			for way := range strings.SplitSeq(strings.ReplaceAll(list, "; or, ", "; or "), "; or ") {
				arrange()
				var groups []uint32
				if _, conditional, ok := strings.Cut(way, " is the server's user, "); ok {
					way = conditional
				}
				switch command, _, _ := strings.Cut(way, ","); {
				case strings.HasPrefix(way, "run as"):
					continue
				case strings.HasPrefix(way, "usermod"): // as if the user were in it
					groups = []uint32{group, named}
				default:
					if out, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
						t.Fatalf("%s: %v %s", command, err, out)
					}
				}
				if still := open(groups...); still != "" {
					t.Errorf("after %q: %q", way, still)
				}
			}
		})
	}
}

// TestAdmitKeepsOwners: a site file stays root's and is opened to the server's group; a user
// that services share is given nothing.
func TestAdmitKeepsOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives files to other users, and runs a program as them; `make test` as root has it")
	}
	base, binary := programForOthers(t)
	for _, tt := range []struct {
		name      string
		us, owner int
		want      string
	}{
		{"site.xml", 1, 0, "chgrp daemon FILE && chmod g+r FILE; or chown daemon FILE"},
		{"pin", 1, 0, "chown daemon FILE"},
		{"site.xml", 65534, 0, "run as the server's user"},
		{"pin", 65534, 2, "run as its owner (sudo -u bin)"},
	} {
		file := filepath.Join(base, tt.name)
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chown(file, tt.owner, 0)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), binary)
		cmd.Env, cmd.Dir = append(os.Environ(), asOpener+"="+file, "CLAVIGER_TEST_WRITE=false"), "/"
		//nolint:gosec // constants
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(tt.us), Gid: uint32(tt.us)}}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, ways, _ := strings.Cut(string(out), " it: "); ways != strings.ReplaceAll(tt.want, "FILE", file) {
			t.Errorf("%s as uid %d: %q, want %q", tt.name, tt.us, ways, tt.want)
		}
	}
}

// TestClosingKeepsUsIn: a server reads a file by the bit of all others; what closes it to
// them must leave the server in.
func TestClosingKeepsUsIn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("runs a program as another user; `make test` as root has it")
	}
	const us = 65534
	base, binary := programForOthers(t)
	file := filepath.Join(base, "keytab")
	for _, tt := range []struct {
		gid  int
		mode fs.FileMode
	}{{0, 0o644}, {us, 0o644}, {us, 0o604}, {0, 0o604}, {0, 0o444}} {
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chown(file, 0, tt.gid),
			os.Chmod(file, tt.mode)); err != nil {
			t.Fatal(err)
		}
		ask := func(name string) string {
			t.Helper()
			cmd := exec.CommandContext(t.Context(), binary)
			cmd.Env = append(os.Environ(), name+"="+file)
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: us, Gid: us}}
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			return string(out)
		}
		fault := ask(asOther)
		_, cure, ok := strings.Cut(fault, "; cure: ")
		if !ok {
			t.Fatalf("mode %04o, group %d: %q", tt.mode, tt.gid, fault)
		}
		cure, _, _ = strings.Cut(cure, " (")
		if out, err := exec.CommandContext(t.Context(), "sh", "-c",
			strings.ReplaceAll(cure, ", then ", " && ")).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", cure, err, out)
		}
		if got := ask(asOpener); got != "" {
			t.Errorf("mode %04o, group %d, after %q: %s", tt.mode, tt.gid, cure, got)
		}
		if got := ask(asOther); got != "" {
			t.Errorf("mode %04o, group %d, after %q: %s", tt.mode, tt.gid, cure, got)
		}
	}
}
