package pkcs11

import (
	"context"
	"errors"
	"testing"
	"time"

	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
)

// TestEndDuringLogin: if a start is ended while C_Login runs, the login returns before the library is ended, in a
// worker and in this process. A login that hangs is waited for until it has run for closeTimeout.
func TestEndDuringLogin(t *testing.T) {
	for name, c := range map[string]struct {
		mode WorkerMode
		hang bool
	}{"worker": {WorkerYes, false}, "process": {WorkerNo, false}, "hangs": {WorkerYes, true}} {
		t.Run(name, func(t *testing.T) {
			made := softhsmtest.New(t)
			cfg, m := config(made), faultmodule.New(t, made.Module)
			cfg.Module, cfg.Worker = m.Path, c.mode
			m.Delay(faultmodule.Login, 300*time.Millisecond)
			if c.hang {
				m.Order(faultmodule.Login, faultmodule.Order{Action: faultmodule.Hang, Times: faultmodule.Always})
			}
			ctx, cancel := context.WithCancel(t.Context())
			opened := make(chan error, 1)
			go func() { _, err := Open(ctx, cfg); opened <- err }()
			eventually(t, func() error {
				if m.Running(faultmodule.Login) == 0 {
					return errors.New("no login runs")
				}
				return nil
			})
			began := time.Now()
			cancel()
			if err := <-opened; err == nil {
				t.Error("a start that was ended has a token")
			}
			took, cut := time.Since(began), m.Running(faultmodule.Login)
			if c.hang && (took < closeTimeout/2 || took > 2*closeTimeout) {
				t.Errorf("a login that hangs was waited for %v", took)
			}
			if !c.hang && cut != 0 {
				t.Errorf("after %v the library was ended, and a login had not returned", took)
			}
		})
	}
}

// TestCloseAfterLogin: Close does not wait for a login that has returned.
func TestCloseAfterLogin(t *testing.T) {
	tok, _ := open(t)
	tok.closeTimeout = time.Hour
	within(t, 20*time.Second, "Close", func() {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCloseAwaitsCallers: Close waits for a caller that has its result and has not left the library yet.
func TestCloseAwaitsCallers(t *testing.T) {
	tok, _ := open(t)
	visit, err := tok.module.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { tok.module.leave(visit) })
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}
