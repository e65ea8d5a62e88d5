package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"claviger/secret"
)

// envSayDumpable makes a run of this test binary print whether claviger can be dumped.
const envSayDumpable = "CLAVIGER_TEST_SAY_DUMPABLE"

func sayDumpable() int {
	if code := run([]string{"help", "completion"}); code != exitOK {
		return code
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var limit unix.Rlimit
	if err == nil {
		err = unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	}
	fmt.Println(dumpable, limit.Cur, limit.Max, err)
	return 0
}

// TestNoCoreDumps: the process writes no core dump and cannot be traced, unless the environment allows core dumps.
func TestNoCoreDumps(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for allow, want := range map[string]string{"": "\n0 0 0 <nil>\n", "1": "\n1 "} {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), envSayDumpable+"=1", secret.AllowCoreDumps+"="+allow)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s=%q: %q, %v; want %q", secret.AllowCoreDumps, allow, out, err, want)
		}
	}
}
