package faults

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/test/hadoop"
)

// trusteeFault is a fault of the Key Trustee side. set makes the fault and returns the command, which ends with
// the exit status.
type trusteeFault struct {
	status int
	set    func(*site) []string
}

// trusteeFaults are the faults of the Key HSM and of the Key Trustee Server.
var trusteeFaults = map[string]trusteeFault{
	"keyhsm-settings-missing": {1, func(s *site) []string { return s.startKeyHSM() }},
	"keyhsm-settings-open": {1, func(s *site) []string {
		s.keyHSM()
		//nolint:gosec // that is the fault
		if err := os.Chmod(s.path("keyhsm/application.properties"), 0o666); err != nil {
			s.t.Fatal(err)
		}
		return s.startKeyHSM()
	}},
	"keyhsm-pin-in-settings": {1, func(s *site) []string {
		s.keyHSM()
		s.write("keyhsm/application.properties", s.read("keyhsm/application.properties")+"keyhsm.pin = 12345678\n")
		return s.startKeyHSM()
	}},
	"keyhsm-wrong-pin": {4, func(s *site) []string {
		s.keyHSM()
		s.setKeyHSM("keyhsm.pin.file", s.write("conf/pin", "87654321\n"))
		return s.startKeyHSM()
	}},
	"keyhsm-overwrite": {1, func(s *site) []string {
		s.keyHSM()
		return s.setupKeyHSM()
	}},
	"keyhsm-certificate-missing": {1, func(s *site) []string {
		s.keyHSM()
		s.remove("keyhsm/server.crt")
		return s.startKeyHSM()
	}},
	"keyhsm-running": {1, func(s *site) []string {
		s.keyHSM()
		s.background("ready-keyhsm", append(s.startKeyHSM(), "--ready-file", s.path("ready-keyhsm"))...)
		return s.startKeyHSM()
	}},
	"keyhsm-key-gone": {3, func(s *site) []string {
		s.keyHSM()
		s.setKeyHSM("keyhsm.key.id", "00112233445566778899aabbccddeeff")
		return []string{"keyhsm", "validate", "--conf", s.path("keyhsm")}
	}},
	"keyhsm-trusts-nobody": {3, func(s *site) []string {
		s.keyHSM()
		return []string{"keyhsm", "validate", "--conf", s.path("keyhsm")}
	}},
	"keyhsm-metrics-address": {1, func(s *site) []string {
		s.keyHSM()
		return append(s.startKeyHSM(), "--metrics-listen", "127.0.0.1")
	}},

	"trustee-missing": {1, func(s *site) []string { return s.startTrustee() }},
	"trustee-nested": {1, func(s *site) []string {
		s.trustee()
		for _, rename := range [][2]string{{"trustee", "moved"}, {"moved", "trustee/.keytrustee"}} {
			if err := os.MkdirAll(filepath.Dir(s.path(rename[1])), 0o700); err != nil {
				s.t.Fatal(err)
			}
			if err := os.Rename(s.path(rename[0]), s.path(rename[1])); err != nil {
				s.t.Fatal(err)
			}
		}
		return s.startTrustee()
	}},
	"trustee-ring-missing": {1, func(s *site) []string {
		s.trustee()
		s.remove("trustee/secring.gpg")
		return s.startTrustee()
	}},
	"trustee-ring-damaged": {1, func(s *site) []string {
		s.trustee()
		s.write("trustee/secring.gpg", "no ring\n")
		return s.startTrustee()
	}},
	"trustee-store-missing": {1, func(s *site) []string {
		s.trustee()
		s.remove("trustee/keytrustee.db")
		return s.startTrustee()
	}},
	"trustee-store-served": {3, func(s *site) []string {
		s.trustee()
		s.remove("trustee/keytrustee.db")
		s.write("trustee/keytrustee.db.lock", "")
		return []string{"trustee", "init", "--confdir", s.path("trustee"), "--hostname", "127.0.0.1"}
	}},
	"trustee-init-hostname": {1, func(s *site) []string {
		s.trustee()
		return []string{"trustee", "init", "--confdir", s.path("trustee"), "--hostname", "kt2"}
	}},
	"trustee-store-damaged": {1, func(s *site) []string {
		s.trustee()
		s.write("trustee/keytrustee.db", strings.Repeat("not a database\n", 1000))
		return s.startTrustee()
	}},
	"trustee-certificate-missing": {1, func(s *site) []string {
		s.trustee()
		if err := os.RemoveAll(s.path("trustee/.ssl")); err != nil {
			s.t.Fatal(err)
		}
		return s.startTrustee()
	}},
	"trustee-port-in-use": {1, func(s *site) []string {
		s.trustee()
		l, err := new(net.ListenConfig).Listen(s.t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = l.Close() })
		return []string{"trustee", "serve", "--confdir", s.path("trustee"), "--listen", l.Addr().String()}
	}},
	"trustee-keyhsm-away": {1, func(s *site) []string {
		s.trustee()
		s.keyHSM()
		return append(s.startTrustee(), "--keyhsm", "https://127.0.0.1:1", "--keyhsm-cert", s.path("keyhsm/server.crt"))
	}},
	"trustee-keyhsm-distrusts": {1, func(s *site) []string {
		s.trustee()
		s.keyHSM()
		url := s.background("ready-keyhsm", append(s.startKeyHSM(), "--ready-file", s.path("ready-keyhsm"))...)
		return append(s.startTrustee(), "--keyhsm", url, "--keyhsm-cert", s.path("keyhsm/server.crt"))
	}},
	"trustee-keyhsm-another": {1, func(s *site) []string {
		s.trustee()
		s.keyHSM()
		url := s.background("ready-keyhsm", append(s.startKeyHSM(), "--ready-file", s.path("ready-keyhsm"))...)
		return append(s.startTrustee(), "--keyhsm", url, "--keyhsm-cert",
			s.path("trustee/.ssl/ssl-cert-keytrustee.pem"))
	}},
	"trustee-role-missing": {1, func(s *site) []string {
		s.trustee()
		return s.startTrustee(s.peer()...)
	}},
	"trustee-peer-missing": {1, func(s *site) []string {
		s.trustee()
		s.trusteeWithoutPeer("passive")
		s.killed()
		return s.startTrustee()
	}},
	"trustee-in-use": {1, func(s *site) []string {
		s.trustee()
		s.background("ready-trustee", s.startTrustee("--ready-file", s.path("ready-trustee"))...)
		return s.startTrustee()
	}},
	"trustee-peer-silent": {3, func(s *site) []string {
		s.trustee()
		return []string{"trustee", "promote", "--confdir", s.path("trustee"), "--url", s.trusteeWithoutPeer("passive")}
	}},
	"trustee-alone-passive": {3, func(s *site) []string {
		s.trustee()
		return []string{"trustee", "alone", "on", "--confdir", s.path("trustee"), "--url",
			s.trusteeWithoutPeer("passive")}
	}},
	"trustee-single": {3, func(s *site) []string {
		s.trustee()
		return []string{"trustee", "promote", "--confdir", s.path("trustee"), "--url",
			s.background("ready-trustee", s.startTrustee("--ready-file", s.path("ready-trustee"))...)}
	}},
	"orgtool-passive": {1, func(s *site) []string {
		s.trustee()
		s.trusteeWithoutPeer("passive")
		return []string{"orgtool", "add", "--confdir", s.path("trustee"), "-n", "SITE"}
	}},
	"orgtool-without-store": {1, func(s *site) []string {
		s.trustee()
		s.remove("trustee/keytrustee.db")
		return []string{"orgtool", "list", "--confdir", s.path("trustee")}
	}},
	"orgtool-unknown-organization": {3, func(s *site) []string {
		s.trustee()
		return []string{"orgtool", "set-auth", "--confdir", s.path("trustee"), "-n", "SITE", "-s", ""}
	}},
	"orgtool-unknown-client": {3, func(s *site) []string {
		s.trustee()
		return []string{"orgtool", "enable-client", "--confdir", s.path("trustee"), "--fingerprint",
			strings.Repeat("AB", 20)}
	}},
}

