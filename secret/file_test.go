package secret_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"claviger/secret"
)

// asOther is the variable with the file for Exposed, for the test binary when it runs as another user.
const asOther = "CLAVIGER_TEST_EXPOSED"

func TestMain(m *testing.M) {
	if path := os.Getenv(asOpener); path != "" {
		flag := os.O_RDONLY
		if os.Getenv("CLAVIGER_TEST_WRITE") == "true" {
			flag = os.O_RDWR
		}
		f, err := os.OpenFile(path, flag, 0)
		if err == nil {
			err = f.Close()
		}
		os.Stdout.WriteString(secret.Admit(err)) //nolint:errcheck // the test checks the output
		os.Exit(0)
	}
	if path := os.Getenv(asOther); path != "" {
		//nolint:errcheck // the test checks the output
		os.Stdout.WriteString(strings.Join(secret.Exposed(secret.File{Path: path, Kind: "keytab"}), "\n"))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestFileModes checks that exactly the modes with a bit of Deny are refused.
func TestFileModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		mode, deny fs.FileMode
		want       string
	}{
		{0o600, 0, ""},
		{0o440, 0, ""}, // as Hadoop's keytabs
		{0o660, 0, ""},
		{0o604, 0, "keytab PATH may be read by everybody (mode 0604), who can act as us; cure: chmod o= PATH"},
		{0o606, 0, "keytab PATH may be read by everybody (mode 0606), who can act as us; cure: chmod o= PATH"},
		{0o602, 0, "keytab PATH may be written by everybody (mode 0602), who can act as us; cure: chmod o= PATH"},
		{0o601, 0, "keytab PATH may be run by everybody (mode 0601), who can act as us; cure: chmod o= PATH"},
		{0o604, 0o002, ""},
		{0o646, 0o002, "keytab PATH may be written by everybody (mode 0646), who can " +
			"act as us; cure: chmod o-w PATH"},
		{0o620, 0o020, "keytab PATH may be written by its group (mode 0620), who can " +
			"act as us; cure: chmod g-w PATH"},
		{0o640, 0o077, "keytab PATH may be read by its group (mode 0640), who can act as us; cure: chmod go= PATH"},
		{0o600, 0o077, ""},
	} {
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		f := secret.File{Path: path, Kind: "keytab", Deny: test.deny, Risk: "who can act as us"}
		got := ""
		if err := f.Refuse(); err != nil {
			got = err.Error()
		}
		want := strings.ReplaceAll(test.want, "PATH", path)
		if got != want {
			t.Errorf("mode %04o, denied %04o: %q, want %q", test.mode, test.deny, got, want)
		}
		if list := strings.Join(secret.Exposed(f), "; "); list != want {
			t.Errorf("mode %04o, denied %04o, exposed: %q, want %q", test.mode, test.deny, list, want)
		}
	}
	missing := secret.File{Path: path + "x"}
	if err := missing.Refuse(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if got := secret.Exposed(missing); len(got) > 0 {
		t.Errorf("a missing file: %q", got)
	}
}

// TestExposedFolders checks that Exposed reports each folder above a file that everybody may write, on both sides of a
// symbolic link, once and with the number of files.
func TestExposedFolders(t *testing.T) {
	dir := t.TempDir()
	open, link := filepath.Join(dir, "open"), filepath.Join(dir, "links")
	deep := filepath.Join(open, "deep")
	for _, d := range []string{deep, link} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(deep, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(deep, "a"), filepath.Join(link, "a")); err != nil {
		t.Fatal(err)
	}
	a, b, linked := secret.File{Path: filepath.Join(deep, "a")}, secret.File{Path: filepath.Join(deep, "b")},
		secret.File{Path: filepath.Join(link, "a")}
	check := func(when string, want string, files ...secret.File) {
		t.Helper()
		if got := strings.Join(secret.Exposed(files...), "; "); got != strings.ReplaceAll(want, "DIR", dir) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	chmod := func(path string, mode fs.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	check("closed", "", a, b, linked)
	chmod(open, 0o777)
	check("open",
		"folder DIR/open may be written by everybody (mode 0777), who can replace DIR/open/deep/a and 1 more "+
			"files; cure: chmod o-w DIR/open", a, b)
	check("open behind a link",
		"folder DIR/open may be written by everybody (mode 0777), who can replace "+
			"DIR/links/a; cure: chmod o-w DIR/open", linked)
	chmod(open, 0o777|fs.ModeSticky)
	check("sticky", "", a, b, linked)
	chmod(open, 0o700)
	chmod(link, 0o777)
	check("open before a link",
		"folder DIR/links may be written by everybody (mode 0777), who can replace "+
			"DIR/links/a; cure: chmod o-w DIR/links", linked, a)
}

// programForOthers copies the test binary to a folder that every user may enter.
func programForOthers(t *testing.T) (dir, program string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "exposed") // every user may enter the folders above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program = filepath.Join(dir, "test")
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	//nolint:gosec // other users must be able to run it
	if err := errors.Join(os.WriteFile(program, data, 0o700), os.Chmod(program, 0o755),
		os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir, program
}

// TestExposedOwner checks that Exposed, for a user other than root, reports files and folders of third users, and not
// those of root and of the user itself.
func TestExposedOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const us, third = 65534, 12345
	base, binary := programForOthers(t)
	dir := filepath.Join(base, "dir")
	file := filepath.Join(dir, "kms.keytab")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		fileOwner, dirOwner int
		want                []string
	}{
		{0, 0, nil},
		{us, us, nil},
		{third, us, []string{"keytab FILE belongs to the user 12345, who can read and " +
			"change it; cure: chown nobody FILE"}},
		{us, third, []string{"folder DIR belongs to the user 12345, who can replace " +
			"keytab FILE; cure: chown nobody DIR"}},
	} {
		if err := errors.Join(os.Chown(file, test.fileOwner, -1), os.Chown(dir, test.dirOwner, -1)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), binary)
		cmd.Env = append(os.Environ(), asOther+"="+file)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: us, Gid: us}}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, w := range test.want {
			want = append(want, strings.NewReplacer("FILE", file, "DIR", dir).Replace(w))
		}
		var got []string
		if len(out) > 0 {
			got = strings.Split(string(out), "\n")
		}
		if nobody, err := secret.UserNamed(strconv.Itoa(us)); err != nil ||
			!slices.Equal(nobody.Exposed(secret.File{Path: file, Kind: "keytab"}), got) {
			t.Errorf("judged by root: %q, %v, want %q", nobody.Exposed(secret.File{Path: file, Kind: "keytab"}), err,
				got)
		}
		if !slices.Equal(got, want) {
			t.Errorf("a file of %d in a folder of %d: %q, want %q", test.fileOwner, test.dirOwner, got, want)
		}
	}
}

// TestCureQuotes: a cure is a command that a shell reads as meant, also if a name in it has the characters of another
// command.
func TestCureQuotes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k\t$(id)")
	if err := os.WriteFile(path, nil, 0o604); err != nil {
		t.Fatal(err)
	}
	got := secret.Exposed(secret.File{Path: path})
	if len(got) != 1 || !strings.HasSuffix(got[0], `; cure: chmod o= $'`+filepath.Dir(path)+`/k\x09$(id)'`) {
		t.Errorf("%q", got)
	}
}
