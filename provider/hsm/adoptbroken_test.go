package hsm_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"claviger/metastore"
	"claviger/provider/hsm"
)

// putFails is a store that is killed at the n-th write to the journal. An adoption makes two writes for each key.
type putFails struct {
	metastore.Store
	at, n int
}

func (f *putFails) Put(ctx context.Context, run, item string, data []byte) error {
	if f.n++; f.n == f.at {
		return errKilled
	}
	return f.Store.Put(ctx, run, item, data)
}

// prependFails is a store that is killed when the n-th older version is added.
type prependFails struct {
	metastore.Store
	at, n int
}

func (f *prependFails) Prepend(ctx context.Context, key string, v metastore.Version) error {
	if f.n++; f.n == f.at {
		return errKilled
	}
	return f.Store.Prepend(ctx, key, v)
}

// TestAdoptOlder: adopted versions that are older than the key's versions come before them, in order, even if the
// adoption is killed between two of them. The current version stays.
func TestAdoptOlder(t *testing.T) {
	for at := range 4 { // with 0 it is not killed
		b := newSite(t)
		b.access = hsm.Repair
		p := b.mustOpen(t)
		b.generate(t, "k@0", "k@1", "k@2")
		list, err := p.Candidates(t.Context())
		if err == nil && len(list) == 1 {
			err = p.SetAside(t.Context(), list[0], hsm.Adoption{})
		}
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		mustClose(t, p)
		b.access = hsm.Serve
		b.create(t, "k")
		if at > 0 {
			b.access = hsm.Repair
			b.around = func(s metastore.Store) metastore.Store { return &prependFails{Store: s, at: at} }
			p = b.mustOpen(t)
			list, err := p.Candidates(t.Context())
			if err == nil && len(list) == 1 {
				err = p.Adopt(t.Context(), list[0], hsm.Adoption{OneKey: true})
			}
			if !errors.Is(err, errKilled) {
				t.Fatalf("killed at %d: %+v, %v", at, list, err)
			}
			mustClose(t, p)
			b.around = nil
		}
		b.adoptAll(t, hsm.Adoption{OneKey: true})
		p = b.mustOpen(t)
		var names []string
		vs, err := p.Versions(t.Context(), "k")
		for _, v := range vs {
			names = append(names, v.Name)
		}
		if want := []string{"k@0", "k@1", "k@2", "k@3"}; err != nil || !slices.Equal(names, want) {
			t.Errorf("killed at %d: %q, %v", at, names, err)
		}
		if v, err := p.Current(t.Context(), "k"); err != nil || v.Name != "k@3" {
			t.Errorf("killed at %d: the current version is %s, %v", at, v.Name, err)
		}
		mustClose(t, p)
	}
}

// rollFails is a store that is killed when a version is added.
type rollFails struct{ metastore.Store }

func (rollFails) FinishRoll(context.Context, metastore.Intent, metastore.Version) error {
	return errKilled
}

// TestAdoptRoll: adopting the version of an interrupted roll ends that roll, and the next roll makes another version.
func TestAdoptRoll(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.around = func(s metastore.Store) metastore.Store { return rollFails{s} }
	p := b.mustOpen(t)
	if _, err := p.Roll(t.Context(), "k", nil); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	mustClose(t, p)
	b.around = nil
	b.adoptAll(t, hsm.Adoption{})
	p = b.mustOpen(t)
	if v, err := p.Current(t.Context(), "k"); err != nil || v.Name != "k@1" {
		t.Errorf("the current version is %s, %v", v.Name, err)
	}
	if v, err := p.Roll(t.Context(), "k", nil); err != nil || v.Name != "k@2" {
		t.Errorf("rolled to %s, %v", v.Name, err)
	}
	mustClose(t, p)
	b.withStore(t, func(s metastore.Store) {
		if pending, err := s.Pending(t.Context()); err != nil || len(pending) != 0 {
			t.Errorf("remaining steps: %+v, %v", pending, err)
		}
	})
}
