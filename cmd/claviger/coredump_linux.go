package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// allowCoreDumps is an environment variable. With the value 1, core dumps stay possible, to find the cause of a crash
// with test keys.
const allowCoreDumps = "CLAVIGER_ALLOW_CORE_DUMPS"

// noCoreDumps keeps PINs and DEKs out of core files, and stops debuggers of the same user. The limit is not sufficient:
// the kernel ignores it if core_pattern is a pipe, as with systemd-coredump.
func noCoreDumps() error {
	if os.Getenv(allowCoreDumps) == "1" {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit(RLIMIT_CORE)", err)
	}
	return os.NewSyscallError("prctl(PR_SET_DUMPABLE)", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}
