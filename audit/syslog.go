package audit

import (
	"cmp"
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

// Writer is a Stream that writes to an io.Writer. The io.Writer must not block for long; an example is standard output.
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

// Err is the error of the last Send.
func (s *Writer) Err() error { return s.err }

// Close does nothing.
func (s *Writer) Close() error { return nil }

// Name is the name given to NewWriter.
func (s *Writer) Name() string { return s.name }

// Syslog sends lines to a syslog server as RFC 5424 messages. With datagrams (RFC 5426, and Unix sockets) there is one
// message in a datagram. On a stream (RFC 6587, and RFC 5425 with TLS) the length precedes each message.
//
// Lines wait in a queue of limited length. While the server does not answer, Syslog connects again and again; lines
// that do not fit in the queue are lost. The server can see that from the numbers of the records. A record that is too
// long for a datagram is replaced by a LargeRecord.
type Syslog struct {
	addr     string
	network  string
	tls      *tls.Config // nil: no TLS
	head     string      // the part between the time stamp and the message
	priority string
	queue    chan []byte
	stop     chan struct{}
	done     chan struct{}
	unsent   int // lines that were taken off the queue and not sent; read it after done is closed

	mu      sync.Mutex
	err     error
	dropped uint64

	replaced atomic.Uint64
}

const (
	// syslogPriority is facility 13 ("log audit") and severity 6 ("informational"), see RFC 5424, 6.2.1.
	syslogPriority = 13*8 + 6
	syslogQueue    = 8192            // lines
	syslogDial     = 5 * time.Second // timeout
	syslogWrite    = 5 * time.Second // timeout
	syslogRetry    = time.Second
)

var errSlow = errors.New("the server reads too slowly")

// OpenSyslog begins to send to the server of a URI: syslog+unix:///dev/log, syslog+udp://host:514,
// syslog+tcp://host:601 or syslog+tls://host:6514. The server need not be up yet. tlsConf is for syslog+tls.
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
	host, _ := os.Hostname() // "" after an error
	s.priority = "<" + strconv.Itoa(syslogPriority) + ">1 "
	s.head = " " + cmp.Or(host, "-") + " claviger " + strconv.Itoa(os.Getpid()) + " audit - "
	go s.run()
	return s, nil
}

// Name is "syslog" with the network and the address.
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
	return fmt.Errorf("%d lines wait to be sent, and the queue is full", syslogQueue)
}

// Err is nil while the server accepts lines, and no line was lost since the server last accepted a line.
func (s *Syslog) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped == 0 {
		return s.err
	}
	return fmt.Errorf("%w; %d lines were not sent and are lost", cmp.Or(s.err, errSlow), s.dropped)
}

func (s *Syslog) setErr(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err = err; err == nil {
		s.dropped = 0
	}
}

// Replaced returns the number of records that were too long for a datagram: each was replaced by a LargeRecord, or
// dropped if that was too long as well.
func (s *Syslog) Replaced() uint64 { return s.replaced.Load() }

// run sends the queued lines. A line that could not be sent is sent again. deliver does not fail for a line that is
// too long for a datagram; otherwise such a line would block all later lines.
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
			if conn == nil && len(s.queue) > 0 { // Close came before the first line was sent
				conn, _ = s.dial() // after an error, Close reports the number of lines that were not sent
			}
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
			if s.setErr(err); err == nil {
				break
			}
			select {
			case <-time.After(syslogRetry):
			case <-s.stop:
				s.unsent = 1
				return
			}
		}
	}
}

// drain sends the queued lines for Close, until a line fails.
func (s *Syslog) drain(conn net.Conn) {
	for conn != nil {
		select {
		case m := <-s.queue:
			if s.deliver(conn, m) != nil {
				s.unsent = 1
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
	case s.network == "unix": // most servers listen for datagrams
		if conn, err := d.DialContext(ctx, "unixgram", s.addr); err == nil {
			return conn, nil
		}
	}
	return d.DialContext(ctx, s.network, s.addr)
}

// deliver sends a message. If the message is too long for a datagram, deliver sends a LargeRecord instead.
func (s *Syslog) deliver(conn net.Conn, m []byte) error {
	err := s.write(conn, m)
	if !errors.Is(err, syscall.EMSGSIZE) {
		return err
	}
	head := len(s.priority) + len(timeOfRecord) + len(s.head)
	err = s.write(conn, append(m[:head:head], largeLine(m[head:])...))
	if err == nil || errors.Is(err, syscall.EMSGSIZE) {
		s.replaced.Add(1) // if even the LargeRecord is too long, the server sees a gap in the records' numbers
		return nil
	}
	return err
}

// largeLine returns the line of the LargeRecord that replaces a line.
func largeLine(line []byte) []byte {
	r, err := ParseRecord(line)
	if err != nil {
		r = Record{} // only the length is known
	}
	seq, prev, sum := r.Seq, r.Prev, r.Hash
	r.shorten(256, 0) // bytes that are kept of each text
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

// Close sends the queued lines, and ends. If the server does not accept them, the error has their number.
func (s *Syslog) Close() error {
	close(s.stop)
	<-s.done
	if n := s.unsent + len(s.queue); n > 0 {
		return fmt.Errorf("%s does not accept lines: %d lines were not sent and are lost", s.Name(), n)
	}
	return nil
}
