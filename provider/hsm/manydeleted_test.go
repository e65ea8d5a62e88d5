package hsm_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/hsm"
)

type oneStep struct{}

// reading counts reads of the whole store within one step. The step's context contains oneStep.
type reading struct {
	metastore.Store
	whole *atomic.Int32
}

func (r *reading) count(ctx context.Context) {
	if ctx.Value(oneStep{}) != nil {
		r.whole.Add(1)
	}
}

func (r *reading) Names(ctx context.Context) ([]string, error) {
	r.count(ctx)
	return r.Store.Names(ctx)
}

func (r *reading) DeletedKeys(ctx context.Context, names ...string) ([]metastore.DeletedKey, error) {
	if len(names) == 0 {
		r.count(ctx)
	}
	return r.Store.DeletedKeys(ctx, names...)
}

func (r *reading) Runs(ctx context.Context) ([]string, error) {
	r.count(ctx)
	return r.Store.Runs(ctx)
}

// TestStepsReadOneName: a creation, roll, deletion, undeletion or purge, and a lookup of a missing version, do not read
// the keys of other names. Thus a user with many keys, deleted or not, does not slow down the steps of others.
func TestStepsReadOneName(t *testing.T) {
	hsm.SetManyNames(t, 1)
	b := newSite(t)
	b.soft = "true"
	var whole atomic.Int32
	b.around = func(s metastore.Store) metastore.Store { return &reading{s, &whole} }
	p := b.mustOpen(t)
	create(t, p, "other")
	if err := p.CheckFit(t.Context()); err != nil { // reads the names, as the server does twice a minute
		t.Fatal(err)
	}
	ctx := context.WithValue(t.Context(), oneStep{}, true)
	made := func() error {
		_, err := p.Create(ctx, provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128})
		return err
	}
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"create", made},
		{"delete", func() error { return p.Delete(ctx, "k") }},
		{"create where a key of the name was deleted", made},
		{"roll", func() error { _, err := p.Roll(ctx, "k", nil); return err }},
		{"delete again", func() error { return p.Delete(ctx, "k") }},
		{"undelete", func() error { return p.Undelete(ctx, "k", "k@2") }},
		{"look for a version that was deleted", func() error {
			if _, err := p.Version(ctx, "k@0"); !claviger.Is(err, claviger.VersionNotFound) {
				return fmt.Errorf("%w", err)
			}
			return nil
		}},
		{"look for a version that never was", func() error {
			if _, err := p.Version(ctx, "k@7"); !claviger.Is(err, claviger.VersionNotFound) {
				return fmt.Errorf("%w", err)
			}
			return nil
		}},
		{"delete at last", func() error { return p.Delete(ctx, "k") }},
		{"purge", func() error { return p.Purge(ctx, "k", "k@0", "k@2") }},
	} {
		whole.Store(0)
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.what, err)
		}
		if n := whole.Load(); n > 0 {
			t.Errorf("%s: the whole store was read, in %d calls", s.what, n)
		}
	}
	// The counter works.
	if _, err := p.Objects(ctx); err != nil || whole.Load() == 0 {
		t.Errorf("a list of all objects: %d readings of the whole store, %v", whole.Load(), err)
	}
	mustClose(t, p)
}

// BenchmarkCreateBesideDeletedKeys creates keys whose names were deleted before, beside 0 and 3,000 other deleted keys
// of 16 KiB each.
func BenchmarkCreateBesideDeletedKeys(b *testing.B) {
	for _, n := range []int{0, 3000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			back := newSite(b)
			back.soft = "true"
			p := back.mustOpen(b)
			store := back.stores[0]
			for i := range n {
				name := fmt.Sprintf("fat%d", i)
				k := metastore.Key{
					Metadata: claviger.Metadata{
						Name: name, Cipher: claviger.DefaultCipher, BitLength: 128, Created: time.Now(),
						Attributes: map[string]string{"fat": strings.Repeat("x", 16<<10)},
					},
					List: []metastore.Version{{ID: "0", Object: fmt.Sprintf("%016x", i), Created: time.Now(),
						Check: make([]byte, 8)}},
				}
				if err := store.Insert(b.Context(), k); err != nil {
					b.Fatal(err)
				}
				if err := store.SoftDelete(b.Context(), name); err != nil {
					b.Fatal(err)
				}
			}
			i := 0
			for b.Loop() {
				i++
				name := fmt.Sprintf("k%d", i)
				for range 2 { // the second time, the token holds objects of the first time
					if _, err := p.Create(b.Context(), provider.Spec{Name: name, Cipher: claviger.DefaultCipher,
						BitLength: 128}); err != nil {
						b.Fatal(err)
					}
					if err := p.Delete(b.Context(), name); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := p.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
