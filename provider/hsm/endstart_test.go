package hsm_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"claviger/internal/faultmodule"
)

// TestEndDuringLogin: when a start is ended, or a provider without its token is closed, while C_Login runs, the login
// returns before the library is ended. The process may end after that.
func TestEndDuringLogin(t *testing.T) {
	b, fault, _ := lateSite(t)
	fault.Delay(faultmodule.Login, 500*time.Millisecond)
	awaitLogin := func() {
		waitUntil(t, "a login", func() error {
			if fault.Running(faultmodule.Login) == 0 {
				return errors.New("no login runs")
			}
			return nil
		})
	}
	returned := func(what string) {
		if fault.Running(faultmodule.Login) != 0 {
			t.Errorf("%s: the library was ended during a login", what)
		}
	}

	b.maxWait = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	opened := make(chan error, 1)
	go func() { _, err := b.open(ctx); opened <- err }()
	awaitLogin()
	cancel()
	if err := <-opened; err == nil {
		t.Error("a start that was ended has a provider")
	}
	returned("a start")

	b.maxWait = time.Millisecond
	p := b.mustOpen(t)
	awaitLogin()
	if err := p.Missing(); err == nil {
		t.Error("the token is there before its login")
	}
	mustClose(t, p)
	returned("a provider without its token")
}
