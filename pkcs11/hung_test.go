package pkcs11

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/logtest"
	"claviger/pkcs11/worker"
)

// TestHungKeyInWorker: calls with one key hang until their worker is ended. The calls with another key are made again,
// and none fails. The key is not tried again for a while, so that no further worker ends, and its callers get an error
// at once. When the pause is over and the calls no longer hang, the key works.
func TestHungKeyInWorker(t *testing.T) {
	var log logtest.Buffer
	m, tok, keys := openFaulty(t, func(c *Config) {
		c.Worker, c.CallLimit, c.Log = WorkerYes, 2*time.Second, slog.New(slog.NewTextHandler(&log, nil))
	})
	hung, other := keys[0], keys[1]
	for _, k := range keys {
		if err := k.encrypts(tok, t, 1); err != nil {
			t.Fatal(err)
		}
	}
	logins := m.Calls(faultmodule.Login)
	m.HangKey(hung.label)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				if err := other.encrypts(tok, t, 1); err != nil {
					t.Errorf("another key: %v", err)
				}
			}
		})
	}
	within(t, 30*time.Second, "the first call with the key", func() {
		if err := hung.encrypts(tok, t, 1); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("the first call with the key: %v", err)
		}
	})
	for range 50 {
		begun := time.Now()
		err := hung.encrypts(tok, t, 1)
		if err == nil || !strings.Contains(err.Error(), "the next try is in") || time.Since(begun) > time.Second {
			t.Errorf("while the key is paused: %v after %v", err, time.Since(begun))
		}
	}
	stop.Store(true)
	wg.Wait()
	if n := m.Calls(faultmodule.Login) - logins; n != 1 {
		t.Errorf("%d workers were started, want 1", n)
	}
	if !strings.Contains(log.String(), "calls with a key hang in the HSM's library, and other keys work") {
		t.Errorf("the log does not say so: %s", &log)
	}
	m.HangKey("")
	tok.mu.Lock()
	tok.faults[keySubject(hung.label)].until = time.Now()
	tok.mu.Unlock()
	if err := hung.encrypts(tok, t, 1); err != nil {
		t.Errorf("after the pause: %v", err)
	}
	tok.mu.Lock()
	defer tok.mu.Unlock()
	if f := tok.faults[keySubject(hung.label)]; f != nil {
		t.Errorf("the key works, and its record is %+v", f)
	}
}

// TestHungToken: if all calls hang, no key is blamed: the call is made again in the next worker.
func TestHungToken(t *testing.T) {
	m, tok, keys := openFaulty(t, func(c *Config) { c.Worker, c.CallLimit = WorkerYes, time.Second })
	m.Order(faultmodule.EncryptInit, faultmodule.Order{Action: faultmodule.Hang})
	within(t, 30*time.Second, "the call", func() {
		if err := keys[0].encrypts(tok, t, 1); err != nil {
			t.Error(err)
		}
	})
}

// TestPausesOfHungKey: the pauses grow to five minutes. A call that hung at the same time as another does not lengthen
// them. Errors that do not mean that the call itself hung, and calls without a key, are left to the steps of repair.
func TestPausesOfHungKey(t *testing.T) {
	_, tok, keys := openFaulty(t, nil)
	s, hung := keySubject(keys[0].label), worker.GoneError{Reason: "C_Encrypt did not return in 25s", Hung: true}
	fails := func(s subject, begun time.Time, err error) bool {
		successes := tok.successes.Add(1) - 1 // another key worked meanwhile
		return tok.hungAlone(t.Context(), s, begun, successes, tok.module.current()+1, err)
	}
	for what, c := range map[string]struct {
		s   subject
		err error
	}{
		"another's call hung": {s, worker.GoneError{Reason: hung.Reason}},
		"another error":       {s, errors.New("x")},
		"no key":              {subject{name: "find"}, hung},
	} {
		if fails(c.s, time.Now(), c.err) {
			t.Errorf("%s: a key is blamed", what)
		}
	}
	if tok.hungAlone(t.Context(), s, time.Now(), tok.successes.Load(), tok.module.current()+1, hung) {
		t.Error("a key is blamed while no other works")
	}
	for i, seconds := range []int{5, 10, 20, 40, 80, 160, 300, 300} {
		want := time.Duration(seconds) * time.Second
		begun := time.Now()
		for range 2 { // the second call hung at the same time
			if !fails(s, begun, hung) {
				t.Fatal("the key is not blamed")
			}
		}
		tok.mu.Lock()
		pause := tok.faults[s].until.Sub(tok.faults[s].last)
		tok.mu.Unlock()
		if pause != want {
			t.Errorf("pause %d is %v, want %v", i, pause, want)
		}
		if err := tok.hangs(s); !claviger.Is(err, claviger.Unavailable) ||
			!strings.Contains(err.Error(), hung.Reason) {
			t.Errorf("during the pause: %v", err)
		}
	}
	if err := tok.hangs(keySubject(keys[1].label)); err != nil {
		t.Error(err)
	}
}
