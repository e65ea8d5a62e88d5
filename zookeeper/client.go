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

// Config describes the connection to an ensemble.
type Config struct {
	Ensemble Ensemble
	// Property is the name of the property with the connection string, for errors.
	Property string
	// SessionTimeout is the session timeout that the client requests. ConnectTimeout limits each attempt to
	// connect, with TLS and SASL.
	SessionTimeout, ConnectTimeout time.Duration
	// RetryTimeout is the time for which an operation is retried while there is no connection, or no answer.
	RetryTimeout time.Duration
	TLS          *tls.Config // nil: no TLS
	// SASL makes the client's side of a Kerberos context with the server on a host; nil means no authentication.
	// With SASL, only Owner may read and change the nodes that we make. Owner is our user name at the servers: the
	// first component of our principal.
	SASL  func(ctx context.Context, host string) (Initiator, error)
	Owner string
	Log   *slog.Logger // nil: none
}

// Client is a connection to an ensemble. Its methods may be called from many goroutines.
type Client struct {
	conf   Config
	acl    []zk.ACL // of new nodes
	acls   acls     // of existing nodes
	zk     *zk.Conn
	dialer *dialer
	stop   context.CancelFunc
	closed chan struct{} // closed when Close begins
	once   sync.Once
	done   chan struct{} // closed when the library has ended
	slots  chan struct{} // one element for each running operation
	// answerLimit is the time limit for an answer. After it the connection is closed.
	answerLimit time.Duration
	// down is the error of the last operation that got no answer within Config.RetryTimeout; nil after an answer. While
	// down is set, operations fail at once. Only one at a time is tried, if the library has a session again.
	down   atomic.Pointer[error]
	trying atomic.Bool
}

// maxOperations is the largest number of operations at the same time. Each has a goroutine that waits for an
// answer, and ends at the latest when the connection breaks.
const maxOperations = 256

// Open starts to connect, and does not wait for a connection. The error is of kind Invalid for a configuration that
// cannot work.
func Open(conf Config) (*Client, error) {
	const op = "zookeeper.Open"
	switch {
	case len(conf.Ensemble.Servers) == 0:
		return nil, claviger.Errorf(op, claviger.Invalid, "", "%s names no server", conf.Property)
	case conf.SessionTimeout < 100*time.Millisecond || conf.ConnectTimeout < 100*time.Millisecond ||
		conf.RetryTimeout < 100*time.Millisecond:
		return nil,
			claviger.Errorf(op, claviger.Invalid, "",
				"a session timeout of %v, a connection timeout of %v, a retry timeout of %v: each must be at least "+
					"100 ms",
				conf.SessionTimeout, conf.ConnectTimeout, conf.RetryTimeout)
	case (conf.SASL == nil) != (conf.Owner == ""):
		return nil, claviger.Errorf(op, claviger.Invalid, "", "SASL needs an owner of the nodes, and an owner "+
			"needs SASL")
	}
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	conf.Log = conf.Log.With("zookeeper", conf.Ensemble.String())
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{
		conf: conf, acl: zk.WorldACL(zk.PermAll), stop: stop,
		dialer: &dialer{ctx: ctx, timeout: conf.ConnectTimeout, tls: conf.TLS, sasl: conf.SASL},
		closed: make(chan struct{}), done: make(chan struct{}), slots: make(chan struct{}, maxOperations),
		answerLimit: max(conf.RetryTimeout/3, 50*time.Millisecond),
	}
	if conf.Owner != "" {
		c.acl = []zk.ACL{{Perms: zk.PermAll, Scheme: "sasl", ID: conf.Owner}}
	}
	conn, events, err := zk.Connect(conf.Ensemble.Servers, conf.SessionTimeout, zk.WithDialer(c.dialer.dial),
		zk.WithHostProvider(&hosts{}), zk.WithLogger(debugLog{conf.Log}), zk.WithMaxBufferSize(maxFrame))
	if err != nil {
		stop()
		return nil, claviger.E(op, claviger.Invalid, "", err)
	}
	c.zk = conn
	go c.logEvents(events)
	return c, nil
}

// debugLog writes the messages of the library to the log, at level debug.
type debugLog struct{ log *slog.Logger }

func (l debugLog) Printf(format string, args ...any) {
	l.log.Debug("ZooKeeper client: " + fmt.Sprintf(format, args...))
}

