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

	"claviger/secret"
)

// asOpener is the variable with the file to open, for the test binary when it runs as another user.
const asOpener = "CLAVIGER_TEST_OPEN"

const (
	admitUser = 1 // daemon, with a group of its name
	admitBin  = 2 // bin, with a group of its name
)

// admitCase is a file that admitUser cannot open.
type admitCase struct {
	name             string
	dirUID, dirGID   int
	dirMode          fs.FileMode
	fileUID, fileGID int
	fileMode         fs.FileMode
	write            bool
	culprit, need    string // DIR or FILE, and the missing right
	ways             []string
}

// TestAdmit runs each command that Admit advises for a file that cannot be opened. The file must open after it.
func TestAdmit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("runs commands as root, and a program as another user; run `make test` as root for it")
	}
	const us, group, other, named = admitUser, 54321, 12345, admitBin
	base, binary := programForOthers(t)
	self, err := user.LookupId(strconv.Itoa(us))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []admitCase{
		{"root's", 0, 0, 0o755, 0, 0, 0o600, false, "FILE", "read", []string{"chown US FILE"}},
		{"another group's", 0, 0, 0o755, 0, group, 0o640, false, "FILE", "read",
			[]string{"usermod -aG 54321 US, and restart the process", "chown US FILE"}},
		{"a group with another user's name", 0, 0, 0o755, 0, named, 0o640, false, "FILE", "read",
			[]string{"run as the server's user (sudo -u bin)",
				"where US is the server's user, usermod -aG bin US, and restart the process", "chown US FILE"}},
		{"our group's, without the bit", 0, 0, 0o755, 0, us, 0o600, false, "FILE", "read",
			[]string{"chmod g+r FILE", "chown US FILE"}},
		{"ours, without the bit", 0, 0, 0o755, us, us, 0o200, false, "FILE", "read", []string{"chmod u+r FILE"}},
		{"another user's", 0, 0, 0o755, other, other, 0o600, false, "FILE", "read",
			[]string{"run as its owner (sudo -u 12345)", "where US is the server's user, chown US FILE"}},
		{"read-only", 0, 0, 0o755, 0, us, 0o640, true, "FILE", "write to",
			[]string{"chmod g+rw FILE", "chown US FILE"}},
		{"in a folder of root's", 0, 0, 0o700, us, us, 0o600, false, "DIR", "enter",
			[]string{"chgrp US DIR && chmod g+x DIR", "chown US DIR"}},
		{"in a folder of another group's", 0, group, 0o750, us, us, 0o600, false, "DIR", "enter",
			[]string{"usermod -aG 54321 US, and restart the process", "chown US DIR"}},
	} {
		dir := filepath.Join(base, "dir")
		a := admitTest{tt, binary, dir, filepath.Join(dir, "file"), self.Username}
		t.Run(tt.name, func(t *testing.T) { a.run(t, group, named) })
	}
}

type admitTest struct {
	admitCase
	binary, dir, file, user string
}

// arrange makes the folder and the file of the case.
func (a *admitTest) arrange(t *testing.T) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(a.dir), os.Mkdir(a.dir, 0o700), os.WriteFile(a.file, nil, 0o600),
		os.Chown(a.file, a.fileUID, a.fileGID), os.Chmod(a.file, a.fileMode),
		os.Chown(a.dir, a.dirUID, a.dirGID), os.Chmod(a.dir, a.dirMode)); err != nil {
		t.Fatal(err)
	}
}

// open opens the file as admitUser with additional groups, and returns the advice of Admit.
func (a *admitTest) open(t *testing.T, groups ...uint32) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), a.binary)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s", asOpener, a.file),
		fmt.Sprintf("CLAVIGER_TEST_WRITE=%v", a.write))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: admitUser, Gid: admitUser,
		Groups: groups}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// judged returns what root says about the rights of admitUser, in the form of Admit.
func (a *admitTest) judged(t *testing.T) string {
	t.Helper()
	u, err := secret.UserNamed(strconv.Itoa(admitUser))
	if err != nil || u.IsSelf() || u.Name != a.user {
		t.Fatalf("%+v, %v", u, err)
	}
	lacks := u.LacksRead(a.file)
	if a.write {
		lacks = u.LacksWrite(a.file)
	}
	if lacks == nil {
		return ""
	}
	return lacks.Text + ": " + lacks.Cure
}

