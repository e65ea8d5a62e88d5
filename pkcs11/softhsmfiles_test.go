package pkcs11

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/processtest"
	"claviger/internal/softhsm/softhsmtest"
)

// asNobody runs f as user nobody if the test runs as root. The thread is not used again.
func asNobody(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			const nobody = 65534
			// access(2) checks the real user. RawSyscall changes this thread alone.
			_, _, _ = unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody)
		}
		f()
	}()
	<-done
}

// tokenFiles makes SoftHSM's settings and an empty folder of tokens, which all users may enter.
func tokenFiles(t *testing.T) (tokens string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // #nosec G302 -- t.TempDir's own parent
		t.Fatal(err)
	}
	tokens = filepath.Join(dir, "tokens")
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := errors.Join(os.Mkdir(tokens, 0o755),
		os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	return tokens
}

// tokenOf makes the folder of a token with that label and those files. The folder's name ends with the serial number
// of 16 times the digit.
func tokenOf(t *testing.T, tokens, digit, label string, files ...string) (path string) {
	t.Helper()
	d := func(n int) string { return strings.Repeat(digit, n) }
	path = filepath.Join(tokens, "0f3d1f3a-1b7e-3c52-"+d(4)+"-"+d(12))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		content := ""
		if name == "token.object" && label != "" {
			content = fmt.Sprintf("\x00%-32s\x00", label)
		}
		if err := os.WriteFile(filepath.Join(path, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func chmod(t *testing.T, mode os.FileMode, path ...string) {
	t.Helper()
	if err := os.Chmod(filepath.Join(path...), mode); err != nil {
		t.Fatal(err)
	}
}

const softHSMModule = "/usr/lib/softhsm/libsofthsm2.so"

// TestSoftHSMFault: the message for a token that SoftHSM does not show names the file that is damaged or that the user
// may not use. There is no fault if the files are in order, or if only another token's files are damaged.
func TestSoftHSMFault(t *testing.T) {
	one := strings.Repeat("1", 16)
	by := Config{Module: softHSMModule, TokenLabel: "kms"}
	for _, c := range []struct {
		name string
		make func(t *testing.T, tokens string)
		by   Config
		want string // "" for none
	}{
		{"in order", func(t *testing.T, tokens string) {
			tokenOf(t, tokens, "1", "kms", "token.object", "a.object")
			chmod(t, 0o777, filepath.Dir(tokenOf(t, tokens, "2", "other", "token.object")))
			chmod(t, 0o777, tokens, "0f3d1f3a-1b7e-3c52-1111-111111111111")
		}, by, ""},
		{"damaged", func(t *testing.T, tokens string) { tokenOf(t, tokens, "1", "", "token.object", "a.object") }, by,
			"is damaged: its token.object is empty or gone"},
		{"damaged, without the file", func(t *testing.T, tokens string) { tokenOf(t, tokens, "1", "", "a.object") },
			Config{Module: softHSMModule, Serial: one}, "is damaged: its token.object is empty or gone"},
		{"damaged, of another serial number", func(t *testing.T, tokens string) {
			tokenOf(t, tokens, "1", "", "a.object")
		}, Config{Module: softHSMModule, Serial: strings.Repeat("2", 16)}, ""},
		{"damaged, of another library", func(t *testing.T, tokens string) { tokenOf(t, tokens, "1", "", "a.object") },
			Config{Module: "/usr/lib/libCryptoki2_64.so", TokenLabel: "kms"}, ""},
		{"an empty folder", func(t *testing.T, tokens string) { tokenOf(t, tokens, "1", "", "token.object") }, by, ""},
		{"another folder is in order", func(t *testing.T, tokens string) {
			tokenOf(t, tokens, "1", "other", "token.object", "a.object")
		}, by, ""},
		{"no folder of tokens", func(t *testing.T, tokens string) {
			if err := os.Remove(tokens); err != nil {
				t.Fatal(err)
			}
		}, by, "does not exist, by the settings that SOFTHSM2_CONF names"},
		{"closed folder of tokens", func(t *testing.T, tokens string) { chmod(t, 0o700, tokens) }, by,
			"SoftHSM shows a token only to users who may read its files: open"},
		{"unreadable", func(t *testing.T, tokens string) {
			chmod(t, 0o600, tokenOf(t, tokens, "1", "kms", "token.object"), "token.object")
		}, by, `or it was not made yet, so make it as this user (softhsm2-util --init-token --free --label kms)`},
		{"unreadable, by serial number", func(t *testing.T, tokens string) {
			chmod(t, 0o700, tokenOf(t, tokens, "1", "kms", "token.object", "a.object"))
		}, Config{Module: softHSMModule, Serial: one}, "SoftHSM cannot read the token's folder: open"},
		{"unreadable, by the slot", func(t *testing.T, tokens string) {
			for i := range 5 {
				chmod(t, 0o700, tokenOf(t, tokens, fmt.Sprint(i), "kms", "token.object"))
			}
		}, Config{Module: softHSMModule}, "2222-222222222222 (of root:root, mode 0700), and 2 more, so run"},
		{"an object is closed", func(t *testing.T, tokens string) {
			folder := tokenOf(t, tokens, "1", "kms", "a.lock", "b.object", "c.object", "token.object")
			chmod(t, 0o600, folder, "a.lock")
			chmod(t, 0o600, folder, "b.object")
			chmod(t, 0o600, folder, "c.object")
		}, by, "may not read 3 files of the token's folder, whose objects are there and not shown: open"},
		{"a lock is closed", func(t *testing.T, tokens string) {
			chmod(t, 0o600, tokenOf(t, tokens, "1", "kms", "a.lock", "token.object"), "a.lock")
		}, by, "may not read 1 files of the token's folder, whose objects are there and not shown: open"},
		{"the folder is closed to writers", func(t *testing.T, tokens string) {
			tokenOf(t, tokens, "1", "kms", "token.object")
		}, by, "SoftHSM cannot change the token: write to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if os.Getuid() != 0 {
				t.Skip("only root can make files that the test may not read")
			}
			c.make(t, tokenFiles(t))
			asNobody(func() {
				err := softHSMFault(&c.by)
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v\nwant %q", err, c.want)
				}
				named := map[string]string{"an object is closed": "b.object", "a lock is closed": "a.lock"}[c.name]
				if named != "" && !strings.Contains(err.Error(), named) {
					t.Errorf("%s is not named: %v", named, err)
				}
			})
		})
	}
}

