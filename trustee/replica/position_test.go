package replica

import (
	"context"
	"errors"
	"testing"

	"claviger"
	"claviger/trustee/server"
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

// TestMayApply: a store takes changes only in its role, and a passive store none of an earlier epoch.
func TestMayApply(t *testing.T) {
	for _, c := range []struct {
		role, as server.Role
		epoch    uint64
		may      bool
	}{
		{server.RolePassive, server.RolePassive, 2, true}, {server.RolePassive, server.RolePassive, 3, true},
		{server.RolePassive, server.RolePassive, 1, false}, {server.RoleActive, server.RolePassive, 2, false},
		{server.RolePassive, server.RoleActive, 2, false}, {server.RoleActive, server.RoleActive, 1, true},
	} {
		err := (&Position{Role: c.role, Epoch: 2}).MayApply("test", c.as, c.epoch)
		if c.may != (err == nil) || !c.may && !claviger.Is(err, claviger.Denied) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestHeads: the digest of an entry covers the entry before it, its numbers and its change. A branch has a head of its
// own.
func TestHeads(t *testing.T) {
	h := Head{Seq: 1, Epoch: 1, Digest: "d"}
	seen := map[string]bool{}
	for _, e := range []Head{h.Next(1, []byte("x")).Head, h.Next(2, []byte("x")).Head, h.Next(1, []byte("y")).Head,
		(Head{2, 1, "d"}).Next(1, []byte("x")).Head, (Head{1, 1, "e"}).Next(1, []byte("x")).Head,
		h.NewBranch(1), h.NewBranch(1)} {
		if seen[e.Digest] {
			t.Errorf("two heads are %s", e.Digest)
		}
		seen[e.Digest] = true
	}
}
