package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// An outcome is the result of trying a change.
type outcome string

const (
	killed   outcome = "killed"   // a test failed
	stopped  outcome = "stopped"  // the tests ended at their time limit; on a busy machine this is no kill
	survived outcome = "survived" // all tests passed
	unbuilt  outcome = "unbuilt"  // the compiler refused it
)

// buildTimeout bounds the compiler and linker of one test.
const buildTimeout = 10 * time.Minute

// A runner builds and runs the tests of a package with one file replaced.
type runner struct {
	root string // of the module
	work string // a temporary folder
}

// build makes the test binary of a package, with files replaced or added: path
// relative to the module -> content. The error holds the compiler's output.
func (r *runner) build(ctx context.Context, pkg, name string, files map[string]string) (binary string, err error) {
	dir := filepath.Join(r.work, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, content := range files {
		changed := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(changed), 0o700); err != nil {
			return "", err
		}
		if err := os.WriteFile(changed, []byte(content), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(r.root, file)] = changed
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		return "", err
	}
	binary = filepath.Join(dir, "test.bin")
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-gcflags=-e", "-overlay", overlay, "-o", binary,
		"./"+strings.TrimPrefix(pkg, "./"))
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return binary, nil
}

// test runs a test binary in its package's folder until the first failure, or
// the time limit. tests is a regular expression; "" stands for all.
func (r *runner) test(ctx context.Context, binary, pkg, tests string, limit time.Duration, env ...string) (
	passed bool, out []byte) {
	args := []string{"-test.failfast", "-test.timeout", limit.String()}
	if usesRapid(filepath.Join(r.root, pkg)) {
		args = append(args, "-rapid.nofailfile") // it would write into the tree
	}
	if tests != "" {
		args = append(args, "-test.run", tests)
	}
	return r.command(ctx, binary, pkg, args, limit, env...)
}

// command runs a test binary in its package's folder. The binary's own limit
// says which test hung; the process group is killed if that does not end it.
// The processes that the tests have left are killed, too: a change can make
// them start others without end. The temporary files of the tests are removed,
// and what is mounted among them is unmounted.
func (r *runner) command(ctx context.Context, binary, pkg string, args []string, limit time.Duration, env ...string) (
	passed bool, out []byte) {
	temp, err := os.MkdirTemp("", "m") // a short name: a socket's path has at most 107 bytes
	if err != nil {
		return false, []byte(err.Error())
	}
	defer removeTemp(temp)
	if err := os.Chmod(temp, 0o711); err != nil { //nolint:gosec // a test of root starts PostgreSQL as another user
		return false, []byte(err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, limit+20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = filepath.Join(r.root, pkg)
	cmd.Env = append(append(os.Environ(), "TMPDIR="+temp), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	err = cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // there may be none
	}
	return err == nil, text.Bytes()
}

// removeTemp removes the temporary files of tests. Tests that were stopped have not unmounted what they mounted there.
func removeTemp(dir string) {
	mounts, _ := os.ReadFile("/proc/self/mounts") // only Linux has the file
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH) // RemoveAll cannot remove what is still mounted
		}
	}
	_ = os.RemoveAll(dir)
}

// usesRapid reports whether a package has property tests.
func usesRapid(dir string) bool {
	names, _ := filepath.Glob(filepath.Join(dir, "*_test.go")) // the pattern is right
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err == nil && bytes.Contains(text, []byte(`"pgregory.net/rapid"`)) {
			return true
		}
	}
	return false
}

// try makes one change and runs a package's tests.
func (r *runner) try(ctx context.Context, pkg, tests, file string, content []byte, limit time.Duration) (outcome,
	error) {
	binary, err := r.build(ctx, pkg, "changed", map[string]string{file: string(content)})
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return unbuilt, nil //nolint:nilerr // a change that does not build is an outcome
	}
	passed, _ := r.test(ctx, binary, pkg, tests, limit)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case passed:
		return survived, nil
	}
	return killed, nil
}

// baseline runs the unchanged tests and returns how long they take.
func (r *runner) baseline(ctx context.Context, pkg, tests string) (time.Duration, error) {
	binary, err := r.build(ctx, pkg, "unchanged", nil)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	passed, out := r.test(ctx, binary, pkg, tests, 20*time.Minute)
	switch {
	case !passed:
		return 0, fmt.Errorf("the tests of %s fail without a change:\n%s", pkg, out)
	case bytes.Contains(out, []byte("no tests to run")):
		return 0, fmt.Errorf("%s has no test %s", pkg, tests)
	}
	return time.Since(began), nil
}

// slack is what the tests of a change may take beside their share of the baseline. Tests wait up to 30 seconds for a
// condition, and must then be able to fail.
var slack = 45 * time.Second

// limitOf returns how long the tests of a change may take. The machine may be busier
// than during the baseline.
func limitOf(baseline time.Duration) time.Duration { return 4*baseline + slack }
