package worker

import (
	"errors"
	"fmt"
	"net"
	"net/rpc"
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
	if err := serve(); err != nil {
		fmt.Fprintf(os.Stderr, "claviger %s: %v\n", Command, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve answers the requests of the server until the server closes the socket. Calls that hang in the library end with
// the process.
func serve() error {
	if err := secret.NoCoreDumps(); err != nil {
		return err
	}
	// A service manager and a terminal send these to the server's whole group. The server then still needs its HSM,
	// until it closes the socket.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	f := os.NewFile(socketFD, "socket")
	conn, err := net.FileConn(f)
	if err != nil {
		return errors.New("a server starts this command, with a socket; it is of no use by hand")
	}
	_ = f.Close() // conn has a descriptor of its own
	cryptoki.DefaultSignals()
	s := rpc.NewServer()
	_ = s.RegisterName(serviceName, new(library)) // fails only for a type without methods
	s.ServeConn(conn)
	return nil
}

// serviceName is the name of the worker's methods in package rpc.
const serviceName = "Library"

// library is the worker's side: the methods that package rpc calls.
type library struct {
	mu sync.Mutex
	b  cryptoki.Library
}

// Load loads the library of that path. *loaded is false if it cannot be loaded.
func (l *library) Load(path string, loaded *bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = cryptoki.Load(path)
	*loaded = l.b != nil
	return nil
}

// Ping answers, to show that the process runs.
func (l *library) Ping(_ struct{}, _ *struct{}) error { return nil }

// Call calls a function of the library.
func (l *library) Call(q Request, r *Response) error {
	l.mu.Lock()
	b := l.b
	l.mu.Unlock()
	f := functions[q.Function]
	if b == nil || f == nil {
		return fmt.Errorf("there is no function %q", q.Function)
	}
	r.fail(f(b, &q, r))
	return nil
}
