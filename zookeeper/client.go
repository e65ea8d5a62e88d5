package zookeeper

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-zookeeper/zk"

	"claviger"
)

// Config says how to reach an ensemble.
type Config struct {
	Ensemble Ensemble
	// Property names the property that holds the connection string, for errors.
	Property string
	// SessionTimeout is what the servers are asked for; ConnectTimeout bounds each
	// attempt to connect, TLS and SASL included.
	SessionTimeout, ConnectTimeout time.Duration
	// Patience is how long an operation is tried again while there is no
	// connection, or the one there is does not answer.
	Patience time.Duration
	TLS      *tls.Config // nil: none
	// SASL makes the client's side of a Kerberos context with the server on a
	// host; nil: no authentication. Owner is then the only one who may touch the
	// nodes that are made: the user as whom the servers know us, the first
	// component of our principal.
	SASL  func(ctx context.Context, host string) (Initiator, error)
	Owner string
	Log   *slog.Logger // nil: none
}

// Client is a connection to an ensemble. Its methods may be called from many
// goroutines.
type Client struct {
	conf   Config
	acl    []zk.ACL // of the nodes that we make
	acls   acls     // of those that are there
	zk     *zk.Conn
	dialer *dialer
	stop   context.CancelFunc
	closed chan struct{} // closed when Close begins
	once   sync.Once
	done   chan struct{} // closed when the library has ended
	slots  chan struct{} // one for each operation under way
	// stalled is how long an answer may take before the connection is given up.
	stalled time.Duration
	// down is why the last operation got no answer within its patience; nil where one has
	// got an answer since. Then operations fail at once, but for one at a time that tries
	// it where the library, which connects anew by itself, has a session.
	down   atomic.Pointer[error]
	trying atomic.Bool
}

// maxOperations under way at once. A goroutine waits in each for an answer, and
// the library lets go of it when the connection breaks.
const maxOperations = 256

// Open starts a connection; it does not wait until there is one. Kind Invalid for
// a configuration that can't work.
func Open(conf Config) (*Client, error) {
	const op = "zookeeper.Open"
	switch {
	case len(conf.Ensemble.Servers) == 0:
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%s names no server", conf.Property)
	case conf.SessionTimeout < 100*time.Millisecond || conf.ConnectTimeout < 100*time.Millisecond ||
		conf.Patience < 100*time.Millisecond:
		return nil,
			claviger.Errorf(op, claviger.Invalid, "",
				"a session timeout of %v, a connection timeout of %v, a patience of %v: each must be at least 100 ms",
				conf.SessionTimeout, conf.ConnectTimeout, conf.Patience)
	case (conf.SASL == nil) != (conf.Owner == ""):
		return nil, claviger.Errorf(op, claviger.Invalid, "", "SASL needs an owner of the nodes, and an owner needs SASL")
	}
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	conf.Log = conf.Log.With("zookeeper", conf.Ensemble.String())
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{
		conf: conf, acl: zk.WorldACL(zk.PermAll), stop: stop,
		dialer:  &dialer{ctx: ctx, timeout: conf.ConnectTimeout, tls: conf.TLS, sasl: conf.SASL},
		closed:  make(chan struct{}),
		done:    make(chan struct{}),
		slots:   make(chan struct{}, maxOperations),
		stalled: max(conf.Patience/3, 50*time.Millisecond),
	}
	if conf.Owner != "" {
		c.acl = []zk.ACL{{Perms: zk.PermAll, Scheme: "sasl", ID: conf.Owner}}
	}
	conn, events, err := zk.Connect(conf.Ensemble.Servers, conf.SessionTimeout, zk.WithDialer(c.dialer.dial),
		zk.WithHostProvider(&hosts{}),
		zk.WithLogger(debugLog{conf.Log}), zk.WithMaxBufferSize(maxFrame))
	if err != nil {
		stop()
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	c.zk = conn
	go c.follow(events)
	return c, nil
}

// debugLog takes what the library says of each of its steps.
type debugLog struct{ log *slog.Logger }

func (l debugLog) Printf(format string, args ...any) {
	l.log.Debug("ZooKeeper client: " + fmt.Sprintf(format, args...))
}

// follow logs that the session came or went, until the library ends.
func (c *Client) follow(events <-chan zk.Event) {
	defer close(c.done)
	var told error
	up := false
	for e := range events {
		switch e.State {
		case zk.StateHasSession:
			up, told = true, nil
			c.conf.Log.Info("ZooKeeper session is there", "server", e.Server)
		case zk.StateExpired:
			c.conf.Log.Info("ZooKeeper session expired; making a new one")
		case zk.StateConnecting, zk.StateDisconnected:
			if up {
				up = false
				c.conf.Log.Warn("connection to ZooKeeper lost; making a new one")
			}
			if err := c.dialer.lastError(); err != nil && (told == nil || err.Error() != told.Error()) {
				told = err
				c.conf.Log.Warn("no connection to ZooKeeper", "property", c.conf.Property, "err", err)
			}
		}
	}
}

// Close ends the session and returns when nothing runs any more.
func (c *Client) Close() error {
	c.once.Do(func() {
		close(c.closed)
		if c.zk.State() != zk.StateHasSession {
			c.stop() // a dial under way
			c.dialer.drop()
		}
		c.zk.Close()
		c.stop()
		c.dialer.drop()
	})
	<-c.done
	return nil
}

// Check tells whether the ensemble answers.
func (c *Client) Check(ctx context.Context) error {
	_, _, err := do(ctx, c, "zookeeper.Check", "/", func(path string) (bool, error) {
		there, _, err := c.zk.Exists(path)
		return there, err
	})
	return err
}

// errStalled: the connection is there and nothing comes back.
var errStalled = errors.New("no answer")

// errInterrupted: there was no time left to wait for one.
var errInterrupted = errors.New("no answer in time")

// do runs an operation on a path until it is done, its failure is not one of the
// connection, ctx ends, or patience does. fn gets the path below the chroot. unsure
// is set where an attempt without an answer went before the last one: it may have
// taken effect, or may still, when the connection is back. What the library says
// about the node is returned as it is, to be asked for with errors.Is; all else as
// *claviger.Error of kind Unavailable, or Closed.
func do[T any](ctx context.Context, c *Client, op, path string, fn func(path string) (T, error)) (value T, unsure bool,
	err error) {
	full := c.conf.Ensemble.Chroot + path
	if path == "/" && c.conf.Ensemble.Chroot != "" {
		full = c.conf.Ensemble.Chroot
	}
	trial := false
	if why := c.down.Load(); why != nil && !c.isClosed() {
		if c.zk.State() != zk.StateHasSession || !c.trying.CompareAndSwap(false, true) {
			return value, false, c.failed(op, *why)
		}
		defer c.trying.Store(false)
		trial = true
	}
	patient, cancel := context.WithTimeout(ctx, c.conf.Patience)
	defer cancel()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 20*time.Millisecond, time.Second
	for ; ; unsure = true {
		value, err = attempt(patient, c, func() (T, error) { return fn(full) })
		switch {
		case err == nil || aboutNode(err):
			if c.down.Load() != nil {
				c.down.Store(nil)
			}
			return value, unsure, err
		case errors.Is(err, zk.ErrNoAuth), errors.Is(err, zk.ErrAuthFailed), errors.Is(err, zk.ErrInvalidACL):
			return value, unsure, c.refused(op, full, err)
		case c.isClosed():
			return value, unsure, claviger.Errorf(op, claviger.Closed, path, "the connection to ZooKeeper is closed")
		case !temporary(err):
			return value, unsure, c.failed(op, err)
		}
		if errors.Is(err, errStalled) {
			c.dialer.drop() // the library knows only after most of a session timeout
		}
		if trial {
			return value, true, c.failed(op, err)
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-c.closed:
		case <-patient.Done():
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			} else {
				why := err
				c.down.Store(&why)
			}
			return value, unsure, c.failed(op, err)
		}
	}
}

