// Package worker runs a PKCS#11 library in a process of its own. A library that crashes, hangs or leaks then ends that
// process, and not the server. The server starts the process from its own program, and they speak over socket pairs
// that nothing else can open, one for each call that runs at the same time. A worker ends when its server ends.
//
// Finalize of a Library ends the process, and Initialize starts a new one. Sessions and handles are valid in one
// process only. If the process ends, or a call takes longer than its limit, all running calls fail with a GoneError,
// and so do later calls until the next Initialize.
package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"claviger/pkcs11/cryptoki"
)

// The limits of a call in the library. A worker whose call takes longer is killed.
const (
	// DefaultCallLimit is longer than HSM clients wait for an HSM before they try another member of its group.
	DefaultCallLimit = 25 * time.Second
	// slowLimit is for functions that take long in an HSM that works: the making of an RSA key, a login while a group
	// of HSMs switches to another member, the start of the library.
	slowLimit = 2 * time.Minute
)

// A server asks its worker for a sign of life each pingPeriod. A worker that gives none within pingLimit is stopped or
// stuck, and is killed.
const (
	pingPeriod = 500 * time.Millisecond
	pingLimit  = 5 * time.Second
	// statePeriod is the time between two looks whether a signal has stopped the process.
	statePeriod = 100 * time.Millisecond
)

// exitLimit is the time that Finalize gives the library to end in order.
const exitLimit = time.Second

// registered: this program can be started as a worker; see Main.
var registered atomic.Bool

// Possible reports whether Load may start a worker: whether this program has called Main.
func Possible() bool { return registered.Load() }

// GoneError is the error of calls whose worker has ended.
type GoneError struct {
	Reason string
	// Hung is true if the worker was ended because of a call that took too long, and this call took at least half of
	// its limit. It probably would have gone on.
	Hung bool
}

func (e GoneError) Error() string { return "the process with the HSM's library has ended: " + e.Reason }

// Library is a library in a worker.
type Library interface {
	cryptoki.Library
	// Kill ends the worker at once, so that all running calls return.
	Kill(why string)
}

// client calls a library in a worker. Its methods may be called from many goroutines.
type client struct {
	path  string
	limit time.Duration // of a call

	process atomic.Pointer[process] // nil before the first start, and after Finalize
}

// Load starts a worker that loads the library. loaded is false if the library cannot be loaded. If ctx ends before the
// library is loaded, the worker ends. A call that takes longer than limit ends the worker; 0 means DefaultCallLimit.
func Load(ctx context.Context, path string, limit time.Duration) (_ Library, loaded bool, _ error) {
	if !registered.Load() {
		return nil, false, errors.New("this program cannot start itself as the process of a PKCS#11 library")
	}
	c := &client{path: path, limit: cmp.Or(limit, DefaultCallLimit)}
	p, err := c.start(ctx)
	if err != nil || p == nil {
		return nil, false, err
	}
	c.process.Store(p)
	return c, true, nil
}

// process is a running worker.
type process struct {
	cmd    *exec.Cmd
	socket *os.File // passes connections to the worker, which ends when it is closed

	killed atomic.Pointer[killing]
	ended  chan struct{}
	status string // how it ended; read it after ended is closed

	mu    sync.Mutex
	conns map[*conn]struct{} // all
	idle  []*conn            // those without a call
	freed sync.Cond          // idle has grown, or the process has ended
}

// killing says why a process was killed.
type killing struct {
	why     string
	overdue bool // because of a call that took longer than its limit
}

// start starts a worker that has loaded the library. It returns nil without an error if the library cannot be loaded.
func (c *client) start(ctx context.Context) (*process, error) {
	fail := func(err error) (*process, error) {
		return nil, fmt.Errorf("a process for PKCS#11 module %s cannot be started: %w", c.path, err)
	}
	p, err := spawn()
	if err != nil {
		return fail(err)
	}
	loaded, err := p.load(ctx, c.path)
	switch {
	case errors.As(err, new(noSocketError)):
		return fail(err)
	case err != nil || !loaded:
		return nil, err
	}
	go p.watch()
	go p.watchState()
	return p, nil
}

