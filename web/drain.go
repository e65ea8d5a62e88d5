package web

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// A server that stops ends each connection with its next answer. It goes on when no connection is open, when no request
// has come for drainQuiet, or after drainTime. Without that, a client that sends a request while the server closes its
// connection gets no answer, and cannot know whether the request was executed: a stock client then reports that a key
// was not made.
const (
	drainQuiet = 100 * time.Millisecond
	drainTime  = time.Second
)

// refusingListener is a listener that can refuse connections while net/http's server goes on with those that are open.
type refusingListener struct {
	net.Listener
	// refused is closed by refuse, and ended when Accept has seen that: until then the kernel takes connections, which
	// nobody will accept. closed is closed by Close.
	refused, ended, closed chan struct{}
	refuse, end, close     func()
}

func newRefusingListener(l net.Listener) *refusingListener {
	r := &refusingListener{Listener: l, refused: make(chan struct{}), ended: make(chan struct{}),
		closed: make(chan struct{})}
	r.refuse = sync.OnceFunc(func() {
		close(r.refused)
		_ = l.Close() // Close returns the error of another one
	})
	r.end = sync.OnceFunc(func() { close(r.ended) })
	r.close = sync.OnceFunc(func() { close(r.closed) })
	return r
}

// Accept waits for the next connection. After refuse it waits for Close, because net/http's server ends with an error
// of Accept.
func (l *refusingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		return conn, nil
	}
	select {
	case <-l.refused:
		l.end()
		<-l.closed
		return nil, net.ErrClosed
	default:
		return nil, err
	}
}

// Close refuses further connections, and ends Accept.
func (l *refusingListener) Close() error {
	l.refuse()
	l.close()
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// drain refuses new connections, and ends each open one with its next answer.
func (r *Running) drain() {
	r.listener.refuse()
	select {
	case <-r.listener.ended:
	case <-r.ended: // nobody accepts any more
	}
	began := time.Now()
	r.drained.Store(began.UnixNano())
	for now := began; now.Sub(began) < drainTime; now = time.Now() {
		open, _ := r.server.Connections.use()
		if open == 0 || now.UnixNano()-r.drained.Load() >= int64(drainQuiet) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// lastAnswer tells the client that the connection ends with this answer, if the server stops.
func (r *Running) lastAnswer(w http.ResponseWriter) {
	if r.drained.Load() > 0 {
		r.drained.Store(time.Now().UnixNano())
		w.Header().Set("Connection", "close")
	}
}
