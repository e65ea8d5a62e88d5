package replica

import (
	"context"
	"errors"
	"testing"

	"claviger/trustee/server"
)

// positionStore is a store of which only Position is asked.
type positionStore struct {
	Logged
	st Position
}

func (s *positionStore) Position(context.Context) (Position, error) { return s.st, nil }

// TestCheckNamesAReason: the active fails with the reason why the two are not in step, and
// not at all where there is none, as before the first question and just after one that found
// them in step.
func TestCheckNamesAReason(t *testing.T) {
	r := &Replica{store: &positionStore{st: Position{Role: server.RoleActive}}}
	for _, r.tried = range []bool{false, true} {
		if err := r.Check(t.Context()); err != nil {
			t.Errorf("tried %t: %v", r.tried, err)
		}
	}
	r.why = errors.New("no route to host")
	if err := r.Check(t.Context()); !errors.Is(err, r.why) {
		t.Errorf("%v", err)
	}
}