// spawn starts a worker without a library.
func spawn() (*process, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	p := &process{socket: os.NewFile(uintptr(ours), "worker"), ended: make(chan struct{}), conns: map[*conn]struct{}{}}
	p.freed.L = &p.mu
	file := os.NewFile(uintptr(theirs), "server")
	defer file.Close() //nolint:errcheck // the worker has its own
	p.cmd = &exec.Cmd{
		// The program that runs now, also if an upgrade has put another in its place.
		Path: "/proc/self/exe", Args: []string{os.Args[0], Command},
		Stderr: os.Stderr, ExtraFiles: []*os.File{file},
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
	started := make(chan error)
	go p.run(started)
	return p, <-started
}

// load loads a library in the process. If it is not loaded, also because ctx ends, the process ends.
func (p *process) load(ctx context.Context, path string) (loaded bool, _ error) {
	defer context.AfterFunc(ctx, func() { p.kill("it did not load its library in time") })()
	r, err := p.call(&Request{Function: loadLibrary, Path: path}, slowLimit)
	switch {
	case errors.As(err, new(noSocketError)):
		p.end("it cannot be reached")
	case err != nil || !r.Loaded:
		p.end("its library was not loaded")
	}
	return err == nil && r.Loaded, err
}

// socketPair returns two connected sockets.
func socketPair() (ours, theirs int, err error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	return pair[0], pair[1], os.NewSyscallError("socketpair", err)
}

// run starts the process and waits for its end. The kernel kills a process with a Pdeathsig when the thread that
// started it ends, so the goroutine keeps its thread. It gives the thread back at the end: a thread that ended with the
// goroutine would take along each other process that was started on it.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := p.cmd.Start(); err != nil {
		started <- errors.Join(err, p.socket.Close())
		return
	}
	close(started)
	_ = p.cmd.Wait() // ProcessState has the result
	p.status = p.cmd.ProcessState.String()
	if k := p.killed.Load(); k != nil {
		p.status = k.why
	}
	close(p.ended)
	_ = p.socket.Close() // there is nothing left to send
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.conns {
		l.shutdown() // a process that the library has started may still have the other end
	}
	for _, l := range p.idle {
		p.dropLocked(l)
	}
	p.idle = nil
	p.freed.Broadcast()
}

// noSocketError means that this process can open no further sockets.
type noSocketError struct{ error }

// newConn makes a connection and passes its other end to the worker. A worker that takes nothing is killed by p.watch.
func (p *process) newConn() (*conn, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, noSocketError{err}
	}
	defer syscall.Close(theirs) //nolint:errcheck // the worker has its own
	raw, err := p.socket.SyscallConn()
	if err == nil {
		failed := raw.Control(func(fd uintptr) {
			_, err = retried(func() (int, error) {
				return 0, syscall.Sendmsg(int(fd), []byte{0}, syscall.UnixRights(theirs), nil, syscall.MSG_NOSIGNAL)
			})
		})
		err = errors.Join(err, failed)
	}
	if err != nil {
		return nil, errors.Join(err, syscall.Close(ours))
	}
	return newConn(ours), nil
}

// take returns a connection without a call. If no further socket can be opened, it waits for a connection.
func (p *process) take() (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if n := len(p.idle); n > 0 {
			l := p.idle[n-1]
			p.idle = p.idle[:n-1]
			return l, nil
		}
		l, err := p.newConn()
		if err == nil {
			p.conns[l] = struct{}{}
			return l, nil
		}
		select {
		case <-p.ended:
			return nil, GoneError{Reason: p.status}
		default:
		}
		if !errors.As(err, new(noSocketError)) || len(p.conns) == 0 {
			return nil, err
		}
		p.freed.Wait()
	}
}

// free keeps a connection for the next call.
func (p *process) free(l *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.ended:
		p.dropLocked(l)
	default:
		p.idle = append(p.idle, l)
		p.freed.Signal()
	}
}

// dropLocked closes a connection. The caller holds p.mu.
func (p *process) dropLocked(l *conn) {
	delete(p.conns, l)
	l.close()
}

// watch kills a worker that gives no sign of life.
func (p *process) watch() {
	tick := time.NewTicker(pingPeriod)
	defer tick.Stop()
	for {
		select {
		case <-p.ended:
			return
		case <-tick.C:
		}
		if _, err := p.call(&Request{Function: ping}, pingLimit); err != nil {
			return
		}
	}
}

