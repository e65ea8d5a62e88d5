package audit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Writer is a Stream over something that never blocks for long: standard
// output.
type Writer struct {
	name string
	w    io.Writer
	err  error
}

// NewWriter returns a Stream that writes to w and does not close it.
func NewWriter(name string, w io.Writer) *Writer { return &Writer{name: name, w: w} }

// Send writes the line.
func (s *Writer) Send(line []byte) error {
	_, s.err = s.w.Write(line)
	return s.err
}

// Err is that of the last Send.
func (s *Writer) Err() error { return s.err }

// Close does nothing.
func (s *Writer) Close() error { return nil }

// Name is the name that it was given.
func (s *Writer) Name() string { return s.name }

// Syslog sends lines to a syslog server as RFC 5424 messages: one a datagram
// (RFC 5426, and Unix sockets), or with their length before them on a stream (RFC
// 6587, over TLS RFC 5425). Lines wait in a bounded queue; while the server is
// away it is dialled again, and what does not fit is lost, which the numbers of
// the records that arrive show. In the place of a record that is too long for a
// datagram a short one is sent, which says so.
type Syslog struct {
	addr     string
	network  string
	tls      *tls.Config // nil: none
	head     string      // between the time stamp and the message
	priority string
	queue    chan []byte
	stop     chan struct{}
	done     chan struct{}

	mu      sync.Mutex
	err     error
	dropped uint64

	replaced atomic.Uint64
}

// Of syslog: facility 13 is "log audit", severity 6 "informational" (RFC 5424,
// 6.2.1).
const (
	syslogPriority = 13*8 + 6
	syslogQueue    = 8192
	syslogDial     = 5 * time.Second
	syslogWrite    = 5 * time.Second
	syslogRetry    = time.Second
)

// OpenSyslog begins to send to the server of a URI: syslog+unix:///dev/log,
// syslog+udp://host:514, syslog+tcp://host:601, syslog+tls://host:6514. A server
// that is not there yet is no error. tlsConf is for tls.
func OpenSyslog(uri string, tlsConf *tls.Config) (*Syslog, error) {
	const shape = "it must be syslog+unix:///dev/log, or syslog+udp://, syslog+tcp:// or syslog+tls:// with HOST:PORT"
	u, err := url.Parse(uri)
	if err != nil || u.RawQuery != "" || u.User != nil {
		return nil, errors.New(shape)
	}
	s := &Syslog{queue: make(chan []byte, syslogQueue), stop: make(chan struct{}), done: make(chan struct{})}
	switch s.network = strings.TrimPrefix(u.Scheme, "syslog+"); s.network {
	case "unix":
		if s.addr = u.Path; u.Host != "" || !strings.HasPrefix(s.addr, "/") {
			return nil, errors.New(shape)
		}
	case "udp", "tcp", "tls":
		if s.addr = u.Host; u.Port() == "" || u.Hostname() == "" || u.Path != "" {
			return nil, errors.New(shape)
		}
	default:
		return nil, errors.New(shape)
	}
	if s.network == "tls" {
		s.network, s.tls = "tcp", &tls.Config{MinVersion: tls.VersionTLS12}
		if tlsConf != nil {
			s.tls = tlsConf.Clone()
		}
		s.tls.ServerName = u.Hostname()
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-"
	}
	s.priority = "<" + strconv.Itoa(syslogPriority) + ">1 "
	s.head = " " + host + " claviger " + strconv.Itoa(os.Getpid()) + " audit - "
	go s.run()
	return s, nil
}

// Name is where lines go.
func (s *Syslog) Name() string { return "syslog " + s.network + " " + s.addr }

// Send queues a line.
func (s *Syslog) Send(line []byte) error {
	m := append([]byte(s.priority), time.Now().UTC().Format(timeOfRecord)...)
	m = append(append(m, s.head...), strings.TrimSuffix(string(line), "\n")...)
	select {
	case s.queue <- m:
		return nil
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped++
	return fmt.Errorf("%d lines wait, no more are taken", syslogQueue)
}

// Err is nil while the server takes lines.
func (s *Syslog) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && s.dropped > 0 {
		return fmt.Errorf("%w; %d lines are lost to it", s.err, s.dropped)
	}
	return s.err
}

func (s *Syslog) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err = err; err == nil {
		s.dropped = 0
	}
}

// Replaced counts the records in whose place a LargeRecord was sent.
func (s *Syslog) Replaced() uint64 { return s.replaced.Load() }

// run sends what is queued. A line that could not be sent whole is sent again, but for
// one that fits no datagram: it would stop all that come after it.
func (s *Syslog) run() {
	defer close(s.done)
	var conn net.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for {
		var m []byte
		select {
		case m = <-s.queue:
		case <-s.stop:
			s.drain(conn)
			return
		}
		for {
			var err error
			if conn == nil {
				conn, err = s.dial()
			}
			if err == nil {
				if err = s.deliver(conn, m); err != nil {
					_ = conn.Close()
					conn = nil
				}
			}
			if s.set(err); err == nil {
				break
			}
			select {
			case <-time.After(syslogRetry):
			case <-s.stop:
				return
			}
		}
	}
}

// drain sends what is left at the end, while that works.
func (s *Syslog) drain(conn net.Conn) {
	for conn != nil {
		select {
		case m := <-s.queue:
			if s.deliver(conn, m) != nil {
				return
			}
		default:
			return
		}
	}
}

func (s *Syslog) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), syslogDial)
	defer cancel()
	d := &net.Dialer{}
	switch {
	case s.tls != nil:
		return (&tls.Dialer{NetDialer: d, Config: s.tls}).DialContext(ctx, "tcp", s.addr)
	case s.network == "unix": // most listen for datagrams
		if conn, err := d.DialContext(ctx, "unixgram", s.addr); err == nil {
			return conn, nil
		}
	}
	return d.DialContext(ctx, s.network, s.addr)
}

// deliver sends a message, or what stands for one that fits no datagram.
func (s *Syslog) deliver(conn net.Conn, m []byte) error {
	err := s.write(conn, m)
	if !errors.Is(err, syscall.EMSGSIZE) {
		return err
	}
	head := len(s.priority) + len(timeOfRecord) + len(s.head)
	err = s.write(conn, append(m[:head:head], instead(m[head:])...))
	if err == nil || errors.Is(err, syscall.EMSGSIZE) { // where even that is too long, its number is missed
		s.replaced.Add(1)
		return nil
	}
	return err
}

// instead is the line of the LargeRecord that stands for a line.
func instead(line []byte) []byte {
	const text = 256 // bytes that are kept of each text
	r, err := ParseRecord(line)
	if err != nil {
		r = Record{} // then all that can be said is how long it was
	}
	seq, prev, sum := r.Seq, r.Prev, r.Hash
	r.shorten(text, 0)
	r.Kind, r.Bytes = LargeRecord, len(line)
	b := fmt.Appendf(nil, `{"seq":%d,"prev":"%s",%s`, seq, prev, encodeBody(r))
	return append(append(append(b, hashMember...), sum...), `"}`...)
}

func (s *Syslog) write(conn net.Conn, m []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(syslogWrite)); err != nil {
		return err
	}
	switch conn.LocalAddr().Network() {
	case "tcp", "unix":
		m = append(strconv.AppendInt(nil, int64(len(m)), 10), append([]byte{' '}, m...)...)
	}
	_, err := conn.Write(m)
	return err
}

// Close sends what is queued, where the server is there, and ends.
func (s *Syslog) Close() error {
	close(s.stop)
	<-s.done
	return nil
}
