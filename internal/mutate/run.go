package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// An outcome is what became of a change.
type outcome string

const (
	killed   outcome = "killed"   // a test failed, or ended at its time limit
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

// build makes the test binary of a package, with one file replaced unless file
// is "". The error holds what the compiler wrote.
func (r *runner) build(ctx context.Context, pkg, file string, content []byte) (binary string, err error) {
	binary = filepath.Join(r.work, "test.bin")
	args := []string{"test", "-c", "-vet=off", "-o", binary}
	if file != "" {
		changed, overlay := filepath.Join(r.work, "changed.go"), filepath.Join(r.work, "overlay.json")
		text, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(r.root, file): changed}})
		if err != nil {
			return "", err
		}
		if err := errors.Join(os.WriteFile(changed, content, 0o600), os.WriteFile(overlay, text, 0o600)); err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return binary, nil
}

// test runs a test binary in its package's folder until the first failure, or
// the time limit.
func (r *runner) test(ctx context.Context, binary, pkg, tests string, limit time.Duration) (passed bool, out []byte) {
	// The binary's own limit says which test hung. The group is killed if that does not end it.
	ctx, cancel := context.WithTimeout(ctx, limit+20*time.Second)
	defer cancel()
	args := []string{"-test.failfast", "-test.timeout", limit.String()}
	if usesRapid(filepath.Join(r.root, pkg)) {
		args = append(args, "-rapid.nofailfile") // it would write into the tree
	}
	if tests != "" {
		args = append(args, "-test.run", tests)
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = filepath.Join(r.root, pkg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	err := cmd.Run()
	return err == nil, text.Bytes()
}

// usesRapid tells whether a package has property tests.
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
	binary, err := r.build(ctx, pkg, file, content)
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
	binary, err := r.build(ctx, pkg, "", nil)
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

// limitOf is how long the tests of a change may take. The machine may be busier
// than during the baseline.
func limitOf(baseline time.Duration) time.Duration { return 4*baseline + 20*time.Second }