// attempt runs fn once, in a goroutine, since the library's calls can't be given
// up: it ends when the connection does.
func attempt[T any](ctx context.Context, c *Client, fn func() (T, error)) (value T, err error) {
	type answer struct {
		value T
		err   error
	}
	timer := time.NewTimer(c.stalled)
	defer timer.Stop()
	select {
	case c.slots <- struct{}{}:
	case <-timer.C:
		return value, errStalled
	case <-ctx.Done():
		return value, errInterrupted
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-c.slots }()
		value, err := fn()
		answered <- answer{value, err}
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-timer.C:
		return value, errStalled
	case <-ctx.Done():
		return value, errInterrupted
	case <-c.closed:
		return value, zk.ErrClosing
	}
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// aboutNode tells the errors that answer a question about a node.
func aboutNode(err error) bool {
	return errors.Is(err, zk.ErrNoNode) || errors.Is(err, zk.ErrNodeExists) || errors.Is(err, zk.ErrBadVersion) ||
		errors.Is(err, zk.ErrNotEmpty)
}

// temporary tells the errors after which another connection may do better.
func temporary(err error) bool {
	for _, t := range []error{errStalled, errInterrupted, zk.ErrConnectionClosed, zk.ErrNoServer, zk.ErrSessionExpired,
		zk.ErrSessionMoved, zk.ErrClosing} {
		if errors.Is(err, t) {
			return true
		}
	}
	// Errors that the library has no name for: connection loss, and an operation
	// that timed out between the servers.
	return err.Error() == "unknown error: -4" || err.Error() == "unknown error: -7"
}

// failed is the error for an operation that got no answer, with why there is no
// connection.
func (c *Client) failed(op string, err error) error {
	why := ""
	if last := c.dialer.lastError(); last != nil {
		err = last
	}
	if err.Error() == "unknown error: -124" {
		why = "; the servers demand SASL: set the authentication type to sasl, with keytab and principal"
	}
	told := claviger.Errorf(op, claviger.Unavailable, "", "ZooKeeper at %s (%s): %w%s", c.conf.Ensemble, c.conf.Property,
		err, why)
	if notReached(err) {
		return claviger.Away(told)
	}
	return told
}

