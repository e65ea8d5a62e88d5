package replica

import (
	"context"
	"errors"
	"testing"

	"claviger/trustee/server"
)

// positionStore is a store that has only Position.
type positionStore struct {
	Logged
	st Position
}

func (s *positionStore) Position(context.Context) (Position, error) { return s.st, nil }

// TestCheckNamesAReason: at the active server, Check returns the reason why the two servers are not synchronized. It
// returns no error if there is no reason: before the first check, and after a check that found them synchronized.
func TestCheckNamesAReason(t *testing.T) {
	r := &Replica{store: &positionStore{st: Position{Role: server.RoleActive}}}
	for _, r.checked = range []bool{false, true} {
		if err := r.Check(t.Context()); err != nil {
			t.Errorf("checked %t: %v", r.checked, err)
		}
	}
	r.syncErr = errors.New("no route to host")
	if err := r.Check(t.Context()); !errors.Is(err, r.syncErr) {
		t.Errorf("%v", err)
	}
	r.synced = true
	if err := r.Check(t.Context()); err != nil {
		t.Errorf("synchronized: %v", err)
	}
	r.synced, r.store = false, &positionStore{st: Position{Role: server.RolePassive}}
	if err := r.Check(t.Context()); err != nil {
		t.Errorf("at the passive: %v", err)
	}
}