func (s *site) startKeyHSM() []string {
	return []string{"keyhsm", "start", "--conf", s.path("keyhsm"), "--listen", "127.0.0.1:0"}
}

func (s *site) startTrustee(more ...string) []string {
	return append([]string{"trustee", "serve", "--confdir", s.path("trustee"), "--listen", "127.0.0.1:0"}, more...)
}

// peer returns the flags for another trustee, which does not answer.
func (s *site) peer() []string {
	return []string{"--peer", "https://127.0.0.1:1", "--peer-cert", s.path("trustee/.ssl/ssl-cert-keytrustee.pem")}
}

// trusteeWithoutPeer runs a trustee without its peer, and returns the URL of the trustee.
func (s *site) trusteeWithoutPeer(role string) string {
	s.t.Helper()
	return s.background("ready-trustee",
		s.startTrustee(append(s.peer(), "--role", role, "--ready-file", s.path("ready-trustee"))...)...)
}

func (s *site) setupKeyHSM() []string {
	return []string{"keyhsm", "setup", "softhsm", "--conf", s.path("keyhsm"), "--module", s.token.Module, "--token",
		s.token.Label, "--pin-file", s.token.PINFile, "--bits", "2048", "--host", "127.0.0.1"}
}

// keyHSM makes a Key HSM in the folder keyhsm.
func (s *site) keyHSM() {
	s.t.Helper()
	if out, status := s.run(s.setupKeyHSM()...); status != 0 {
		s.t.Fatalf("%d: %s", status, out)
	}
}

