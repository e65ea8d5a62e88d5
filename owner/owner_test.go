package owner_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"claviger/owner"
)

// TestMain makes the binary a process that claims a file and waits, if the environment names the file.
func TestMain(m *testing.M) {
	if file := os.Getenv("CLAIM_FILE"); file != "" {
		_, err := owner.Claim(file, "sqlite://x", owner.Self("claviger kms", "/etc/c"))
		fmt.Println("claimed", err)
		time.Sleep(time.Minute) // until the parent kills it
	}
	os.Exit(m.Run())
}

func child(t *testing.T, file string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CLAIM_FILE="+file)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "claimed <nil>\n" {
		t.Fatalf("the child wrote %q, %v", line, err)
	}
	return cmd
}

// TestClaim claims a file in another process, and ends that process with SIGKILL.
func TestClaim(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.lock")
	if _, ok, err := owner.Of(file); ok || err != nil {
		t.Fatalf("no file: %v %v", ok, err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("Of made the file")
	}
	cmd := child(t, file)
	got, ok, err := owner.Of(file)
	if err != nil || !ok || got.PID != cmd.Process.Pid || got.What != "claviger kms" || got.Conf != "/etc/c" ||
		time.Since(got.Since) > time.Minute {
		t.Errorf("owner is %+v, %v, %v", got, ok, err)
	}
	_, err = owner.Claim(file, "sqlite://x", owner.Self("claviger kms", ""))
	var in *owner.InUseError
	if !errors.As(err, &in) || len(in.Owners) != 1 || in.Owners[0] != got {
		t.Fatalf("second claim: %v", err)
	}
	for _, want := range []string{"sqlite://x is in use by claviger kms", fmt.Sprint("process ", cmd.Process.Pid),
		"since 20", "/etc/c"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the error says that it was killed
	if got, ok, err := owner.Of(file); ok || err != nil {
		t.Errorf("after SIGKILL: %v %v %v", got, ok, err)
	}
	release, err := owner.Claim(file, "sqlite://x", owner.Self("a", ""))
	if err != nil {
		t.Fatal(err)
	}
	// A claim also excludes other claims of the same process.
	if _, err := owner.Claim(file, "sqlite://x", owner.Self("b", "")); !errors.As(err, &in) ||
		in.Owners[0].What != "a" {
		t.Errorf("second claim: %v", err)
	}
	release()
	release()
	if _, ok, err := owner.Of(file); ok || err != nil {
		t.Errorf("after release: %v %v", ok, err)
	}
}

// TestShare checks that processes which share a file do not exclude each other, and that they exclude Claim until the
// last of them has released the file.
func TestShare(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.lock")
	first, err := owner.Share(file, "keystore x", owner.Self("first", ""))
	if err != nil {
		t.Fatal(err)
	}
	second, err := owner.Share(file, "keystore x", owner.Self("second", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"second", "second"} {
		var in *owner.InUseError
		if _, err := owner.Claim(file, "keystore x", owner.Self("command", "")); !errors.As(err, &in) ||
			in.Owners[0].What != who {
			t.Fatalf("Claim while others share the file: %v", err)
		}
		if o, ok, err := owner.Of(file); err != nil || !ok || o.What != who {
			t.Errorf("owner is %v, %v, %v", o, ok, err)
		}
		first()
	}
	second()
	release, err := owner.Claim(file, "keystore x", owner.Self("command", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := owner.Share(file, "keystore x", owner.Self("third", "")); !errors.As(err, new(*owner.InUseError)) {
		t.Errorf("Share while another has a claim: %v", err)
	}
}

// TestLockFileOfAnotherUser checks the cure for a lock file that exists but cannot be opened: it must name the file's
// owner, and not the folder, which may be writable.
func TestLockFileOfAnotherUser(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.lock")
	if err := os.Mkdir(file, 0o700); err != nil { // also root cannot open a folder for writing
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	_, err = owner.Claim(file, "sqlite://x", owner.Self("claviger kms", ""))
	if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(),
		"belongs to "+me.Username+" (mode 0700)") || strings.Contains(err.Error(), "its folder") {
		t.Errorf("a lock file that exists: %v", err)
	}
	_, err = owner.Claim(filepath.Join(dir, "nowhere", "x.lock"), "sqlite://x", owner.Self("claviger kms", ""))
	if err == nil || !strings.Contains(err.Error(), "must be able to make files in its folder") {
		t.Errorf("a folder that does not exist: %v", err)
	}
}

// TestLockFileIsALink: a claim writes through no symbolic link, whether the file behind it exists or not.
func TestLockFileIsALink(t *testing.T) {
	dir := t.TempDir()
	other, missing := filepath.Join(dir, "other"), filepath.Join(dir, "missing")
	if err := os.WriteFile(other, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{other, missing} {
		link := target + ".lock"
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		_, err := owner.Claim(link, "sqlite://x", owner.Self("claviger kms", ""))
		want := "open " + link + ": it is a symbolic link, and a lock file must not be one; remove it"
		if err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if content, err := os.ReadFile(other); err != nil || string(content) != "content" {
		t.Errorf("the file behind the link holds %q, %v", content, err)
	}
	if _, err := os.Lstat(missing); err == nil {
		t.Error("a file was made behind the link")
	}
}
