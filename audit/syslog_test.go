package audit

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWriterFails: a Writer returns the error of its io.Writer from Send and from Err.
func TestWriterFails(t *testing.T) {
	w := &faulty{broken: errors.New("the reader has gone")}
	s := NewWriter("stdout", w)
	if err := s.Send([]byte("a\n")); !errors.Is(err, w.broken) || !errors.Is(s.Err(), w.broken) {
		t.Errorf("Send: %v, Err: %v", err, s.Err())
	}
	w.broken = nil
	if err := s.Send([]byte("b\n")); err != nil || s.Err() != nil || w.String() != "b\n" {
		t.Errorf("Send: %v, Err: %v, written %q", err, s.Err(), w)
	}
}

// TestSyslogLosesLines: Send fails if the queue is full, and Err has the number of lost lines, until the server
// accepts a line again.
func TestSyslogLosesLines(t *testing.T) {
	down := errors.New("connection refused")
	for _, during := range []error{nil, down} {
		s := &Syslog{queue: make(chan []byte, 1)}
		s.setErr(during)
		if err := s.Send([]byte("a\n")); err != nil || !errors.Is(s.Err(), during) {
			t.Errorf("%v: Send: %v, Err: %v", during, err, s.Err())
		}
		if s.Err() != nil && strings.Contains(s.Err().Error(), "lost") {
			t.Errorf("before a line is lost: %v", s.Err())
		}
		for range 2 {
			if err := s.Send([]byte("b\n")); err == nil || !strings.Contains(err.Error(), "the queue is full") {
				t.Errorf("%v, with a full queue: %v", during, err)
			}
		}
		for _, later := range []error{during, down} { // another error does not reset the number
			if err := s.Err(); err == nil || during != nil && !errors.Is(err, during) ||
				!strings.Contains(err.Error(), "2 lines were not sent and are lost") {
				t.Errorf("%v: %v", during, err)
			}
			if later != nil {
				s.setErr(later)
			}
		}
		s.setErr(nil)
		if err := s.Err(); err != nil {
			t.Errorf("after a line was accepted: %v", err)
		}
	}
}

