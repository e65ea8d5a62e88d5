package hsm_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"claviger"
	"claviger/metastore"
	"claviger/provider/hsm"
)

// readFails is a store whose at-th read fails, counted in contexts with oneStep.
type readFails struct {
	metastore.Store
	at, n int
}

func (r *readFails) fail(ctx context.Context) error {
	if ctx.Value(oneStep{}) == nil {
		return nil
	}
	if r.n++; r.n == r.at {
		return errKilled
	}
	return nil
}

func (r *readFails) Names(ctx context.Context) ([]string, error) {
	if err := r.fail(ctx); err != nil {
		return nil, err
	}
	return r.Store.Names(ctx)
}

func (r *readFails) Page(ctx context.Context, from string, n int) ([]string, string, error) {
	if err := r.fail(ctx); err != nil {
		return nil, "", err
	}
	return r.Store.Page(ctx, from, n)
}

func (r *readFails) Get(ctx context.Context, names ...string) ([]*metastore.Key, error) {
	if err := r.fail(ctx); err != nil {
		return nil, err
	}
	return r.Store.Get(ctx, names...)
}

func (r *readFails) ByVersion(ctx context.Context, v string) (*claviger.Metadata, metastore.Version, error) {
	if err := r.fail(ctx); err != nil {
		return nil, metastore.Version{}, err
	}
	return r.Store.ByVersion(ctx, v)
}

func (r *readFails) DeletedKeys(ctx context.Context, names ...string) ([]metastore.DeletedKey, error) {
	if err := r.fail(ctx); err != nil {
		return nil, err
	}
	return r.Store.DeletedKeys(ctx, names...)
}

func (r *readFails) Setting(ctx context.Context, name string) (string, bool, error) {
	if err := r.fail(ctx); err != nil {
		return "", false, err
	}
	return r.Store.Setting(ctx, name)
}

// TestCheckReadsFail: a check during which a read of the store fails is not a check that found nothing. Otherwise a key
// could be made on a token that nothing was compared with.
func TestCheckReadsFail(t *testing.T) {
	b := newSite(t)
	store := new(readFails)
	b.around = func(s metastore.Store) metastore.Store { store.Store = s; return store }
	for i := range 3 {
		b.create(t, fmt.Sprintf("k%d", i))
	}
	ctx := context.WithValue(t.Context(), oneStep{}, true)
	for name, check := range map[string]func(p *hsm.Provider) error{
		"all keys":    func(p *hsm.Provider) error { return p.CheckAll(ctx) },
		"next keys":   func(p *hsm.Provider) error { return p.CheckNext(ctx) },
		"random keys": func(p *hsm.Provider) error { return p.CheckFit(ctx) },
	} {
		for at, reached := 1, true; reached; at++ {
			p := b.mustOpen(t) // no version is in its cache
			store.at, store.n = at, 0
			err := check(p)
			if reached = store.n >= at; reached != errors.Is(err, errKilled) || !reached && err != nil {
				t.Errorf("%s, read %d: %v", name, at, err)
			}
			if !reached && at < 4 {
				t.Errorf("%s: only %d reads", name, at-1)
			}
			mustClose(t, p)
		}
	}
}

// TestMostWrong: the check values of a token are wrong if, in proportion, most versions are other keys or are missing.
// Without a wrong value they are not, however many versions are missing.
func TestMostWrong(t *testing.T) {
	for _, c := range []struct {
		versions, lost, compared, wrong int
		want                            bool
	}{
		{0, 0, 0, 0, false}, {4, 0, 0, 0, false}, {4, 0, 4, 0, false}, {4, 0, 4, 1, false}, {4, 0, 4, 2, false},
		{4, 0, 4, 3, true}, {4, 3, 1, 0, false}, {4, 1, 3, 1, false}, {4, 1, 3, 2, true}, {100, 0, 10, 5, false},
		{100, 0, 10, 6, true}, {100, 20, 10, 3, false}, {100, 20, 10, 4, true}, {0, 0, 1, 1, false},
	} {
		if got := hsm.MostWrong(c.versions, c.lost, c.compared, c.wrong); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}
