package replica_test

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/replica"
)

// empty expects that the spool folder of a server is empty.
func empty(t *testing.T, m *member) {
	t.Helper()
	if left, err := os.ReadDir(m.spool); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// page is a page of a copy.
type page map[string]any

func pageOf(session string, n int, last bool, records ...string) page {
	list := make([]any, len(records))
	for i, r := range records {
		list[i] = raw(r)
	}
	return page{"session": session, "page": n, "epoch": 1, "head": map[string]any{"seq": 9, "epoch": 1, "digest": "d"},
		"records": list, "last": last, "drop": true}
}

type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

// TestPages: the pages of a copy must come in order, and belong to one copy. A new first page begins a new copy.
func TestPages(t *testing.T) {
	p := newPairs(t)
	const org = `{"org":{"Name":"NEW"}}`
	compared := pageOf("a", 0, true, `"x"`)
	compared["compare"] = true
	for name, c := range map[string]struct {
		pages []page
		says  string // the error of the last page; "" for success
	}{
		"one":                {[]page{pageOf("a", 0, true, org)}, ""},
		"two":                {[]page{pageOf("a", 0, false), pageOf("a", 1, true, org)}, ""},
		"begun again":        {[]page{pageOf("a", 0, false, org), pageOf("b", 0, true, org)}, ""},
		"without a first":    {[]page{pageOf("a", 1, true, org)}, "does not follow"},
		"a gap":              {[]page{pageOf("a", 0, false), pageOf("a", 2, true, org)}, "does not follow"},
		"another copy":       {[]page{pageOf("a", 0, false), pageOf("b", 1, true, org)}, "does not follow"},
		"after the last":     {[]page{pageOf("a", 0, true, org), pageOf("a", 1, true, org)}, "does not follow"},
		"a record of no use": {[]page{pageOf("a", 0, true, `"x"`)}, "a record of the copy cannot be read"},
		"one to compare":     {[]page{compared}, "a record of the copy cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			_, b, end := p.fresh(t)
			defer end()
			was := digestOf(t, b.store.Store)
			var err error
			for _, page := range c.pages {
				err = b.do(t.Context(), trustee.VerbPeerLoad, page)
			}
			if c.says != "" {
				if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), c.says) {
					t.Error(err)
				}
				if name != "after the last" && digestOf(t, b.store.Store) != was {
					t.Error("the store was changed")
				}
				return
			}
			must(t, err)
			if orgs, err := b.store.Orgs(t.Context()); err != nil || len(orgs) != 1 || orgs[0].Name != "NEW" {
				t.Errorf("%v, %v", orgs, err)
			}
			empty(t, b)
		})
	}
}

// TestPageThatCannotBeStored: the passive server refuses a page that it cannot store.
func TestPageThatCannotBeStored(t *testing.T) {
	p := newPairs(t)
	for name, spoil := range map[string]func(t *testing.T, b *member){
		"no folder": func(t *testing.T, b *member) { t.Helper(); must(t, os.Remove(b.spool)) },
		"no room": func(t *testing.T, b *member) {
			t.Helper()
			if err := syscall.Mount("none", b.spool, "tmpfs", 0, "size=1m"); err != nil {
				t.Skipf("only root can mount a small disk: %v", err)
			}
			t.Cleanup(func() { must(t, syscall.Unmount(b.spool, 0)) })
			fill(t, b.spool)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, b, end := p.fresh(t)
			defer end()
			spoil(t, b)
			err := b.do(t.Context(), trustee.VerbPeerLoad, pageOf("a", 0, true, `{"org":{"Name":"NEW"}}`))
			if !claviger.Is(err, claviger.Unavailable) {
				t.Error(err)
			}
			replica.ForgetIncoming(b.r)
		})
	}
}

// TestRunForgetsPages: the end of Run removes the pages of a copy.
func TestRunForgetsPages(t *testing.T) {
	_, b, end := newPairs(t).fresh(t)
	defer end()
	must(t, b.do(t.Context(), trustee.VerbPeerLoad, pageOf("a", 0, false)))
	if left, err := os.ReadDir(b.spool); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.r.Run(ctx)
	empty(t, b)
}
