package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// allowCoreDumps is an environment variable that, set to 1, leaves a process as it
// is: for who hunts a crash with keys that are worth nothing.
const allowCoreDumps = "CLAVIGER_ALLOW_CORE_DUMPS"

// noCoreDumps keeps PINs and DEKs out of core files, and debuggers of the same
// user away. The limit alone would not do: where core_pattern is a pipe, as with
// systemd-coredump, the kernel does not look at it.
func noCoreDumps() error {
	if os.Getenv(allowCoreDumps) == "1" {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit(RLIMIT_CORE)", err)
	}
	return os.NewSyscallError("prctl(PR_SET_DUMPABLE)", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}