// logEvents logs the start and the end of each session, until the library ends.
func (c *Client) logEvents(events <-chan zk.Event) {
	defer close(c.done)
	var logged error
	up := false
	for e := range events {
		switch e.State {
		case zk.StateHasSession:
			up, logged = true, nil
			c.conf.Log.Info("ZooKeeper session established", "server", e.Server)
		case zk.StateExpired:
			c.conf.Log.Info("ZooKeeper session expired; making a new one")
		case zk.StateConnecting, zk.StateDisconnected:
			if up {
				up = false
				c.conf.Log.Warn("connection to ZooKeeper lost; making a new one")
			}
			if err := c.dialer.lastError(); err != nil && (logged == nil || err.Error() != logged.Error()) {
				logged = err
				c.conf.Log.Warn("no connection to ZooKeeper", "property", c.conf.Property, "err", err)
			}
		}
	}
}

// Close ends the session, and returns when all goroutines have ended.
func (c *Client) Close() error {
	c.once.Do(func() {
		close(c.closed)
		if c.zk.State() != zk.StateHasSession {
			c.stop() // ends a running dial
			c.dialer.drop()
		}
		c.zk.Close()
		c.stop()
		c.dialer.drop()
	})
	<-c.done
	return nil
}

// Check returns an error if the ensemble does not answer.
func (c *Client) Check(ctx context.Context) error {
	_, _, err := do(ctx, c, "zookeeper.Check", "/", func(path string) (bool, error) {
		exists, _, err := c.zk.Exists(path)
		return exists, err
	})
	return err
}

// errStalled means that there is a connection, but no answer.
var errStalled = errors.New("no answer")

// errInterrupted means that the time ended before an answer came.
var errInterrupted = errors.New("no answer in time")

// do runs an operation on a path, and retries it after errors of the connection until ctx or Config.RetryTimeout ends.
// fn gets the path below the chroot. unsure is true if an earlier attempt got no answer: that attempt may have taken
// effect, or may still take effect. The library's errors about a node are returned unchanged, for errors.Is. All
// other errors are *claviger.Error of kind Unavailable or Closed.
func do[T any](ctx context.Context, c *Client, op, path string, fn func(path string) (T, error)) (value T, unsure bool,
	err error) {
	full := c.conf.Ensemble.Chroot + path
	if path == "/" && c.conf.Ensemble.Chroot != "" {
		full = c.conf.Ensemble.Chroot
	}
	trial := false
	if why := c.down.Load(); why != nil && !c.isClosed() {
		if c.zk.State() != zk.StateHasSession || !c.trying.CompareAndSwap(false, true) {
			return value, false, c.noAnswer(op, *why)
		}
		defer c.trying.Store(false)
		trial = true
	}
	retryCtx, cancel := context.WithTimeout(ctx, c.conf.RetryTimeout)
	defer cancel()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 20*time.Millisecond, time.Second
	for ; ; unsure = true {
		value, err = attempt(retryCtx, c, func() (T, error) { return fn(full) })
		switch {
		case err == nil || isNodeError(err):
			if c.down.Load() != nil {
				c.down.Store(nil)
			}
			return value, unsure, err
		case errors.Is(err, zk.ErrNoAuth), errors.Is(err, zk.ErrAuthFailed), errors.Is(err, zk.ErrInvalidACL):
			return value, unsure, c.notAllowed(op, full, err)
		case c.isClosed():
			return value, unsure, claviger.Errorf(op, claviger.Closed, path, "the connection to ZooKeeper is closed")
		case !temporary(err):
			return value, unsure, c.noAnswer(op, err)
		}
		if errors.Is(err, errStalled) {
			c.dialer.drop() // the library would wait for most of a session timeout
		}
		if trial {
			return value, true, c.noAnswer(op, err)
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-c.closed:
		case <-retryCtx.Done():
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			} else {
				why := err
				c.down.Store(&why)
			}
			return value, unsure, c.noAnswer(op, err)
		}
	}
}

