package pkcs11

import (
	"errors"
	"testing"
	"time"

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
}
