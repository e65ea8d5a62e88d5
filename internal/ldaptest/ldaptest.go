// Package ldaptest runs a real OpenLDAP server for tests, on a free port of loopback.
// If slapd is missing, the test is skipped, or fails if CLAVIGER_REQUIRE_LDAP is set.
package ldaptest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger/internal/porttest"
)

// User and Password are the login of a client.
const (
	User     = "cn=reader,dc=example,dc=com"
	Password = "read me"
)

// Server is a server of dc=example,dc=com that refuses anonymous clients. The end of the
// test stops it.
type Server struct {
	URL string

	conf string
	cmd  *exec.Cmd
}

// Start starts a server with the entries of an LDIF text.
func Start(t *testing.T, ldif string) *Server {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin")
	if _, err := exec.LookPath("slapd"); err != nil {
		if os.Getenv("CLAVIGER_REQUIRE_LDAP") == "1" {
			t.Fatal("slapd is missing: `make setup` installs it, or: apt-get install slapd")
		}
		t.Skip("slapd is missing: `make setup` installs it")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	modules := ""
	if found, _ := filepath.Glob("/usr/lib/ldap/back_mdb.*"); len(found) > 0 {
		modules = "modulepath /usr/lib/ldap\nmoduleload back_mdb\n"
	}
	s := &Server{conf: filepath.Join(dir, "slapd.conf")}
	conf := modules + fmt.Sprintf(`include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
disallow bind_anon
require authc
database mdb
maxsize 1073741824
suffix "dc=example,dc=com"
rootdn "%s"
rootpw "%s"
directory %s/db
`, User, Password, dir)
	if err := os.WriteFile(s.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	add := exec.CommandContext(t.Context(), "slapadd", "-f", s.conf)
	add.Stdin = strings.NewReader(ldif)
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("slapadd: %v\n%s", err, out)
	}
	address, err := porttest.Address()
	if err != nil {
		t.Fatal(err)
	}
	s.URL = "ldap://" + address
	s.Start(t)
	t.Cleanup(s.Stop)
	return s
}

// Start starts the server again after Stop, with the same entries and port.
func (s *Server) Start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command("slapd", "-d", "0", "-f", s.conf, "-h", s.URL) //nolint:noctx // stop ends it
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.URL, "ldap://"))
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("slapd does not serve: %v\n%s", err, out.String())
		}
	}
}

// Stop kills the server.
func (s *Server) Stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait() // Kill has ended it
		s.cmd = nil
	}
}