// run compares the advice, and follows each way of it. A way with usermod is tested with groups.
func (a *admitTest) run(t *testing.T, groups ...uint32) {
	a.arrange(t)
	text := a.open(t)
	names := strings.NewReplacer("FILE", a.file, "DIR", a.dir, "US", a.user)
	head, list, _ := strings.Cut(text, " it: ")
	if !strings.HasPrefix(head, names.Replace(a.culprit)+" belongs to ") || !strings.Contains(head, ", mode 0") ||
		!strings.HasSuffix(head, "user "+a.user+" needs to "+a.need) {
		t.Fatalf("%q", text)
	}
	ways := names.Replace(strings.ReplaceAll(strings.Join(a.ways, "; or "), "; or where ", "; or, where "))
	if list != ways {
		t.Errorf("%q, want %q", list, ways)
	}
	if judged := a.judged(t); judged != text {
		t.Errorf("judged by another user: %q, want %q", judged, text)
	}
	for way := range strings.SplitSeq(strings.ReplaceAll(list, "; or, ", "; or "), "; or ") {
		a.arrange(t)
		var member []uint32
		if _, conditional, ok := strings.Cut(way, " is the server's user, "); ok {
			way = conditional
		}
		switch command, _, _ := strings.Cut(way, ","); {
		case strings.HasPrefix(way, "run as"):
			continue
		case strings.HasPrefix(way, "usermod"):
			member = groups
		default:
			if out, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v %s", command, err, out)
			}
		}
		if advice := a.open(t, member...); advice != "" {
			t.Errorf("after %q: %q", way, advice)
		}
		if judged := a.judged(t); judged != "" && member == nil {
			t.Errorf("after %q, judged by another user: %q", way, judged)
		}
	}
}

// TestAdmitKeepsOwners checks that Admit advises to give a site file to the server's group and not to its user, and to
// give nothing to a user that several services share.
func TestAdmitKeepsOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives files to other users, and runs a program as them; run `make test` as root for it")
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

// TestCureKeepsAccess has a server that reads a file by the bits for all users. After the advised commands, the server
// must still be able to read the file, and other users must not.
func TestCureKeepsAccess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("runs a program as another user; run `make test` as root for it")
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
		runAs := func(name string) string {
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
		fault := runAs(asOther)
		_, cure, ok := strings.Cut(fault, "; cure: ")
		if !ok {
			t.Fatalf("mode %04o, group %d: %q", tt.mode, tt.gid, fault)
		}
		cure, _, _ = strings.Cut(cure, " (")
		if out, err := exec.CommandContext(t.Context(), "sh", "-c",
			strings.ReplaceAll(cure, ", then ", " && ")).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", cure, err, out)
		}
		if got := runAs(asOpener); got != "" {
			t.Errorf("mode %04o, group %d, after %q: %s", tt.mode, tt.gid, cure, got)
		}
		if got := runAs(asOther); got != "" {
			t.Errorf("mode %04o, group %d, after %q: %s", tt.mode, tt.gid, cure, got)
		}
	}
}

// TestLacksFolder checks the rights that a service needs to folders, and to files that do not exist yet.
func TestLacksFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	base, _ := programForOthers(t)
	u, err := secret.UserNamed("daemon")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "dir")
	for _, tt := range []struct {
		owner      int
		mode       fs.FileMode
		list, make string
	}{
		{1, 0o700, "", ""},
		{0, 0o755, "", "make files in"},
		{0, 0o711, "list and enter", "make files in"},
		{0, 0o777, "", ""},
	} {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700), os.Chown(dir, tt.owner, 0),
			os.Chmod(dir, tt.mode)); err != nil {
			t.Fatal(err)
		}
		wants := func(what string, lacks *secret.Lacking, right string) {
			t.Helper()
			if (lacks != nil) != (right != "") || lacks != nil && !strings.Contains(lacks.Text, "needs to "+right) {
				t.Errorf("%04o of %d, %s: %+v, want %q", tt.mode, tt.owner, what, lacks, right)
			}
		}
		wants("list", u.LacksList(dir), tt.list)
		wants("make", u.LacksMake(dir), tt.make)
		wants("write to a file that does not exist", u.LacksWrite(filepath.Join(dir, "new")), tt.make)
		wants("read a file that does not exist", u.LacksRead(filepath.Join(dir, "new")), "")
		wants("read in a folder that does not exist", u.LacksRead(filepath.Join(dir, "new", "file")), "")
	}
}
