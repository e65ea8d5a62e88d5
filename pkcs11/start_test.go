package pkcs11

import (
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"claviger"
	"claviger/internal/logtest"
	"claviger/internal/softhsm/softhsmtest"
	"claviger/pkcs11/cryptoki"
	"claviger/pkcs11/worker"
)

// TestResetUnused: a module without users is not initialised again.
func TestResetUnused(t *testing.T) {
	m, b, meter := resettable(nil, nil)
	m.users = 0
	if err := m.reset(t.Context(), 1, b); err == nil || len(meter.Counts()) > 0 || m.current() != 1 {
		t.Errorf("%v, calls %v, generation %d", err, meter.Counts(), m.current())
	}
}

// killable is a library in a worker: when the worker is killed, the hanging call leaves a moment later.
type killable struct {
	cryptoki.Library
	kill func()
}

var _ worker.Library = killable{}

func (killable) Destroy()      {}
func (k killable) Kill(string) { k.kill() }

// TestResetKills: a reset ends the worker whose call hangs. When the hanging call has returned, the library is
// initialised again.
func TestResetKills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, b, _ := resettable(nil, nil)
		visit, err := m.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m.b = killable{kill: func() { time.AfterFunc(50*time.Millisecond, func() { m.leave(visit) }) }}
		if err := m.reset(t.Context(), 1, b); err != nil || m.current() != 2 {
			t.Errorf("with a worker: %v, generation %d", err, m.current())
		}
		if _, err := m.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.b = nil
		if err := m.reset(t.Context(), 2, b); !errors.Is(err, errHung) {
			t.Errorf("without a worker: %v", err)
		}
	})
}

// TestResetBegins: a reset begins at once when the last call has left.
func TestResetBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, b, _ := resettable(nil, nil)
		visit, err := m.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		begun, done := time.Now(), make(chan error)
		go func() { done <- m.reset(t.Context(), 1, b) }()
		synctest.Wait()
		m.leave(visit)
		if err := <-done; err != nil || time.Since(begun) > 0 {
			t.Errorf("%v, after %v", err, time.Since(begun))
		}
	})
}

// TestWorkerDoesNotStart: the error of a worker that cannot be started names the cause.
func TestWorkerDoesNotStart(t *testing.T) {
	c := config(softhsmtest.New(t))
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	none := syscall.Rlimit{Cur: 0, Max: old.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	m, err := openModule(t.Context(), c.Module, true, 0, false)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if m != nil || !errors.Is(err, syscall.EMFILE) || !strings.Contains(err.Error(), "cannot be started") {
		t.Error(err)
	}
}

// TestWithoutDomainError: the cause in a domain error of the first login stays an error.
func TestWithoutDomainError(t *testing.T) {
	cause := errors.New("cause")
	empty := &claviger.Error{Kind: claviger.Unavailable}
	for _, c := range []struct{ err, want error }{
		{nil, nil}, {cause, cause}, {claviger.E("op", claviger.Unavailable, "", cause), cause}, {empty, empty},
	} {
		if got := withoutDomainError(c.err); got != c.want { //nolint:errorlint // the same value
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

// TestCloseWithFewSessions: Close does not wait for the slots of sessions that the HSM does not allow.
func TestCloseWithFewSessions(t *testing.T) {
	var log logtest.Buffer
	c := config(softhsmtest.New(t))
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	tok, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	tok.closeTimeout = 2 * time.Second
	tok.slots <- struct{}{}
	tok.mu.Lock()
	tok.parked = append(tok.parked, &parkedSlot{time.NewTimer(time.Hour)})
	tok.mu.Unlock()
	if err := tok.Close(); err != nil || strings.Contains(log.String(), "did not return") {
		t.Errorf("%v: %s", err, &log)
	}
}
