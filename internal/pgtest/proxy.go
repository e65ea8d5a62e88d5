package pgtest

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
)

// Proxy forwards connections of clients to a server. A test can make it hold the data of
// some connections, or of all, like a network that loses packets.
type Proxy struct {
	// Addr is its address, "127.0.0.1:PORT".
	Addr string

	server string
	mu     sync.Mutex
	change *sync.Cond
	hung   func(listening bool) bool
	closed bool
	conns  map[net.Conn]struct{}
}

// NewProxy makes a proxy to a server. The end of the test stops it.
func NewProxy(t testing.TB, server string) *Proxy {
	t.Helper()
	p := &Proxy{server: server, hung: func(bool) bool { return false }, conns: map[net.Conn]struct{}{}}
	p.change = sync.NewCond(&p.mu)
	addr, stop, wait := listen(t, p.serve)
	p.Addr = addr
	t.Cleanup(func() {
		stop()
		p.mu.Lock()
		p.closed = true
		for c := range p.conns {
			_ = c.Close()
		}
		p.change.Broadcast()
		p.mu.Unlock()
		wait()
	})
	return p
}

// listen serves each connection to a new address. stop ends the listening; wait waits until all connections are served.
func listen(t testing.TB, serve func(net.Conn)) (addr string, stop, wait func()) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(client) })
		}
	})
	return l.Addr().String(), func() { _ = l.Close() }, wg.Wait // it only listened
}

// Pass forwards all data again, the held data first.
func (p *Proxy) Pass() { p.set(func(bool) bool { return false }) }

// Hang holds all data. Connections stay open.
func (p *Proxy) Hang() { p.set(func(bool) bool { return true }) }

// HangListening holds the data of connections that have sent LISTEN.
func (p *Proxy) HangListening() { p.set(func(listening bool) bool { return listening }) }

func (p *Proxy) set(hung func(bool) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hung = hung
	p.change.Broadcast()
}

// link is one connection.
type link struct{ listening bool }

// await waits until data may be forwarded. It returns false if the proxy has ended.
func (p *Proxy) await(l *link, sent []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.listening = l.listening || bytes.Contains(sent, []byte("LISTEN "))
	for p.hung(l.listening) && !p.closed {
		p.change.Wait()
	}
	return !p.closed
}

func (p *Proxy) serve(client net.Conn) {
	server, err := new(net.Dialer).DialContext(context.Background(), "tcp", p.server)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	l := &link{}
	var wg sync.WaitGroup
	pump := func(to, from net.Conn, fromClient bool) {
		defer func() { _ = to.Close() }() // one direction is useless without the other
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			var sent []byte
			if fromClient {
				sent = buf[:n]
			}
			if !p.await(l, sent) {
				return
			}
			if n > 0 {
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	wg.Go(func() { pump(server, client, true) })
	wg.Go(func() { pump(client, server, false) })
	wg.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
}
