package host

import (
	"os"
	"strings"
	"testing"
)

// TestRunningWhileStarting: while a Key HSM starts, its run file names no process. If it named the process that
// served the folder before, reload would send SIGHUP to another program with that process number.
func TestRunningWhileStarting(t *testing.T) {
	dir := t.TempDir()
	before, err := claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := before.write("https://localhost:1"); err != nil {
		t.Fatal(err)
	}
	if p, err := Running(dir); err != nil || p.PID != os.Getpid() || p.URL != "https://localhost:1" {
		t.Errorf("while it serves: %+v, %v", p, err)
	}
	if err := before.Close(); err != nil { // like the kernel when a process is killed
		t.Fatal(err)
	}
	if p, err := Running(dir); err == nil || !strings.Contains(err.Error(), "keyhsm start --conf "+dir) {
		t.Errorf("after its end: %+v, %v", p, err)
	}
	now, err := claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	if p, err := Running(dir); err == nil || !strings.Contains(err.Error(), "is starting") {
		t.Errorf("while the next one starts: %+v, %v", p, err)
	}
	if st, err := os.Stat(runPath(dir)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the run file: %v, %v", st.Mode(), err)
	}
}
