package replica

import (
	"context"
	"errors"
	"testing"
)

// TestAdmit: a change counts as shared only if the peer has it and every change before it. A change that the guard
// refuses is not admitted, and does not change the position.
func TestAdmit(t *testing.T) {
	no := errors.New("no")
	guard := func(shared bool, err error) *Guard {
		g := Guard(func(context.Context, Position, Entry) (bool, error) { return shared, err })
		return &g
	}
	for name, c := range map[string]struct {
		guard    *Guard
		unshared uint64
		shared   bool
		err      error
		after    uint64 // Unshared
	}{
		"without a replica":            {guard: nil, after: 8},
		"alone":                        {guard: guard(false, nil), after: 8},
		"alone again":                  {guard: guard(false, nil), unshared: 5, after: 5},
		"shared":                       {guard: guard(true, nil), shared: true},
		"shared after an unshared one": {guard: guard(true, nil), unshared: 5, after: 5},
		"refused":                      {guard: guard(false, no), err: no},
	} {
		p := Position{Epoch: 2, Unshared: c.unshared, Head: Head{Seq: 7, Epoch: 1, Digest: "d"}}
		e, shared, err := p.Admit(t.Context(), c.guard, []byte("x"))
		if !errors.Is(err, c.err) || shared != c.shared || p.Unshared != c.after {
			t.Errorf("%s: shared %t, unshared %d, %v", name, shared, p.Unshared, err)
		}
		if err == nil && (e.Seq != 8 || e.Epoch != 2 || e.Digest != p.Head.Next(2, []byte("x")).Digest) {
			t.Errorf("%s: %+v", name, e)
		}
	}
}