// attempt runs fn once, in a goroutine, because a call of the library cannot be interrupted. The call ends at the
// latest with the connection.
func attempt[T any](ctx context.Context, c *Client, fn func() (T, error)) (value T, err error) {
	type answer struct {
		value T
		err   error
	}
	timer := time.NewTimer(c.answerLimit)
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

// isNodeError reports whether err is the servers' answer about the state of a node.
func isNodeError(err error) bool {
	return errors.Is(err, zk.ErrNoNode) || errors.Is(err, zk.ErrNodeExists) || errors.Is(err, zk.ErrBadVersion) ||
		errors.Is(err, zk.ErrNotEmpty)
}

// temporary reports whether the operation may succeed with another connection.
func temporary(err error) bool {
	for _, t := range []error{errStalled, errInterrupted, zk.ErrConnectionClosed, zk.ErrNoServer, zk.ErrSessionExpired,
		zk.ErrSessionMoved, zk.ErrClosing} {
		if errors.Is(err, t) {
			return true
		}
	}
	// The library has no names for these errors: connection loss, and an operation that timed out between the
	// servers.
	return err.Error() == "unknown error: -4" || err.Error() == "unknown error: -7"
}

// noAnswer returns the error for an operation without an answer. It contains the reason why there is no connection.
func (c *Client) noAnswer(op string, err error) error {
	cure := ""
	if last := c.dialer.lastError(); last != nil {
		err = last
	}
	if err.Error() == "unknown error: -124" {
		cure = "; the servers demand SASL: set the authentication type to sasl, with keytab and principal"
	}
	result := claviger.Errorf(op, claviger.Unavailable, "", "ZooKeeper at %s (%s): %w%s", c.conf.Ensemble,
		c.conf.Property, err, cure)
	if notReached(err) {
		return claviger.Unreachable(result)
	}
	return result
}

// notReached reports whether an error goes away when the servers can be reached again. A host name that does not
// exist, or a wrong certificate or keytab, does not go away.
func notReached(err error) bool {
	var name *net.DNSError
	if errors.As(err, &name) && name.IsNotFound {
		return false
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, context.DeadlineExceeded) ||
		temporary(err)
}

// notAllowed returns the error for a node that we may not read or change.
func (c *Client) notAllowed(op, path string, err error) error {
	cure := "it was made by a server that authenticates; set the authentication type to sasl here too"
	if c.conf.Owner != "" {
		cure = fmt.Sprintf("its ACL must name sasl:%s, and our user name at the servers must be %q: set "+
			"kerberos.removeHostFromPrincipal=true and kerberos.removeRealmFromPrincipal=true there; a node that was "+
			"made without SASL keeps its ACL until it is removed", c.conf.Owner, c.conf.Owner)
	}
	return claviger.Errorf(op, claviger.Unavailable, "", "ZooKeeper at %s (%s): %w: %s: %s", c.conf.Ensemble,
		c.conf.Property, err, path, cure)
}

// node is the content of a node, and a part of its state.
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

// countChildren returns the number of a node's children; 0 if there is no such node.
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

// sync waits until our server has all changes of the leader until now.
func (c *Client) sync(ctx context.Context, op, path string) error {
	_, _, err := do(ctx, c, op, path, func(path string) (string, error) { return c.zk.Sync(path) })
	return err
}

// set writes a node if it has that version; -1 means any. unsure is as in do.
func (c *Client) set(ctx context.Context, op, path string, data []byte, version int32) (unsure bool, err error) {
	_, unsure, err = do(ctx, c, op, path, func(path string) (*zk.Stat, error) { return c.zk.Set(path, data, version) })
	return unsure, err
}

// setTimed does the same as set, and also returns the times of the successful write.
func (c *Client) setTimed(ctx context.Context, op, path string, data []byte, version int32) (w write, err error) {
	w, _, err = do(ctx, c, op, path, func(path string) (write, error) {
		sent := time.Now()
		stat, err := c.zk.Set(path, data, version)
		if err != nil {
			return write{}, err
		}
		return write{sent, time.UnixMilli(stat.Mtime), time.Now()}, nil
	})
	return w, err
}

// remove removes a node if it has that version; -1 means any. unsure is as in do.
func (c *Client) remove(ctx context.Context, op, path string, version int32) (unsure bool, err error) {
	_, unsure, err = do(ctx, c, op, path, func(path string) (struct{}, error) {
		return struct{}{}, c.zk.Delete(path, version)
	})
	return unsure, err
}

// create makes a persistent node, and the missing nodes above it. unsure is as in do.
func (c *Client) create(ctx context.Context, op, path string, data []byte) (unsure bool, err error) {
	createNode := func(path string, data []byte) (bool, error) {
		_, unsure, err := do(ctx, c, op, path,
			func(path string) (string, error) { return c.zk.Create(path, data, 0, c.acl) })
		return unsure, err
	}
	if unsure, err = createNode(path, data); !errors.Is(err, zk.ErrNoNode) {
		return unsure, err
	}
	full := c.conf.Ensemble.Chroot + path
	for i, r := range full {
		if r != '/' || i == 0 {
			continue
		}
		// The missing nodes may include nodes of the chroot.
		_, _, err := do(ctx, c, op, path, func(string) (string, error) { return c.zk.Create(full[:i], nil, 0, c.acl) })
		if err != nil && !errors.Is(err, zk.ErrNodeExists) {
			return false, err
		}
	}
	return createNode(path, data)
}

// join joins the parts of a path.
func join(parts ...string) string { return "/" + strings.Trim(strings.Join(parts, "/"), "/") }