// TestSoftHSMSettingsClosed: a settings file that the user may not read is named; one that does not exist is no fault.
func TestSoftHSMSettingsClosed(t *testing.T) {
	tokens := tokenFiles(t)
	conf := os.Getenv("SOFTHSM2_CONF")
	chmod(t, 0o600, conf)
	tokenOf(t, tokens, "1", "", "a.object")
	by := &Config{Module: softHSMModule, TokenLabel: "kms"}
	if os.Getuid() == 0 {
		asNobody(func() {
			if err := softHSMFault(by); err == nil || !strings.Contains(err.Error(), conf) ||
				!strings.Contains(err.Error(), "make no new token") {
				t.Errorf("%v", err)
			}
		})
	}
	if err := softHSMFault(by); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("%v", err)
	}
	if err := os.RemoveAll(tokens); err != nil {
		t.Fatal(err)
	}
	if err := softHSMFault(by); err == nil || !strings.Contains(err.Error(), tokens+" does not exist") ||
		!strings.Contains(CureOf(err), "directories.tokendir") {
		t.Errorf("no folder of tokens: %v", err)
	}
	t.Setenv("SOFTHSM2_CONF", conf+".none")
	if err := softHSMFault(by); err != nil {
		t.Errorf("%v", err)
	}
}

// TestSoftHSMReadOnly: a token on a file system that is mounted read-only is named with that cure.
func TestSoftHSMReadOnly(t *testing.T) {
	tokens := tokenFiles(t)
	if err := unix.Mount("none", tokens, "tmpfs", 0, "size=512k"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(tokens, unix.MNT_DETACH) })
	tokenOf(t, tokens, "1", "kms", "token.object")
	if err := unix.Mount("", tokens, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("no file system can be mounted read-only here: %v", err)
	}
	err := softHSMFault(&Config{Module: softHSMModule, TokenLabel: "kms"})
	if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "ReadWritePaths="+tokens) {
		t.Errorf("%v", err)
	}
}

