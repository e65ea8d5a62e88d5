package web

import (
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"claviger/internal/certtest"
	"claviger/secret"
)

// site has what the servers of a test share: an authority, a certificate, a clock and secrets.
type site struct {
	t         *testing.T
	authority *certtest.Authority
	file      string        // the certificate
	late      time.Duration // how far the clock is ahead
	current   secret.Bytes
	others    []secret.Bytes // valid, and not current
}

func newSite(t *testing.T) *site {
	t.Helper()
	a := certtest.NewUntil(t, t.TempDir(), time.Now().Add(30*24*time.Hour))
	return &site{t: t, authority: a, file: a.Issue("server", "127.0.0.1"), current: secret.Bytes("first")}
}

func (s *site) now() time.Time { return time.Now().Add(s.late) }

// secrets is a Secrets.
func (s *site) secrets() (current secret.Bytes, valid []secret.Bytes) {
	return s.current, append([]secret.Bytes{s.current}, s.others...)
}

// server makes one of the servers.
func (s *site) server() *TLS {
	s.t.Helper()
	load := func() ([]tls.Certificate, error) { return loadPair(s.file) }
	served, err := FollowCertificate([]string{s.file}, load, newServer().Log)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(served.Close)
	served.Config.Time = s.now
	served.ShareTickets(s.secrets)
	return served
}

// client makes a client that keeps one session, for one version of TLS.
func (s *site) client(version uint16) *tls.Config {
	return &tls.Config{RootCAs: s.authority.Pool(), ServerName: "127.0.0.1", MinVersion: version, MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(1), Time: s.now}
}

// resumes connects a client to a server, and reports whether the session of its last connection was resumed.
func resumes(served *TLS, client *tls.Config) (resumed bool, err error) {
	l, err := tls.Listen("tcp", "127.0.0.1:0", served.Config)
	if err != nil {
		return false, err
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = conn.Write([]byte("ok"))
			err = errors.Join(err, conn.Close())
		}
		ended <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, err = io.ReadAll(conn) // TLS 1.3: the ticket comes before the text
		resumed = conn.ConnectionState().DidResume
		_ = conn.Close()
	}
	return resumed, errors.Join(err, <-ended)
}

// want connects as resumes does, and compares the result.
func (s *site) want(why string, served *TLS, client *tls.Config, resumed bool) {
	s.t.Helper()
	if got, err := resumes(served, client); got != resumed || err != nil {
		s.t.Errorf("%s: resumed %t, %v", why, got, err)
	}
}

// TestTicketsOfTwoServers: a ticket of one server is valid at the other as long as its secret is, and nowhere else.
func TestTicketsOfTwoServers(t *testing.T) {
	s := newSite(t)
	a, b, c := s.server(), s.server(), s.client(tls.VersionTLS13)
	s.want("the first connection", a, c, false)
	s.want("the same server", a, c, true)
	s.want("the other server", b, c, true)
	s.current, s.others = secret.Bytes("second"), []secret.Bytes{s.current}
	s.want("a ticket of the previous secret", a, c, true)
	s.others = nil
	s.want("a ticket of the current secret, without the previous", b, c, true)
	s.current = secret.Bytes("third")
	s.want("a secret that has ended", a, c, false)
	s.current, s.others = secret.Bytes("fourth"), []secret.Bytes{s.current, secret.Bytes("next")}
	s.want("one of three secrets", b, c, true)

	other := s.server()
	other.ShareTickets(func() (secret.Bytes, []secret.Bytes) {
		return secret.Bytes("another site's"), []secret.Bytes{secret.Bytes("another site's")}
	})
	s.want("the secret of another site", other, c, false)
	s.want("the ticket of another site", a, c, false)
	alone := s.server()
	alone.tickets.shared.Store(nil)
	s.want("a server that shares nothing", alone, c, false)
	s.want("the same server again", alone, c, true)
	s.want("the ticket of a server that shares nothing", a, c, false)
}

