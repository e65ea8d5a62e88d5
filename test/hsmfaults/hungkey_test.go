package hsmfaults

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"claviger/internal/faultmodule"
	"claviger/pkcs11"
)

// TestHungKey: calls with one key hang until the library's process is ended. Requests for another key are answered all
// the same, without an error. Requests for the key get a 503, and end a process once in a while only. When the calls no
// longer hang, the key is served again.
func TestHungKey(t *testing.T) {
	l := newFaultyKMS(t, true, func(c *pkcs11.FileConfig) { c.CallLimit = time.Second })
	logins := l.Calls(faultmodule.Login)
	l.HangKey(l.edek.Version)
	var clients sync.WaitGroup
	end := time.Now().Add(10 * time.Second)
	for i := range 6 {
		clients.Go(func() {
			for time.Now().Before(end) {
				run, want := decrypt, http.StatusServiceUnavailable
				if i%2 == 0 { // with another key of the token, the newer version
					run, want = generate, http.StatusOK
				}
				if status, err := run(t.Context(), l); err != nil || status != want {
					t.Errorf("%d, %v, want %d", status, err, want)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	clients.Wait()
	if n := l.Calls(faultmodule.Login) - logins; n < 1 || n > 3 {
		t.Errorf("%d processes were started, want one after the first call and one after each pause", n)
	}
	l.HangKey("")
	l.recovers(t, operations[0])
	l.end(t)
}
