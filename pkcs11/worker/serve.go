package worker

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"claviger/pkcs11/cryptoki"
	"claviger/secret"
)

// Command is the argument of the program that makes it a worker.
const Command = "hsm-worker"

// socketFD is the file descriptor of a worker's socket to the server.
const socketFD = 3

// Main makes the process a worker, if its arguments say so, and does not return then. Otherwise it returns, and Load
// may start this program as a worker from now on. A program that opens HSMs calls Main before all else.
func Main(args []string) {
	if len(args) != 2 || args[1] != Command {
		registered.Store(true)
		return
	}
	nameProcess()
	if err := serve(); err != nil {
		fmt.Fprintf(os.Stderr, "claviger %s: %v\n", Command, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// processName is the name of a worker in top and ps, of at most 15 bytes.
const processName = "claviger-hsm"

// nameProcess gives the process its name. The kernel names it exe, after the path from which the server starts it. The
// name is only for people, so an error does not matter.
func nameProcess() {
	_ = os.WriteFile("/proc/self/comm", []byte(processName), 0) // of the first thread, which stands for the process
}

// serve takes connections from the server, and answers their requests, until the server closes its socket. Calls that
// hang in the library end with the process.
func serve() error {
	if err := secret.NoCoreDumps(); err != nil {
		return err
	}
	// A service manager and a terminal send these to the server's whole group. The server then still needs its HSM,
	// until it closes the socket.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	cryptoki.DefaultSignals()
	lib := new(library)
	b, rights := make([]byte, 1), make([]byte, syscall.CmsgSpace(4))
	for {
		var control int
		n, err := retried(func() (n int, err error) {
			n, control, _, _, err = syscall.Recvmsg(socketFD, b, rights, syscall.MSG_CMSG_CLOEXEC)
			return n, err
		})
		switch {
		case errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.EBADF):
			return errors.New("a server starts this command, with a socket; it is of no use by hand")
		case err != nil:
			return fmt.Errorf("the socket to the server: %w", err)
		case n == 0:
			return nil
		}
		fd, err := passed(rights[:control])
		if err != nil {
			return fmt.Errorf("the socket to the server: %w", err)
		}
		go newConn(fd).serve(lib.answer) //nolint:errcheck // the server sees that the socket is closed
	}
}

// passed returns the descriptor in a control message.
func passed(control []byte) (int, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			return 0, err
		}
		if len(fds) == 1 {
			return fds[0], nil
		}
	}
	return 0, errors.New("a message without a descriptor")
}

// library is the library in a worker.
type library struct {
	mu sync.Mutex
	b  cryptoki.Library
}

// answer makes the call that a request asks for.
func (l *library) answer(q *Request, r *Response) {
	switch q.Function {
	case ping:
		return
	case loadLibrary:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.b = cryptoki.Load(q.Path)
		r.Loaded = l.b != nil
		return
	}
	l.mu.Lock()
	b := l.b
	l.mu.Unlock()
	f := functions[q.Function]
	if b == nil || f == nil {
		r.fail(fmt.Errorf("there is no function %q", q.Function))
		return
	}
	r.fail(f(b, q, r))
}
