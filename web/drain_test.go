package web

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStopUnderLoad: while a server stops, each request of a busy client is answered, or its next connection is
// refused. No client is left in doubt whether its request was executed.
func TestStopUnderLoad(t *testing.T) {
	for range 20 {
		var executed atomic.Int64
		s := newServer()
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			executed.Add(1)
			_, _ = io.WriteString(w, "ok\n")
		})
		r, err := s.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var answered, connected atomic.Int64
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				transport := &http.Transport{}
				defer transport.CloseIdleConnections()
				client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
				for first := true; ; first = false {
					resp, err := client.Post(r.URL(), "text/plain", //nolint:noctx // it has a timeout
						strings.NewReader("make a key"))
					var op *net.OpError
					if errors.As(err, &op) && op.Op == "dial" {
						return // nothing was sent: a client goes to another server
					}
					if err != nil {
						t.Errorf("a request without an answer: %v", err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body) // only then the connection is used again
					_ = resp.Body.Close()
					answered.Add(1)
					if first {
						connected.Add(1)
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		for connected.Load() < 8 {
			time.Sleep(time.Millisecond)
		}
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
		clients.Wait()
		if executed.Load() != answered.Load() {
			t.Errorf("%d requests were executed, and %d answered", executed.Load(), answered.Load())
		}
	}
}

// TestStopWithIdleConnections: a server stops soon although clients keep connections without requests.
func TestStopWithIdleConnections(t *testing.T) {
	s := newServer()
	r, err := s.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, r.Addr().String())
	_, _ = io.WriteString(conn, goodRequest)
	if _, err := io.ReadAtLeast(conn, make([]byte, 1), 1); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > drainTime+5*time.Second {
		t.Errorf("the stop took %v", took)
	}
}
