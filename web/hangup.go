package web

import (
	"os"
	"os/signal"
	"syscall"
)

// OnHangup calls do for each SIGHUP until stop is called. When OnHangup has returned, SIGHUP no longer ends the
// process. stop waits for a call of do that has begun.
func OnHangup(do func()) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range hangups {
			do()
		}
	}()
	return func() {
		signal.Stop(hangups) // after this nothing sends
		close(hangups)
		<-ended
	}
}
