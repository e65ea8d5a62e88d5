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

// maxExposure is the highest exposure that systemd-analyze may report for a unit, of 10. It is 1.6 now.
const maxExposure = 2.0

// TestUnit: systemd accepts each unit alone, and with each of its sample drop-ins. systemd-analyze reports a low
// exposure. A server that waits for a missing part has not failed, so it never reaches the limit of starts
// (TestStartWaits).
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CLAVIGER_REQUIRE_PACKAGES") == "1" {
			t.Fatal(err)
		}
		t.Skip("systemd-analyze is not installed")
	}
	for name, samples := range map[string]int{"claviger-kms": 3, "claviger-trustee": 2, "claviger-keyhsm": 2} {
		text, err := os.ReadFile("../../packaging/" + name + ".service")
		if err != nil {
			t.Fatal(err)
		}
		checkUnit(t, name, string(text))
		unit := strings.Replace(string(text), "/usr/bin/claviger", os.Args[0], 1) // it may not be installed here
		dropIns, err := filepath.Glob("../../packaging/examples/systemd/" + name + ".service.d/*.conf")
		if err != nil || len(dropIns) != samples {
			t.Errorf("%s has the samples %q, %v", name, dropIns, err)
		}
		for _, file := range append(dropIns, "") {
			dropIn := ""
			if file != "" {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				dropIn = strings.ReplaceAll(string(text), "/usr/bin/claviger", os.Args[0])
			}
			t.Run(name+"/"+filepath.Base(file), func(t *testing.T) { analyzeUnit(t, analyze, name, unit, dropIn) })
		}
	}
}

// checkUnit checks the lines of a unit that the program depends on.
func checkUnit(t *testing.T, name, unit string) {
	t.Helper()
	lines := []string{"LimitCORE=0", "MemorySwapMax=0", "ProtectSystem=strict"}
	if name != "claviger-trustee" {
		// exitPIN is the exit status after a refused PIN (TestWrongPINDoesNotLock). With KillMode=mixed the server ends
		// the process of the HSM's library (TestServerEnds and TestNoCore in pkcs11/worker).
		lines = append(lines, fmt.Sprintf("RestartPreventExitStatus=%d", exitPIN), "KillMode=mixed",
			"ReadWritePaths=-/var/lib/softhsm")
	}
	for _, line := range lines {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("%s has no line %s", name, line)
		}
	}
	// AF_UNIX: between the server and the process of the library.
	if !regexp.MustCompile(`(?m)^RestrictAddressFamilies=.*\bAF_UNIX\b`).MatchString(unit) {
		t.Errorf("%s allows no sockets between processes", name)
	}
}

// analyzeUnit runs systemd-analyze on a unit with a drop-in.
func analyzeUnit(t *testing.T, analyze, name, unit, dropIn string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, name+".service")
	kmstest.WriteFile(t, file, unit)
	if dropIn != "" {
		if err := os.Mkdir(file+".d", 0o755); err != nil {
			t.Fatal(err)
		}
		kmstest.WriteFile(t, filepath.Join(file+".d", "one.conf"), dropIn)
	}
	// An unknown key is only printed. The man pages may not be installed here.
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), name) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err = exec.CommandContext(t.Context(), analyze, "security", "--offline=true", file).CombinedOutput()
	m := regexp.MustCompile(`exposure level for ` + name + `.service: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Skipf("this systemd-analyze does not report the exposure of a file: %v\n%s", err, out)
	}
	if exposed, err := strconv.ParseFloat(string(m[1]), 64); err != nil || exposed > maxExposure {
		t.Errorf("the exposure is %s of 10, and may be at most %v: %v", m[1], maxExposure, err)
	}
}
