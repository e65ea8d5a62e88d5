package web

import (
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestOnHangup: a SIGHUP directly after OnHangup calls the function and does not end the process.
func TestOnHangup(t *testing.T) {
	calls := make(chan struct{}, 1)
	stop := OnHangup(func() { calls <- struct{}{} })
	for range 2 {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		select {
		case <-calls:
		case <-time.After(30 * time.Second):
			t.Fatal("SIGHUP did not call the function")
		}
	}
	stop()
}

// TestStopOfOnHangupWaits: stop waits for a call that has begun.
func TestStopOfOnHangupWaits(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	var ended atomic.Bool
	stop := OnHangup(func() {
		close(began)
		<-release
		ended.Store(true)
	})
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	<-began
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	if stop(); !ended.Load() {
		t.Error("stop returned before the call ended")
	}
}
