package zookeeper

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// hosts gives the library one server after the other, by name. Each connection resolves the name again, so a server
// may get a new address. TLS and Kerberos need the name of the server.
type hosts struct {
	mu      sync.Mutex
	servers []string
	next    int
	tried   int // servers since the last connection
}

// Init sets the servers, in the library's random order.
func (h *hosts) Init(servers []string) error {
	h.servers = servers
	return nil
}

// Len returns the number of servers.
func (h *hosts) Len() int { return len(h.servers) }

// Next returns the next server to try. wait is true if all servers failed since the last connection; then the
// library pauses for a second.
func (h *hosts) Next() (server string, wait bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	server = h.servers[h.next]
	h.next = (h.next + 1) % len(h.servers)
	if wait = h.tried >= len(h.servers); wait {
		h.tried = 0
	}
	h.tried++
	return server, wait
}

// Connected is called when a session is established.
func (h *hosts) Connected() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tried = 0
}

// dialer makes connections for the library. It keeps the last connection, and the error of the last attempt, which
// the library only logs.
type dialer struct {
	ctx     context.Context //nolint:containedctx // valid until the Client is closed: the library passes no context
	timeout time.Duration   // for TCP, TLS and SASL together
	tls     *tls.Config     // nil: no TLS
	sasl    func(ctx context.Context, host string) (Initiator, error)

	mu   sync.Mutex
	conn *conn
	err  error
}

func (d *dialer) dial(network, address string, _ time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, d.timeout)
	defer cancel()
	d.drop() // the library leaves the connection of an expired session open
	c, err := d.connect(ctx, network, address)
	if err != nil {
		d.setErr(fmt.Errorf("%s: %w", address, err))
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = c
	return c, nil
}

func (d *dialer) connect(ctx context.Context, network, address string) (*conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(address) // cannot fail: ParseEnsemble made it with JoinHostPort
	if d.tls != nil {
		conf := d.tls.Clone()
		conf.ServerName = host
		secure := tls.Client(raw, conf)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = raw.Close() // the error of the handshake is more useful
			return nil, fmt.Errorf("TLS: %w", err)
		}
		raw = secure
	}
	return &conn{Conn: raw, r: bufio.NewReader(raw), host: host, address: address, d: d}, nil
}

// drop closes the current connection. The library then makes a new one.
func (d *dialer) drop() {
	d.mu.Lock()
	c := d.conn
	d.conn = nil
	d.mu.Unlock()
	if c != nil {
		_ = c.Close() // an error means that it is closed already
	}
}

func (d *dialer) setErr(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// lastError returns the reason why there is no session; nil if there is one.
func (d *dialer) lastError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// A frame of the protocol is a length (int32) and that number of bytes. All numbers are big-endian. The server's first
// frame is the answer to the connect request:
//
//	int32 version | int32 timeout | int64 session | int32 length, password | bool read-only
//
// Each later frame begins with a reply header: int32 xid | int64 zxid | int32 error.
const (
	frameHeader    = 4
	replyHeader    = 16
	sessionOffset  = 8  // of the session's id in the answer to a connect request
	minConnect     = 20 // servers before 3.4: an empty password, and no bool
	maxConnect     = 256
	maxFrame       = 32 << 20 // a list of a million tokens is half as long
	sessionExpired = 0        // session id if the session to continue has expired
)

// conn is the connection that the library gets. It gives the library only frames within limits, because the library
// allocates any length that a server sends. conn does SASL before the library's first request.
type conn struct {
	net.Conn
	r       *bufio.Reader
	host    string
	address string
	d       *dialer

	started bool
	pending []byte // bytes that were read, and are not yet given to the library
	body    int    // bytes of the current frame that are not read yet
}

// Read returns bytes of the frames that the server sent.
func (c *conn) Read(p []byte) (int, error) {
	if !c.started {
		if err := c.startSession(); err != nil {
			c.d.setErr(fmt.Errorf("%s: %w", c.address, err))
			return 0, err
		}
		c.started = true
	}
	if len(c.pending) == 0 && c.body == 0 {
		n, err := readFrameLength(c.r, replyHeader, maxFrame)
		if err != nil {
			return 0, err
		}
		c.pending, c.body = binary.BigEndian.AppendUint32(nil, uint32(n)), n //nolint:gosec // between the two limits
	}
	if len(c.pending) > 0 {
		n := copy(p, c.pending)
		c.pending = c.pending[n:]
		return n, nil
	}
	n, err := c.r.Read(p[:min(len(p), c.body)])
	c.body -= n
	return n, err
}

// startSession reads the answer to the connect request that the library has just written, and then does SASL.
func (c *conn) startSession() error {
	// The library's own time limit is several session timeouts, which is too long.
	deadline := time.Now().Add(c.d.timeout)
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	n, err := readFrameLength(c.r, minConnect, maxConnect)
	if err != nil {
		return fmt.Errorf("no session: %w", err)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return fmt.Errorf("no session: %w", err)
	}
	if binary.BigEndian.Uint64(body[sessionOffset:]) != sessionExpired {
		if c.d.sasl != nil {
			ctx, cancel := context.WithDeadline(c.d.ctx, deadline)
			defer cancel()
			if err := c.authenticate(ctx); err != nil {
				return fmt.Errorf("SASL: %w", err)
			}
		}
		c.d.setErr(nil)
	}
	c.pending = append(binary.BigEndian.AppendUint32(nil, uint32(n)), body...) //nolint:gosec // at most maxConnect
	return c.SetDeadline(time.Time{})
}

var errFrame = errors.New("the server does not use ZooKeeper's protocol")

// readFrameLength reads the length of a frame. shortest and longest are the limits in bytes.
func readFrameLength(r io.Reader, shortest, longest int) (int, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n < int64(shortest) || n > int64(longest) {
		return 0, fmt.Errorf("%w: a frame has %d bytes, %d to %d are expected", errFrame, n, shortest, longest)
	}
	return int(n), nil
}
