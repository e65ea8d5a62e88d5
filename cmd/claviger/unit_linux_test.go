package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"claviger/kms/kmstest"
)

// maxExposure is the highest exposure that systemd-analyze may report for the unit, of 10. It is 1.6 now.
const maxExposure = 2.0

// TestUnit: systemd accepts the unit as it is, with each drop-in of docs/install.md, and with each line that is
// commented out in it. It reports a low exposure. A server that waits for a missing part is not a failed start, so it
// never reaches the limit of starts (TestStartWaits).
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	text, err := os.ReadFile("../../packaging/claviger-kms.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := strings.Replace(string(text), "/usr/bin/claviger", os.Args[0], 1) // the program may not be installed here
	// The exit status after a refused PIN; TestWrongPINDoesNotLock checks it.
	if !strings.Contains(unit, fmt.Sprintf("\nRestartPreventExitStatus=%d\n", exitPIN)) {
		t.Error("the unit starts again after a wrong PIN")
	}
	// The process of the HSM's library: its socket, its end, and no core file of it. pkcs11/worker's TestServerEnds and
	// TestNoCore check the rest.
	for _, line := range []string{"KillMode=mixed", "LimitCORE=0"} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit has no line %s", line)
		}
	}
	if !regexp.MustCompile(`(?m)^RestrictAddressFamilies=.*\bAF_UNIX\b`).MatchString(unit) {
		t.Error("the unit allows no sockets between the server and the process of the library")
	}
	page, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"none": ""}
	for _, m := range regexp.MustCompile("(?ms)^`?/etc/systemd/system/claviger-kms.service.d/([a-z]+)\\.conf`?:\n\n"+
		"```\n(.*?)^```").FindAllStringSubmatch(string(page), -1) {
		all[m[1]] = m[2]
	}
	for _, m := range regexp.MustCompile(`(?m)^#([A-Z][A-Za-z]+=.*)$`).FindAllStringSubmatch(unit, -1) {
		all["commented "+m[1]] = "[Service]\n" + m[1] + "\n"
	}
	if len(all) < 4 {
		t.Fatalf("only these drop-ins were found: %q", all)
	}
	for name, dropIn := range all {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "claviger-kms.service")
			kmstest.WriteFile(t, file, unit)
			if dropIn != "" {
				if err := os.Mkdir(file+".d", 0o755); err != nil {
					t.Fatal(err)
				}
				kmstest.WriteFile(t, filepath.Join(file+".d", "one.conf"), dropIn)
			}
			out, err := exec.CommandContext(t.Context(), analyze, "verify", file).CombinedOutput()
			if err != nil || strings.Contains(string(out), "claviger-kms.service") {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
			out, err = exec.CommandContext(t.Context(), analyze, "security", "--offline=true", file).CombinedOutput()
			m := regexp.MustCompile(`exposure level for claviger-kms.service: ([0-9.]+)`).FindSubmatch(out)
			if m == nil {
				t.Skipf("this systemd-analyze does not report the exposure of a file: %v\n%s", err, out)
			}
			if exposed, err := strconv.ParseFloat(string(m[1]), 64); err != nil || exposed > maxExposure {
				t.Errorf("exposed by %s of 10, of which %v is the most: %v", m[1], maxExposure, err)
			}
		})
	}
}
