package packages

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/test/hadoop"
)

// The version that is installed first, and the version of the upgrade.
const (
	oldVersion = "0.0.0~0"
	newVersion = "0.0.1"
)

// folder has the files that all tests of this package share. TestMain removes it.
var folder string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "packages")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		folder = dir
		return m.Run()
	}())
}

// require skips the test, or fails it if CLAVIGER_REQUIRE_PACKAGES is 1, unless all programs are installed.
func require(t *testing.T, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CLAVIGER_REQUIRE_PACKAGES") == "1" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// output runs a program that must succeed, and returns what it prints.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := runs(t.Context(), exec.Command(name, args...)) //nolint:noctx // runs has the limit
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// runs runs a command with a time limit, and returns its standard output and standard error together.
func runs(ctx context.Context, cmd *exec.Cmd) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	c.Env, c.Dir = cmd.Env, cmd.Dir
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out.Bytes())
	}
	return out.String(), nil
}

// pair is a .deb and an .rpm of one version.
type pair struct{ deb, rpm string }

// made are the packages that the tests share.
type made struct {
	pair        // to test
	older  pair // of an older version
	binary string
	// released is true if the packages are from CLAVIGER_PACKAGES. Their program is the one of a release, and not the
	// one that other tests use.
	released bool
}

// packages returns the packages to test. The first call makes them.
func packages(t *testing.T) *made {
	t.Helper()
	require(t, "git", "strip", "dpkg-deb")
	program := ""
	if os.Getenv("CLAVIGER_PACKAGES") == "" {
		program = hadoop.Binary(t)
	}
	shared.Do(func() { shared.made, shared.err = makePackages(program) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.made
}

var shared struct {
	sync.Once
	made *made
	err  error
}

// makePackages makes packages of a program in two versions. If CLAVIGER_PACKAGES names packages, it makes only the
// older version, with the program in these packages.
func makePackages(program string) (*made, error) {
	m := &made{binary: filepath.Join(folder, "claviger")}
	dir := os.Getenv("CLAVIGER_PACKAGES")
	if m.released = dir != ""; m.released {
		var err error
		if m.pair, err = pairIn(dir); err != nil {
			return nil, err
		}
		unpacked := filepath.Join(folder, "unpacked")
		if _, err := runs(context.Background(), exec.Command("dpkg-deb", "-x", m.deb, unpacked)); err != nil {
			return nil, err
		}
		m.binary = filepath.Join(unpacked, "usr/bin/claviger")
	} else if _, err := runs(context.Background(), exec.Command("strip", "-o", m.binary, program)); err != nil {
		return nil, err
	}
	var err error
	if m.older, err = script(m.binary, oldVersion, filepath.Join(folder, "older")); err != nil || m.released {
		return m, err
	}
	m.pair, err = script(m.binary, newVersion, filepath.Join(folder, "newer"))
	return m, err
}

// script runs scripts/packages.
func script(program, version, out string, env ...string) (pair, error) {
	cmd := exec.Command(filepath.Join(hadoop.Root(), "scripts/packages"), "--fast", "--binary", program, out)
	cmd.Env = append(os.Environ(), "PACKAGE_VERSION="+version)
	cmd.Env = append(cmd.Env, env...)
	if _, err := runs(context.Background(), cmd); err != nil {
		return pair{}, err
	}
	return pairIn(out)
}

// pairIn finds the packages in a folder.
func pairIn(dir string) (p pair, err error) {
	if p.deb, err = oneFile(filepath.Join(dir, "*_amd64.deb")); err == nil {
		p.rpm, err = oneFile(filepath.Join(dir, "*.x86_64.rpm"))
	}
	return p, err
}

// oneFile returns the one file that a pattern matches.
func oneFile(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s matches %q, and not one file", pattern, found)
	}
	return strings.Join(found, ""), err
}
