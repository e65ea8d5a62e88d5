package hsmfaults

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"claviger/internal/processtest"
	"claviger/pkcs11/worker"
)

// repeated makes an operation as Hadoop's client does: after 503 it waits, longer each time, and tries again.
func repeated(ctx context.Context, l *faultyKMS, o operation) error {
	for try := range 10 {
		status, err := o.run(ctx, l)
		if err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
		if status < 300 {
			return nil
		}
		if status != http.StatusServiceUnavailable {
			return fmt.Errorf("%s: %d", o.name, status)
		}
		time.Sleep(min(100*time.Millisecond<<try, 2*time.Second)) // as the client's pauses
	}
	return fmt.Errorf("%s: 503 ten times", o.name)
}

// TestKilledWorkers: the library's process is killed and stopped again and again under load. No client that repeats as
// Hadoop's does sees an error, and no answer is wrong. One process is left.
func TestKilledWorkers(t *testing.T) {
	l := newFaultyKMS(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), long(2*time.Minute))
	defer cancel()
	var served atomic.Int64
	var stop atomic.Bool
	var clients sync.WaitGroup
	for i := range 6 {
		clients.Go(func() {
			for !stop.Load() && ctx.Err() == nil {
				if err := repeated(ctx, l, operations[i%3]); err != nil {
					t.Error(err)
					return
				}
				served.Add(1)
			}
		})
	}
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGSTOP}
	for i := range long(20) {
		for _, pid := range processtest.Children(t, worker.Command) {
			_ = syscall.Kill(pid, signals[i%len(signals)]) // it may have ended
		}
		for before := served.Load(); served.Load() < before+20; time.Sleep(time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatalf("after kill %d no client is served; the log ends with %s", i, l.tail())
			}
		}
	}
	stop.Store(true)
	clients.Wait()
	if n := len(processtest.Children(t, worker.Command)); n != 1 {
		t.Errorf("%d processes of the library, want 1", n)
	}
	l.end(t)
	if n := len(processtest.Children(t, worker.Command)); n != 0 {
		t.Errorf("%d processes of the library after the end", n)
	}
}
