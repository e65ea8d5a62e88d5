// Package porttest finds ports of loopback for test servers that need a fixed port.
//
// If a test lets the system choose a port (127.0.0.1:0) and closes the listener, any
// outgoing connection may take the port before the server starts, or while it is down.
// The ports of this package are below the range of outgoing connections, and each belongs
// to one test process until that ends.
package porttest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Outgoing connections have ports from 32768 on (ip_local_port_range).
const low, high = 12000, 32000

var (
	mu    sync.Mutex
	locks []*os.File // until the process ends
)

// Free returns a port of 127.0.0.1 at which no process listens.
func Free() (int, error) {
	mu.Lock()
	defer mu.Unlock()
	for range high - low {
		port := low + rand.IntN(high-low) //nolint:gosec // a port is not secret
		lock, err := claim(port)
		if err != nil {
			return 0, err
		}
		if lock == nil {
			continue
		}
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1",
			strconv.Itoa(port)))
		if err != nil {
			_ = lock.Close() // another process uses the port
			continue
		}
		_ = l.Close() // it never accepted
		locks = append(locks, lock)
		return port, nil
	}
	return 0, fmt.Errorf("no free port from %d to %d", low, high)
}

// Address returns 127.0.0.1 with a free port.
func Address() (string, error) {
	port, err := Free()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

// claim locks a port against other test processes; nil if one of them has locked it.
func claim(port int) (*os.File, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("claviger-ports-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()   // another process has the lock
		return nil, nil //nolint:nilnil,nilerr // as the comment says
	}
	return f, nil
}
