package hsm_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"claviger"
	"claviger/metastore/sqlite"
	"claviger/provider"
	"claviger/provider/hsm"
)

// twoCopies is a token and two copies of one store on it. The second copy was started last.
type twoCopies struct {
	first, second *testSite
	server        *hsm.Provider // serves the first copy; it was started before the second
	pruner        *hsm.Provider // claviger hsm prune on the first copy
	orphans       []hsm.Object  // found by pruner
	other         *hsm.Provider // serves the second copy
}

// newTwoCopies makes a store with the key k, the deleted key deleted and an orphan, copies it, and makes a key and a
// version with the copy.
func newTwoCopies(t *testing.T) *twoCopies {
	t.Helper()
	ctx := t.Context()
	b := newSite(t)
	for _, key := range []string{"k", "deleted", "orphan"} {
		b.create(t, key)
	}
	b.soft = "true"
	p := b.mustOpen(t)
	if err := p.Delete(ctx, "deleted"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.soft = ""
	b.forget(t, "orphan")
	b.access = hsm.Destroy
	s := &twoCopies{first: b, pruner: b.mustOpen(t)}
	found, err := s.pruner.Prunable(ctx, 0)
	if err != nil || len(found.Orphans) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	s.orphans = found.Orphans
	b.access = hsm.Serve
	s.server = b.mustOpen(t)
	copied := filepath.Join(t.TempDir(), "copy.db")
	if _, err := sqlite.Backup(ctx, b.db, copied); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.server.CheckFit(ctx), s.pruner.CheckNotStale(ctx)); err != nil {
		t.Fatal(err)
	}
	s.second = b.beside(t, data)
	s.other = s.second.mustOpen(t)
	create(t, s.other, "new")
	if _, err := s.other.Roll(ctx, "k", nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestTwoCopies: of two copies of a store on one token, the copy that was started last keeps the token. The other copy
// serves the keys that it knows. It makes, rolls, deletes, purges and prunes nothing, and it does not start again.
func TestTwoCopies(t *testing.T) {
	ctx := t.Context()
	s := newTwoCopies(t)
	server, other := s.server, s.other
	keystream(t, server, "k@0")
	before := len(objects(t, other))
	wantStopped(t, server, "k", "is a copy of the metastore", s.second.db)
	if err := server.Watch(ctx); !hsm.IsStale(err) {
		t.Errorf("the periodic check: %v", err)
	}
	spec := provider.Spec{Name: "new", Cipher: claviger.DefaultCipher, BitLength: 256}
	if _, err := server.Create(ctx, spec); !hsm.IsStale(err) {
		t.Errorf("create: %v", err)
	}
	if err := server.Delete(ctx, "k"); !hsm.IsStale(err) {
		t.Errorf("delete: %v", err)
	}
	if err := server.Purge(ctx, "deleted", "deleted@0"); !hsm.IsStale(err) {
		t.Errorf("purge: %v", err)
	}
	if gone, err := s.pruner.Prune(ctx, s.orphans); !hsm.IsStale(err) || len(gone) != 0 {
		t.Errorf("prune: %v, %v", gone, err)
	}
	for _, o := range objects(t, server) {
		if o.Mark == hsm.Orphan {
			t.Errorf("%+v", o)
		}
	}
	keystream(t, server, "k@0")
	if vs, err := server.Versions(ctx, "k"); err != nil || len(vs) != 1 {
		t.Errorf("%+v, %v", vs, err)
	}
	if n := len(objects(t, other)); n != before {
		t.Errorf("%d objects, before %d", n, before)
	}
	if err := other.CheckFit(ctx); err != nil {
		t.Errorf("the second copy: %v", err)
	}
	mustClose(t, server)
	mustClose(t, s.pruner)
	wantStale(t, s.first, s.second)
}

// TestAcceptFirstCopy: an operator decides to keep the copy that was started first. Then the other copy stops.
// Objects that the first copy once destroyed are no longer orphans. Rebinding to the second copy is the same decision.
func TestAcceptFirstCopy(t *testing.T) {
	s := newTwoCopies(t)
	b, c, other := s.first, s.second, s.other
	mustClose(t, s.server)
	mustClose(t, s.pruner)
	acceptCopy(t, b)
	server := b.mustOpen(t)
	wantMarks(t, server, map[string]hsm.Mark{"k@0": hsm.InUse, "deleted@0": hsm.Deleted, "orphan@0": hsm.Unknown,
		"new@0": hsm.Unknown, "k@1": hsm.Unknown})
	create(t, server, "mine")
	wantStopped(t, other, "k", "is a copy of the metastore", b.db)
	keystream(t, other, "new@0")
	mustClose(t, other)
	wantStale(t, c, b)
	b.forgetWhole(t, server, "mine")
	wantMarks(t, server, map[string]hsm.Mark{"k@0": hsm.InUse, "deleted@0": hsm.Deleted, "orphan@0": hsm.Unknown,
		"new@0": hsm.Unknown, "k@1": hsm.Unknown, "mine@0": hsm.Orphan})
	mustClose(t, server)
	c.rebind(t)
	other = c.mustOpen(t)
	create(t, other, "again")
	mustClose(t, other)
	wantStale(t, b, c)
}