// TestSoftHSMFaultCure: where another user than root owns the token, running as that user is the first cure.
func TestSoftHSMFaultCure(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	folder := tokenOf(t, tokenFiles(t), "1", "kms", "token.object")
	f := tokenFolder{path: folder}
	chown := "chown -R nobody " + folder
	if gone := (tokenFolder{path: folder + "-"}); gone.checkReadable() != nil || gone.fault() != nil {
		t.Errorf("a folder that is gone: %v, %v", gone.checkReadable(), gone.fault())
	}
	asNobody(func() {
		if got := f.cure(); got != chown {
			t.Errorf("root's folder: %s", got)
		}
		if got := (tokenFolder{path: folder + "-"}).cure(); got != chown+"-" {
			t.Errorf("no folder: %s", got)
		}
	})
	if err := os.Chown(folder, 1, 1); err != nil {
		t.Fatal(err)
	}
	asNobody(func() {
		if got := f.cure(); !strings.HasPrefix(got, "run as user daemon (sudo -u daemon), where") ||
			!strings.HasSuffix(got, "; or "+chown) {
			t.Errorf("daemon's folder: %s", got)
		}
	})
	if err := os.Chown(folder, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	asNobody(func() {
		if got := f.cure(); got != chown {
			t.Errorf("the folder of user nobody: %s", got)
		}
	})
}

// TestReadDuringWriteReasons: only errors that a half written file can cause, of a token whose file is now in order or
// still empty, make Open search again.
func TestReadDuringWriteReasons(t *testing.T) {
	by := Config{Module: softHSMModule, TokenLabel: "kms"}
	hidden := fmt.Errorf("search: %w", notShown{errors.New("no token")})
	whole := func(t *testing.T, tokens string) { tokenOf(t, tokens, "1", "kms", "token.object") }
	for _, c := range []struct {
		name  string
		make  func(t *testing.T, tokens string)
		by    Config
		err   error
		again bool
	}{
		{"not shown", whole, by, hidden, true},
		{"no PIN yet", whole, by, fmt.Errorf("token %w", errNoUserPIN), true},
		{"no PIN", whole, by, p11.Error(p11.CKR_USER_PIN_NOT_INITIALIZED), true},
		{"general error", whole, by, p11.Error(p11.CKR_GENERAL_ERROR), true},
		{"another error", whole, by, p11.Error(p11.CKR_DEVICE_ERROR), false},
		{"another library", whole, Config{Module: "/x/libCryptoki2_64.so", TokenLabel: "kms"}, hidden, false},
		{"another token", whole, Config{Module: softHSMModule, TokenLabel: "other"}, hidden, false},
		{"another serial number", whole, Config{Module: softHSMModule, Serial: "22"}, hidden, false},
		{"named by the slot", whole, Config{Module: softHSMModule}, hidden, true},
		{"no folder", func(*testing.T, string) {}, by, hidden, false},
		{"no settings", func(t *testing.T, _ string) { t.Setenv("SOFTHSM2_CONF", "/none") }, by, hidden, false},
		{"still empty", func(t *testing.T, tokens string) { tokenOf(t, tokens, "1", "", "token.object") }, by,
			hidden, true},
		{"no file", func(t *testing.T, tokens string) { tokenOf(t, tokens, "1", "") }, by, hidden, true},
		{"no file that can be read", func(t *testing.T, tokens string) {
			if err := os.Mkdir(filepath.Join(tokenOf(t, tokens, "1", ""), "token.object"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, by, hidden, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.make(t, tokenFiles(t))
			if got := readDuringWrite(&c.by, c.err); got != c.again {
				t.Errorf("read during a write: %t", got)
			}
		})
	}
}

// TestSoftHSMConf: the settings are those of the variable, else those in the home folder, else the first of the system
// that exist.
func TestSoftHSMConf(t *testing.T) {
	dir := t.TempDir()
	old := softHSMSettings
	t.Cleanup(func() { softHSMSettings = old })
	softHSMSettings = []string{filepath.Join(dir, "debian.conf"), filepath.Join(dir, "fedora.conf")}
	home := filepath.Join(dir, "home")
	ofHome := filepath.Join(home, ".config/softhsm2/softhsm2.conf")
	t.Setenv("HOME", home)
	t.Setenv("SOFTHSM2_CONF", "")
	expect := func(want string) {
		t.Helper()
		if got := softHSMConf(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	expect(softHSMSettings[0]) // none exists
	file := func(path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	file(softHSMSettings[1])
	expect(softHSMSettings[1])
	file(softHSMSettings[0])
	expect(softHSMSettings[0])
	file(ofHome)
	expect(ofHome)
	t.Setenv("SOFTHSM2_CONF", "/elsewhere")
	expect("/elsewhere")
	t.Setenv("SOFTHSM2_CONF", "")
	if os.Getuid() != 0 {
		return
	}
	chmod(t, 0o755, filepath.Dir(dir))
	for _, path := range []string{ofHome, softHSMSettings[0]} {
		asNobody(func() { // may not enter the folder of ofHome
			if got := softHSMConf(); got != path {
				t.Errorf("%s, want %s", got, path)
			}
			if _, _, err := tokenFolders(); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), path) {
				t.Errorf("the settings in %s: %v", path, err)
			}
		})
		t.Setenv("HOME", "/none")
		chmod(t, 0o700, dir)
	}
}

// TestHiddenObjects: objects that SoftHSM does not show are reported for the open token, in the error for a key that is
// missing, and in errors of SoftHSM.
func TestHiddenObjects(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make files that the test may not read")
	}
	made := softhsmtest.New(t)
	tok, _ := openAs(t, config(made))
	other, _ := openAs(t, config(softhsmtest.NewIn(t, filepath.Dir(made.PINFile), "other")))
	folder, ok := tok.folder()
	if !ok || serialOf(folder.path) != made.Serial {
		t.Fatalf("the folder is %v, %t", folder, ok)
	}
	if err := tok.Hidden(); err != nil {
		t.Error(err)
	}
	closed := filepath.Join(folder.path, "closed.object")
	if err := os.WriteFile(closed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	softhsmtest.LetEnter(t, folder.path)
	chmod(t, 0o644, os.Getenv("SOFTHSM2_CONF"))
	lost := p11.Error(p11.CKR_GENERAL_ERROR)
	asNobody(func() {
		if err := tok.Hidden(); err == nil || !strings.Contains(err.Error(), closed) {
			t.Errorf("hidden: %v", err)
		}
		if err := tok.notShown([]byte{7}, "k@7"); !strings.Contains(err.Error(), "that this user may read") {
			t.Errorf("not shown: %v", err)
		}
		domain := claviger.E("test", claviger.Closed, "", p11.Error(p11.CKR_GENERAL_ERROR))
		for _, err := range []error{nil, domain, p11.Error(p11.CKR_DATA_INVALID)} {
			if got := tok.explained(err); got != err { //nolint:errorlint // the same value
				t.Errorf("explained: %v", got)
			}
		}
		if err := tok.explained(lost); !errors.Is(err, lost) || !strings.Contains(err.Error(), closed) {
			t.Errorf("explained: %v", err)
		}
	})
	if err := tok.explained(lost); err != lost { //nolint:errorlint // the same value
		t.Errorf("root reads all, and %v", err)
	}
	if err := tok.notShown([]byte{7}, "k@7"); strings.Contains(err.Error(), "that this user may read") {
		t.Errorf("not shown: %v", err)
	}
	if f, _ := other.folder(); f.path == folder.path {
		t.Error("two tokens, one folder")
	}
	t.Setenv("SOFTHSM2_CONF", "/none")
	if _, ok := tok.folder(); ok {
		t.Error("without settings: a folder")
	}
}

// TestSoftHSMDoesNotInitialize: if SoftHSM cannot be initialised, the error names the fault of its files, or else
// C_Initialize's result.
func TestSoftHSMDoesNotInitialize(t *testing.T) {
	c, fault := faulty(t)
	module := filepath.Join(t.TempDir(), "softhsm.so")
	for _, end := range []string{"", ".real", ".orders"} {
		if err := os.Symlink(c.Module+end, module+end); err != nil {
			t.Fatal(err)
		}
	}
	opened := func() error {
		fault.Order(faultmodule.Initialize, faultmodule.Order{Action: faultmodule.Fail, Value: p11.CKR_GENERAL_ERROR})
		m, err := openModule(t.Context(), module, false, 0, false)
		if m != nil || loaded(module) || processtest.Mapped(t, c.Module) {
			t.Error("the library stays loaded")
		}
		return err
	}
	if err := opened(); !errors.Is(err, p11.Error(p11.CKR_GENERAL_ERROR)) {
		t.Errorf("the files have no fault: %v", err)
	}
	tokens := tokenFiles(t)
	tokenOf(t, tokens, "1", "", "a.object")
	if err := opened(); err == nil || !strings.HasPrefix(err.Error(), "PKCS#11 module "+module+
		" cannot be initialised: the SoftHSM token in ") || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a damaged token: %v", err)
	}
	if err := os.RemoveAll(tokens); err != nil {
		t.Fatal(err)
	}
	if err := opened(); !errors.Is(err, p11.Error(p11.CKR_GENERAL_ERROR)) || // so that a server waits for the folder
		!strings.Contains(err.Error(), "SoftHSM's folder of tokens "+tokens+" does not exist") {
		t.Errorf("no folder of tokens: %v", err)
	}
}
