// Package worker runs a PKCS#11 library in a process of its own. A library that crashes, hangs or leaks then ends that
// process, and not the server. The server starts the process from its own program, and they speak over a socket pair
// that nothing else can open (package net/rpc). A worker ends when its server ends.
//
// Finalize of a Library ends the process, and Initialize starts a new one. Sessions and handles are valid in one
// process only. If the process ends, or a call takes longer than its limit, all running calls fail with a GoneError,
// and so do later calls until the next Initialize.
package worker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	p11 "github.com/miekg/pkcs11"

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
	// statePeriod is the time between two looks at the state of the process in /proc, which shows at once that it was
	// stopped by a signal.
	statePeriod = 100 * time.Millisecond
)

// exitLimit is the time that Finalize gives the library to end in order.
const exitLimit = time.Second

// registered: this program can be started as a worker; see Main.
var registered atomic.Bool

// GoneError is the error of calls whose worker has ended.
type GoneError struct{ Reason string }

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
	client *rpc.Client

	killed atomic.Pointer[string] // why it was killed
	ended  chan struct{}
	status string // how it ended; read it after ended is closed
}

// deadlineConn is a connection whose writes have a limit: a worker that is stopped reads nothing.
type deadlineConn struct{ net.Conn }

func (c deadlineConn) Write(b []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(pingLimit)) // if it fails, so does Write
	return c.Conn.Write(b)
}

// start starts a worker that has loaded the library. It returns nil without an error if the library cannot be loaded.
func (c *client) start(ctx context.Context) (*process, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("a process for PKCS#11 module %s cannot be started: %w", c.path,
			os.NewSyscallError("socketpair", err))
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "server")
	defer theirs.Close() //nolint:errcheck // the worker has its own
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, fmt.Errorf("a process for PKCS#11 module %s cannot be started: %w", c.path, err)
	}
	p := &process{client: rpc.NewClient(deadlineConn{conn}), ended: make(chan struct{})}
	p.cmd = &exec.Cmd{
		// The program that runs now, also if an upgrade has put another in its place.
		Path: "/proc/self/exe", Args: []string{os.Args[0], Command},
		Stderr: os.Stderr, ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("a process for PKCS#11 module %s cannot be started: %w", c.path, err)
	}
	defer context.AfterFunc(ctx, func() { p.kill("it did not load its library in time") })()
	var loaded bool
	if err := p.call("Load", c.path, &loaded, slowLimit); err != nil || !loaded {
		p.end("its library was not loaded")
		return nil, err
	}
	go p.watch()
	go p.watchState()
	return p, nil
}

// run starts the process and waits for its end. The kernel kills a process with a Pdeathsig when the thread that
// started it ends, so the goroutine keeps its thread, which ends with the goroutine.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	if err := p.cmd.Start(); err != nil {
		started <- errors.Join(err, p.client.Close())
		return
	}
	close(started)
	_ = p.cmd.Wait() // ProcessState has the result
	p.status = p.cmd.ProcessState.String()
	if why := p.killed.Load(); why != nil {
		p.status = *why
	}
	close(p.ended)
	_ = p.client.Close() // it may have closed itself
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
		if p.call("Ping", struct{}{}, &struct{}{}, pingLimit) != nil {
			return
		}
	}
}

// watchState kills a worker that a signal has stopped: SIGSTOP, for example.
func (p *process) watchState() {
	tick := time.NewTicker(statePeriod)
	defer tick.Stop()
	path := fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid)
	for {
		select {
		case <-p.ended:
			return
		case <-tick.C:
		}
		if stat, err := os.ReadFile(path); err == nil && isStopped(stat) {
			p.kill("it was stopped by a signal")
		}
	}
}

// isStopped reports whether the content of a process's file stat in /proc says that it is stopped (proc_pid_stat(5)).
// The name of the program, in parentheses, may contain any character.
func isStopped(stat []byte) bool {
	_, state, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	return ok && len(state) > 0 && state[0] == 'T'
}

// call calls a method of the worker. If it takes longer than limit, it kills the worker.
func (p *process) call(method string, args, reply any, limit time.Duration) error {
	call := p.client.Go(serviceName+"."+method, args, reply, make(chan *rpc.Call, 1))
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-call.Done:
	case <-timer.C:
		if q, ok := args.(*Request); ok {
			method = "C_" + q.Function
		}
		p.kill(fmt.Sprintf("%s did not return in %v", method, limit))
		<-call.Done // the socket of a dead process is closed
	}
	if call.Error == nil {
		return nil
	}
	var refused rpc.ServerError
	if errors.As(call.Error, &refused) {
		return refused
	}
	// The socket is closed, so the process ends now. If it goes on, it sends what is no answer.
	timer.Reset(pingLimit)
	select {
	case <-p.ended:
	case <-timer.C:
		p.end(call.Error.Error())
	}
	return GoneError{p.status}
}

// kill ends the process at once. Only the first reason counts.
func (p *process) kill(why string) {
	select {
	case <-p.ended:
	default:
		p.killed.CompareAndSwap(nil, &why)
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
	var r Response
	err := p.call("Call", &Request{Function: "Finalize"}, &r, exitLimit)
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
	r := new(Response)
	if err := p.call("Call", q, r, limit); err != nil {
		return r, err
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
