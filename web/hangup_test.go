package web

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// TestOnHangup: a SIGHUP directly after OnHangup calls the function and does not end the process. stop waits for
// the call.
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
