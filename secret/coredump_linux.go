package secret

import (
	"os"
	"syscall"
)

// AllowCoreDumps is an environment variable. With the value 1, core dumps stay possible, to find the cause of a crash
// with test keys.
const AllowCoreDumps = "CLAVIGER_ALLOW_CORE_DUMPS"

// NoCoreDumps keeps PINs and DEKs out of core files, and stops debuggers of the same user. The limit is not sufficient:
// the kernel ignores it if core_pattern is a pipe, as with systemd-coredump.
func NoCoreDumps() error {
	if os.Getenv(AllowCoreDumps) == "1" {
		return nil
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit(RLIMIT_CORE)", err)
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0); errno != 0 {
		return os.NewSyscallError("prctl(PR_SET_DUMPABLE)", errno)
	}
	return nil
}