// TestNoTicketKeys: if the keys of tickets cannot be derived, no ticket is made or opened. Go's FIPS mode refuses to
// derive keys from a short secret. The mode is chosen when a process starts.
func TestNoTicketKeys(t *testing.T) {
	const inChild = "CLAVIGER_TEST_FIPS"
	if os.Getenv(inChild) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inChild+"=1", "GODEBUG=fips140=only")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	if !fips140.Enforced() {
		t.Fatal("this process is not in the FIPS mode")
	}
	var shared tickets
	shared.shared.Store(&sharedTickets{secrets: func() (secret.Bytes, []secret.Bytes) {
		return secret.Bytes("short"), []secret.Bytes{secret.Bytes("short")}
	}})
	m := &ticketMaker{tickets: &shared, now: time.Now}
	state := tls.ConnectionState{Version: tls.VersionTLS13}
	if _, err := shared.keysFor(tls.VersionTLS13); err == nil {
		t.Error("keys were derived")
	}
	if ticket, err := m.wrap(state, &tls.SessionState{}); err == nil {
		t.Errorf("the ticket %x was made", ticket)
	}
	if session, err := m.unwrap([]byte("ticket"), state); err == nil {
		t.Errorf("the session %v was resumed", session)
	}
}

// TestTicketsOfTLS12: the key of a connection of TLS 1.2, which is in its ticket, never depends on a secret that others
// know.
func TestTicketsOfTLS12(t *testing.T) {
	s := newSite(t)
	a, b, c := s.server(), s.server(), s.client(tls.VersionTLS12)
	s.want("the first connection", a, c, false)
	s.want("the same server", a, c, true)
	s.want("the other server", b, c, false)
}

// TestTicketsOfAnotherCertificate: a session does not outlive the certificate that the client has seen.
func TestTicketsOfAnotherCertificate(t *testing.T) {
	s := newSite(t)
	c := s.client(tls.VersionTLS13)
	s.want("the first connection", s.server(), c, false)
	s.want("the same certificate", s.server(), c, true)
	s.file = s.authority.Issue("renewed", "127.0.0.1")
	renewed := s.server()
	s.want("another certificate", renewed, c, false)
	s.want("the same certificate again", renewed, c, true)
}

// TestAgeOfTickets: however often a session is resumed, it ends a day after its full handshake.
func TestAgeOfTickets(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s := newSite(t)
		served, c := s.server(), s.client(version)
		s.want("the first connection", served, c, false)
		for _, late := range []time.Duration{9 * time.Hour, 18 * time.Hour, 23 * time.Hour} {
			s.late = late
			s.want(s.late.String()+" after the handshake", served, c, true)
		}
		s.late = 25 * time.Hour
		s.want("a day after the handshake", served, c, false)
		s.late = 48 * time.Hour
		s.want("less than a day after the second handshake", served, c, true)
	}
}

// TestTicketsOfClientCertificates: a client with a ticket cannot avoid the check of its certificate.
func TestTicketsOfClientCertificates(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s := newSite(t)
		requires := func(a *certtest.Authority) *TLS {
			served := s.server()
			roots := func() (*x509.CertPool, error) { return a.Pool(), nil }
			if err := served.RequireClientCertificates([]string{a.CA}, roots, newServer().Log); err != nil {
				t.Fatal(err)
			}
			return served
		}
		c := s.client(version)
		served := s.server()
		s.want("without a certificate", served, c, false)
		strict := requires(s.authority)
		// One process, whose settings have changed: its own keys are the same.
		strict.tickets.own.SetSessionTicketKeys([][32]byte{{1}})
		served.tickets.own.SetSessionTicketKeys([][32]byte{{1}})
		file := s.authority.Issue("alice")
		alice, err := tls.LoadX509KeyPair(file, file)
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{alice}
		s.want("a ticket of a server that requires no certificate", strict, c, false)
		s.want("with a certificate", strict, c, true)
		other := requires(certtest.New(t, t.TempDir()))
		other.tickets.own.SetSessionTicketKeys([][32]byte{{1}})
		conf := c.Clone()
		conf.Certificates = nil
		if got, err := resumes(other, conf); got || err == nil {
			t.Errorf("a certificate of an authority that is not trusted any more: resumed %t, %v", got, err)
		}
	}
}