// watchState kills a worker that a signal has stopped: SIGSTOP, for example. Under systemd's ProtectProc= a server does
// not see its worker in /proc, because the worker writes no core files, so the kernel is asked.
func (p *process) watchState() {
	tick := time.NewTicker(statePeriod)
	defer tick.Stop()
	for {
		select {
		case <-p.ended:
			return
		case <-tick.C:
		}
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == nil && info.Signo != 0 {
			p.kill("it was stopped by a signal")
		}
	}
}

// call makes a call in the worker. If it takes longer than limit, it kills the worker. Its error is a GoneError, or a
// noSocketError of the first call.
func (p *process) call(q *Request, limit time.Duration) (*Response, error) {
	begun := time.Now()
	timer := time.AfterFunc(limit, func() {
		p.killFor(killing{fmt.Sprintf("%s did not return in %v%s", nameOf(q), limit, limitCure(q)), true})
	})
	defer timer.Stop()
	l, err := p.take()
	if errors.As(err, new(noSocketError)) {
		return nil, err
	}
	if err == nil {
		var r *Response
		if r, err = l.call(q); err == nil {
			p.free(l)
			return r, nil
		}
		p.mu.Lock()
		p.dropLocked(l)
		p.mu.Unlock()
	}
	// The worker has closed the socket, so it ends now. If it goes on, it has sent what is no answer.
	timer.Stop()
	took := time.Since(begun)
	select {
	case <-p.ended:
	case <-time.After(pingLimit):
		p.end(err.Error())
	}
	k := p.killed.Load()
	return nil, GoneError{p.status, k != nil && k.overdue && took >= limit/2}
}

// limitCure says which setting limits a call in the library.
func limitCure(q *Request) string {
	if q.Function == loadLibrary || q.Function == ping || q.Function == "Finalize" || slow[q.Function] {
		return ""
	}
	return ", the call-limit of the keystore file; if the library needs longer for this call, set a longer " +
		"call-limit and restart"
}

// nameOf names the function of a request as PKCS #11 does.
func nameOf(q *Request) string {
	if q.Function == loadLibrary || q.Function == ping {
		return q.Function
	}
	return "C_" + q.Function
}

// kill ends the process at once. Only the first reason counts.
func (p *process) kill(why string) { p.killFor(killing{why: why}) }

func (p *process) killFor(k killing) {
	select {
	case <-p.ended:
	default:
		p.killed.CompareAndSwap(nil, &k)
		_ = p.cmd.Process.Kill() // it may have ended
	}
}

// end ends the process, and waits for its end.
func (p *process) end(why string) {
	p.kill(why)
	<-p.ended
}

// Kill ends the worker at once, so that all running calls return.
func (c *client) Kill(why string) {
	if p := c.process.Load(); p != nil {
		p.end(why)
	}
}

// Initialize starts a worker if there is none, and initialises its library.
func (c *client) Initialize(...p11.InitializeOption) error {
	p := c.process.Load()
	if p == nil {
		var err error
		if p, err = c.start(context.Background()); err != nil {
			return err
		}
		if p == nil {
			return fmt.Errorf("PKCS#11 module %s cannot be loaded again", c.path)
		}
		c.process.Store(p)
	}
	_, err := c.doIn(p, &Request{Function: "Initialize"})
	return err
}

// Finalize ends the library and the worker.
func (c *client) Finalize() error {
	p := c.process.Swap(nil)
	if p == nil {
		return p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED)
	}
	r, err := p.call(&Request{Function: "Finalize"}, exitLimit)
	p.end("it was ended")
	if err != nil {
		return err
	}
	return r.err()
}

// Destroy ends the worker.
func (c *client) Destroy() { c.Kill("it was ended") }

// doIn makes a call in a worker.
func (c *client) doIn(p *process, q *Request) (*Response, error) {
	limit := c.limit
	if slow[q.Function] {
		limit = max(limit, slowLimit)
	}
	r, err := p.call(q, limit)
	if err != nil {
		return new(Response), err
	}
	return r, r.err()
}

// slow has the functions whose limit is slowLimit.
var slow = map[string]bool{"Initialize": true, "OpenSession": true, "Login": true, "GenerateKeyPair": true}

// do makes a call in the current worker.
func (c *client) do(q *Request) (*Response, error) {
	p := c.process.Load()
	if p == nil {
		return new(Response), p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED)
	}
	return c.doIn(p, q)
}