// setKeyHSM changes a line of the settings of the Key HSM.
func (s *site) setKeyHSM(name, value string) {
	s.t.Helper()
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` *=.*$`)
	text := s.read("keyhsm/application.properties")
	if !line.MatchString(text) {
		s.t.Fatalf("no %s in\n%s", name, text)
	}
	s.write("keyhsm/application.properties", line.ReplaceAllLiteralString(text, name+" = "+value))
}

func (s *site) remove(name string) {
	s.t.Helper()
	if err := os.Remove(s.path(name)); err != nil {
		s.t.Fatal(err)
	}
}

// background runs a server until the test ends, and returns the content of its file ready.
func (s *site) background(ready string, args ...string) string {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), hadoop.Binary(s.t), args...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	end := func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
	s.killed = end
	s.t.Cleanup(end)
	for range 6000 {
		if text, err := os.ReadFile(s.path(ready)); err == nil {
			return strings.TrimSpace(string(text))
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("%v is not ready: %s", args, out.String())
	return ""
}

// trusteeTemplate is a folder that trustee init has made. All tests share it, because its identity takes seconds
// to make.
var trusteeTemplate string

// trustee copies the template into the folder trustee.
func (s *site) trustee() {
	s.t.Helper()
	if err := os.CopyFS(s.path("trustee"), os.DirFS(trusteeTemplate)); err != nil {
		s.t.Fatal(err)
	}
	for _, private := range []string{"trustee", "trustee/.ssl"} {
		if err := os.Chmod(s.path(private), 0o700); err != nil {
			s.t.Fatal(err)
		}
	}
}

var (
	pid         = regexp.MustCompile(`process \d+`)
	keyID       = regexp.MustCompile(`\b[0-9a-f]{32}\b`)
	clock       = regexp.MustCompile(`T\d\d:\d\d:\d\dZ`)
	day         = regexp.MustCompile(`20\d\d-\d\d-\d\d`)
	aligned     = regexp.MustCompile(` {3,}`)
	fingerprint = regexp.MustCompile(`\b[0-9A-F]{40}\b`)
)

// plainTrustee is like plain, for messages of the Key Trustee side.
func (s *site) plainTrustee(text string) string {
	text = strings.ReplaceAll(text, s.path("keyhsm"), "/etc/keytrustee-keyhsm")
	text = strings.ReplaceAll(text, s.path("trustee"), "/var/lib/keytrustee/.keytrustee")
	text = strings.ReplaceAll(text, s.token.PINFile, "/etc/claviger/pin")
	text = pid.ReplaceAllString(text, "process 1234")
	text = keyID.ReplaceAllString(text, "00112233445566778899aabbccddeeff")
	if host, err := os.Hostname(); err == nil {
		text = strings.ReplaceAll(text, " on "+host+",", " on kts-1.example.com,")
	}
	text = clock.ReplaceAllString(text, "T10:00:00Z")
	text = day.ReplaceAllString(text, "2036-11-21")
	text = fingerprint.ReplaceAllString(text, strings.Repeat("AB", 20))
	text = aligned.ReplaceAllString(text, "  ") // the width of columns depends on the length of paths
	return s.plain(text)
}

// makeTrusteeTemplate makes the template once.
func makeTrusteeTemplate(t *testing.T) {
	t.Helper()
	trusteeTemplate = filepath.Join(t.TempDir(), ".keytrustee")
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, hadoop.Binary(t), "trustee", "init", "--confdir", trusteeTemplate,
		"--hostname", "127.0.0.1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestTrusteeSide provokes the faults in trusteeFaults.
func TestTrusteeSide(t *testing.T) {
	makeTrusteeTemplate(t)
	for name, fault := range trusteeFaults {
		t.Run(name, func(t *testing.T) { checkFault(t, name, fault) })
	}
}

// checkFault makes a fault, and checks the message and the exit status.
func checkFault(t *testing.T, name string, fault trusteeFault) {
	t.Helper()
	s := newSite(t)
	args := fault.set(s)
	out, status := s.run(args...)
	if status != fault.status {
		t.Errorf("exit status %d, want %d", status, fault.status)
	}
	golden(t, name, s.plainTrustee(out))
}