// TestSyslogSendsAllAtClose: Close sends all queued lines over the same connection, then closes the connection.
func TestSyslogSendsAllAtClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s, err := OpenSyslog("syslog+unix://"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	const lines = 60
	for i := range lines { // together they are longer than the buffers of the socket
		if err := s.Send([]byte(fmt.Sprint(i, strings.Repeat("x", 64<<10)))); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	for i := range lines {
		if got := frame(t, conn, in); !strings.Contains(got, fmt.Sprintf(" %s claviger %d audit - %dx", host,
			os.Getpid(), i)) {
			t.Fatalf("message %d is %.200q", i, got)
		}
		if i == 0 {
			close(s.stop) // now, as Close does
			go func() { <-s.done; closed <- nil }()
		}
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last line: %v", err)
	}
	<-closed
}

// TestDrain: drain sends nothing without a connection, and ends at the first line that cannot be sent.
func TestDrain(t *testing.T) {
	for name, test := range map[string]struct {
		conn net.Conn
		left int
	}{
		"no connection": {nil, 3},
		"connection":    {&fakeConn{}, 0},
		"broken":        {&fakeConn{errs: []error{syscall.EPIPE}}, 2},
	} {
		s := &Syslog{queue: make(chan []byte, 3)}
		for range 3 {
			if err := s.Send([]byte("a\n")); err != nil {
				t.Fatal(err)
			}
		}
		if s.drain(test.conn); len(s.queue) != test.left {
			t.Errorf("%s: %d lines are left, want %d", name, len(s.queue), test.left)
		}
	}
}

// fakeConn is a connection whose writes return errs in turn, then nil. SetWriteDeadline returns deadline.
type fakeConn struct {
	net.Conn
	errs     []error
	deadline error
	wrote    bytes.Buffer
}

func (*fakeConn) LocalAddr() net.Addr                { return &net.UDPAddr{} }
func (c *fakeConn) SetWriteDeadline(time.Time) error { return c.deadline }

func (c *fakeConn) Write(b []byte) (int, error) {
	if len(c.errs) > 0 {
		err := c.errs[0]
		c.errs = c.errs[1:]
		if err != nil {
			return 0, err
		}
	}
	return c.wrote.Write(b)
}

// TestDeliverFails: deliver returns each error of the connection. It returns no error if a record is too long, even if
// the LargeRecord in its place is too long.
func TestDeliverFails(t *testing.T) {
	for name, test := range map[string]struct {
		conn     *fakeConn
		want     error
		replaced uint64
	}{
		"deadline":             {&fakeConn{deadline: net.ErrClosed}, net.ErrClosed, 0},
		"first write":          {&fakeConn{errs: []error{syscall.EPIPE}}, syscall.EPIPE, 0},
		"too long":             {&fakeConn{errs: []error{syscall.EMSGSIZE}}, nil, 1},
		"too long, then fails": {&fakeConn{errs: []error{syscall.EMSGSIZE, syscall.EPIPE}}, syscall.EPIPE, 0},
		"always too long":      {&fakeConn{errs: []error{syscall.EMSGSIZE, syscall.EMSGSIZE}}, nil, 1},
	} {
		s := &Syslog{}
		if err := s.deliver(test.conn, []byte(strings.Repeat("x", 100))); !errors.Is(err, test.want) ||
			s.Replaced() != test.replaced {
			t.Errorf("%s: %v, %d replaced", name, err, s.Replaced())
		}
		if test.want != nil && test.conn.wrote.Len() > 0 {
			t.Errorf("%s: wrote %q", name, &test.conn.wrote)
		}
	}
}

// TestSyslogTLS: lines are sent only to a server whose certificate is trusted.
func TestSyslogTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate, which is for 127.0.0.1
	defer web.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates,
		MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	for _, conf := range []*tls.Config{nil, {RootCAs: roots, MinVersion: tls.VersionTLS12}} {
		s, err := OpenSyslog("syslog+tls://"+l.Addr().String(), conf)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send([]byte("a line\n")); err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if conf == nil {
			_, err := conn.Read(make([]byte, 1))
			waitFor(t, func() bool { return s.Err() != nil })
			if e := new(tls.CertificateVerificationError); err == nil || !errors.As(s.Err(), &e) {
				t.Errorf("a certificate that is not trusted: %v, the server: %v", s.Err(), err)
			}
		} else if got := frame(t, conn, bufio.NewReader(conn)); !strings.HasSuffix(got, " audit - a line") {
			t.Errorf("message %q", got)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); (err != nil) != (conf == nil) {
			t.Errorf("Close: %v", err)
		}
	}
}

// sockets returns the number of open sockets of this process.
func sockets(t *testing.T) (n int) {
	t.Helper()
	for _, target := range openFiles(t) {
		if strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

// openFiles returns what the open descriptors of this process refer to.
func openFiles(t *testing.T) (targets []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("there is no list of open files: ", err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			targets = append(targets, target)
		}
	}
	return targets
}

// TestStreamErrors: StreamErr names each stream that fails, and Replaced counts the records that streams replaced. A
// chain without a file refuses an operation if no stream accepts its record.
func TestStreamErrors(t *testing.T) {
	fails := errors.New("the peer is slow")
	good := &refusingStream{takes: func(string) bool { return true }}
	bad := &refusingStream{takes: func(line string) bool { return strings.Contains(line, `"kind":"begin"`) }}
	for name, test := range map[string]struct {
		streams []Stream
		accepts bool
	}{
		"one":  {[]Stream{&replacing{refusingStream: bad}}, false},
		"both": {[]Stream{&replacing{refusingStream: bad, err: fails}, good}, true},
	} {
		c, err := OpenChain(t.Context(), ChainConfig{Node: "n", Streams: test.streams, HeadEvery: time.Hour,
			Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Begin(t.Context(), Event{Op: CreateKey}); (err == nil) != test.accepts ||
			err != nil && !strings.Contains(err.Error(), "no stream accepts the records") {
			t.Errorf("%s: Begin: %v", name, err)
		}
		err = c.StreamErr()
		if test.accepts && (!errors.Is(err, fails) || err.Error() != "refusingStream: the peer is slow") ||
			!test.accepts && err != nil {
			t.Errorf("%s: StreamErr: %v", name, err)
		}
		if c.Replaced() != 2 {
			t.Errorf("%s: %d records were replaced", name, c.Replaced())
		}
		closeChain(t, c)
	}
}

// replacing is a stream that has replaced two records, and has the error err.
type replacing struct {
	*refusingStream
	err error
}

func (*replacing) Replaced() uint64 { return 2 }
func (r *replacing) Err() error     { return r.err }
