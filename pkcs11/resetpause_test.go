package pkcs11

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/pkcs11/worker"
)

// resetToken returns a token of a library whose calls do nothing, and take the time latency.
func resetToken(latency time.Duration) (*Token, *Meter) {
	m, b, meter := resettable(nil, nil)
	meter.SetLatency(latency)
	return &Token{module: m, b: b, log: slog.New(slog.DiscardHandler), end: make(chan struct{})}, meter
}

// TestPauseAfterSlowReset: the pause after a reset is at least as long as the reset took, unless the HSM was not called
// because calls hang in the library.
func TestPauseAfterSlowReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tok, _ := resetToken(5 * time.Second) // for C_Finalize, and for C_Initialize
		if err := tok.reset(t.Context(), 1, nil); err != nil || time.Until(tok.retryAt) != 10*time.Second {
			t.Errorf("a slow reset: %v, the next one in %v", err, time.Until(tok.retryAt))
		}
		tok, meter := resetToken(0)
		if _, err := tok.module.enter(t.Context()); err != nil { // a call that hangs
			t.Fatal(err)
		}
		if err := tok.reset(t.Context(), 1, nil); !errors.Is(err, errHung) || meter.Count("Finalize") > 0 ||
			time.Until(tok.retryAt) != firstBackoff {
			t.Errorf("calls hang: %v, the next reset in %v", err, time.Until(tok.retryAt))
		}
	})
}

// TestResetWaits: a reset waits for the end of a short pause. If the library's process has ended, it waits for the end
// of the longest pause too. It does not wait for the end of a longer pause.
func TestResetWaits(t *testing.T) {
	ended := worker.GoneError{Reason: "killed"}
	for _, c := range []struct {
		cause error
		pause time.Duration
		want  bool // whether the reset waits
	}{
		{nil, firstBackoff, true}, {nil, firstBackoff + 1, false},
		{ended, maxBackoff, true}, {ended, maxBackoff + 1, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			tok, meter := resetToken(0)
			begun := time.Now()
			tok.retryAt = begun.Add(c.pause)
			err := tok.reset(t.Context(), 1, c.cause)
			took := time.Since(begun)
			if c.want && (err != nil || took != c.pause || meter.Count("Initialize") != 1) ||
				!c.want && (err == nil || took != 0 || meter.Count("Initialize") != 0) {
				t.Errorf("cause %v, pause %v: %v after %v, %d starts of the library", c.cause, c.pause, err, took,
					meter.Count("Initialize"))
			}
		})
	}
}

// TestResetIsNotAwaited: a caller whose time ends in the pause before a reset returns with an error, and so does each
// caller when the token is closed. The library is not called.
func TestResetIsNotAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tok, meter := resetToken(0)
		tok.retryAt = time.Now().Add(firstBackoff)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := tok.reset(ctx, 1, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the time ended: %v", err)
		}
		close(tok.end)
		if err := tok.reset(t.Context(), 1, nil); !claviger.Is(err, claviger.Closed) || len(meter.Counts()) > 0 {
			t.Errorf("the token was closed: %v, the calls are %v", err, meter.Counts())
		}
	})
}

// TestResetIsShared: a caller that finds a reset under way waits for it, and returns its result.
func TestResetIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tok, meter := resetToken(time.Second)
		meter.Heal()
		meter.Fail("Initialize", 1, errors.New("fails"))
		got := make(chan error, 2)
		for range 2 {
			go func() { got <- tok.reset(t.Context(), 1, nil) }()
			synctest.Wait()
		}
		for range 2 {
			if err := <-got; err == nil || meter.Count("Initialize") != 1 {
				t.Errorf("%v, the calls are %v", err, meter.Counts())
			}
		}
	})
}

// TestNoCallDuringReset: a call whose time ends while the library is initialised again is not made.
func TestNoCallDuringReset(t *testing.T) {
	tok, _ := resetToken(0)
	tok.login = &login{generation: 1, idle: []p11.SessionHandle{2}}
	tok.module.resetting = &pendingReset{since: time.Now(), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := tok.runOnce(ctx, func(*login, p11.SessionHandle) error {
		t.Error("the call was made")
		return nil
	})
	if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, context.Canceled) || tok.module.active != 0 {
		t.Errorf("%v, %d calls are in the library", err, tok.module.active)
	}
}
