package replica

import (
	"context"
	"errors"
	"testing"

	"claviger/trustee/server"
)

// standingStore is a store of which only Standing is asked.
type standingStore struct {
	Logged
	st Standing
}

func (s *standingStore) Standing(context.Context) (Standing, error) { return s.st, nil }

// TestCheckNamesAReason: the active fails with the reason why the two are not in step, and
// not at all where there is none, as before the first question and just after one that found
// them in step.
func TestCheckNamesAReason(t *testing.T) {
	r := &Replica{store: &standingStore{st: Standing{Role: server.RoleActive}}}
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