// notReached tells an error that passes when the servers are there: no name that does
// not exist, no certificate or keytab that is wrong.
func notReached(err error) bool {
	var name *net.DNSError
	if errors.As(err, &name) && name.IsNotFound {
		return false
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, context.DeadlineExceeded) || temporary(err)
}

// refused is the error for a node that we may not touch.
func (c *Client) refused(op, path string, err error) error {
	who := "it was made by a node that authenticates; set the authentication type to sasl here too"
	if c.conf.Owner != "" {
		who = fmt.Sprintf("its ACL must name sasl:%s, and the servers must know us as %q: they need kerberos.removeHostFromPrincipal=true and kerberos.removeRealmFromPrincipal=true; a node that was made without SASL keeps its ACL until it is removed", c.conf.Owner, c.conf.Owner)
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "ZooKeeper at %s (%s): %w: %s: %s", c.conf.Ensemble,
		c.conf.Property, err, path, who)
}

// node is what is read of one.
type node struct {
	data     []byte
	version  int32
	created  int64 // the transaction that made it
	aversion int32 // how often its ACL was changed
}

// get reads a node.
func (c *Client) get(ctx context.Context, op, path string) (node, error) {
	n, _, err := do(ctx, c, op, path, func(path string) (node, error) {
		b, stat, err := c.zk.Get(path)
		if err != nil {
			return node{}, err
		}
		return node{b, stat.Version, stat.Czxid, stat.Aversion}, nil
	})
	return n, err
}

// children lists the names of a node's children.
func (c *Client) children(ctx context.Context, op, path string) ([]string, error) {
	names, _, err := do(ctx, c, op, path, func(path string) ([]string, error) {
		names, _, err := c.zk.Children(path)
		return names, err
	})
	return names, err
}

// countChildren is how many children would name, without their names; 0 where
// there is no such node.
func (c *Client) countChildren(ctx context.Context, op, path string) (int, error) {
	n, _, err := do(ctx, c, op, path, func(path string) (int, error) {
		_, stat, err := c.zk.Exists(path)
		if err != nil || stat == nil {
			return 0, err
		}
		return int(stat.NumChildren), nil
	})
	return n, err
}

// sync makes the server that we are connected to catch up with the leader.
func (c *Client) sync(ctx context.Context, op, path string) error {
	_, _, err := do(ctx, c, op, path, func(path string) (string, error) { return c.zk.Sync(path) })
	return err
}

// set writes a node of a version, -1 for any. unsure is do's.
func (c *Client) set(ctx context.Context, op, path string, data []byte, version int32) (unsure bool, err error) {
	_, unsure, err = do(ctx, c, op, path, func(path string) (*zk.Stat, error) { return c.zk.Set(path, data, version) })
	return unsure, err
}

// setTimed is set, and tells when the attempt that was answered wrote the node.
func (c *Client) setTimed(ctx context.Context, op, path string, data []byte, version int32) (w write, err error) {
	w, _, err = do(ctx, c, op, path, func(path string) (write, error) {
		asked := time.Now()
		stat, err := c.zk.Set(path, data, version)
		if err != nil {
			return write{}, err
		}
		return write{asked, time.UnixMilli(stat.Mtime), time.Now()}, nil
	})
	return w, err
}

// remove takes a node of a version away, -1 for any. unsure is do's.
func (c *Client) remove(ctx context.Context, op, path string, version int32) (unsure bool, err error) {
	_, unsure, err = do(ctx, c, op, path, func(path string) (struct{}, error) {
		return struct{}{},
			c.zk.Delete(path, version)
	})
	return unsure, err
}

// create makes a persistent node, and those above it where they are missing.
// unsure is do's.
func (c *Client) create(ctx context.Context, op, path string, data []byte) (unsure bool, err error) {
	one := func(path string, data []byte) (bool, error) {
		_, unsure, err := do(ctx, c, op, path, func(path string) (string, error) { return c.zk.Create(path, data, 0, c.acl) })
		return unsure, err
	}
	if unsure, err = one(path, data); !errors.Is(err, zk.ErrNoNode) {
		return unsure, err
	}
	full := c.conf.Ensemble.Chroot + path
	for i, r := range full {
		if r != '/' || i == 0 {
			continue
		}
		// The chroot's own nodes are among those above.
		_, _, err := do(ctx, c, op, path, func(string) (string, error) { return c.zk.Create(full[:i], nil, 0, c.acl) })
		if err != nil && !errors.Is(err, zk.ErrNodeExists) {
			return false, err
		}
	}
	return one(path, data)
}

// join puts the parts of a path together.
func join(parts ...string) string { return "/" + strings.Trim(strings.Join(parts, "/"), "/") }
