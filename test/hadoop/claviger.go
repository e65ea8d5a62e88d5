package hadoop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary returns the path of the built program, or the error of the build.
var binary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("CLAVIGER_BIN"); bin != "" {
		return bin, nil
	}
	return build("claviger", nil)
})

// build builds the program. name is that of the file. overlay has files that replace those of the checkout, by their
// paths in the checkout.
func build(name string, overlay map[string]string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	// Each checkout has its own name, so that one does not test the program of another.
	dir := filepath.Join(cache, "claviger", fmt.Sprintf("bin-%x", sha256.Sum256([]byte(Root())))[:20])
	bin := filepath.Join(dir, name)
	args := []string{"build", "-buildvcs=false"}
	if RaceDetector {
		bin += "-race"
		args = append(args, "-race")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	// The first of several test binaries builds the program. The others wait, and find the program.
	lock, err := os.OpenFile(bin+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if overlay != nil {
		file, err := writeOverlay(dir, overlay)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", file)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", bin, "./cmd/claviger")...)
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return bin, nil
}

// Binary returns the path of the program, built from this checkout, with the race detector if the test has it.
// CLAVIGER_BIN names another program to test.
func Binary(t testing.TB) string {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatalf("building cmd/claviger: %v", err)
	}
	return bin
}

// Claviger runs a command of our program that must succeed, and returns its standard output.
func Claviger(t testing.TB, env []string, args ...string) string {
	t.Helper()
	return ClavigerExit(t, env, 0, args...)
}

// ClavigerExit is like Claviger, for a command that must end with an exit status.
func ClavigerExit(t testing.TB, env []string, code int, args ...string) string {
	t.Helper()
	bin := Binary(t) // the first call builds the program
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(cleanEnv(), env...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		t.Fatalf("claviger %s: %v, want exit status %d\n%s%s", strings.Join(args, " "), err, code,
			out.Bytes(), stderr.Bytes())
	}
	return out.String()
}

// ClavigerOptions are the options of StartClaviger.
type ClavigerOptions struct {
	Conf   string   // configuration folder
	Port   int      // 0 is any free port
	Env    []string // added to the environment of the test
	Binary string   // "" is Binary
}

// startChecked is like Start, for a process of our program. A data race in the process fails the test.
func startChecked(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := Start(t, name, cmd)
	t.Cleanup(func() {
		if b, err := os.ReadFile(p.Log); err == nil && bytes.Contains(b, []byte("DATA RACE")) {
			t.Errorf("the race detector found a data race in %s", strings.Join(cmd.Args[:2], " "))
		}
	})
	return p
}

// StartClaviger runs `claviger kms` and returns when it accepts requests.
func StartClaviger(t testing.TB, o ClavigerOptions) *KMS {
	t.Helper()
	Require(t)
	ready := filepath.Join(t.TempDir(), "ready")
	if o.Binary == "" {
		o.Binary = Binary(t)
	}
	cmd := exec.CommandContext(context.Background(), o.Binary, "kms", "--conf", o.Conf, "--http-port",
		fmt.Sprint(o.Port), "--ready-file", ready)
	cmd.Env = append(cleanEnv(), o.Env...)
	p := startChecked(t, "claviger", cmd)
	k := &KMS{Process: p}
	p.WaitFor("its ready file", func() bool {
		b, err := os.ReadFile(ready)
		if err != nil || !bytes.HasSuffix(b, []byte("\n")) {
			return false
		}
		k.URL = strings.TrimSpace(string(b))
		return true
	})
	return k
}
