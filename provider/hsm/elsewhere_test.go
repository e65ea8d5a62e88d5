package hsm_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger"
	"claviger/metastore/sqlite"
	"claviger/provider"
	"claviger/provider/hsm"
)

// TestCommandOnACopy: a command runs on a copy of a store while a server uses the original. The command does not take
// the token from the server, whether it changes keys or not, before an operator decides so.
func TestCommandOnACopy(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.create(t, "k")
	b.create(t, "orphan")
	b.forget(t, "orphan")
	server := b.mustOpen(t)
	copied := filepath.Join(t.TempDir(), "copy.db")
	if _, err := sqlite.Backup(ctx, b.db, copied); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	create(t, server, "since") // the server writes its next incarnation only within the hour
	c := b.beside(t, data)
	spec := provider.Spec{Name: "new", Cipher: claviger.DefaultCipher, BitLength: 256}
	made := 0
	wantStillWorks := func(after string) {
		t.Helper()
		made++
		spec := provider.Spec{Name: fmt.Sprint("of", made), Cipher: claviger.DefaultCipher, BitLength: 256}
		if _, err := server.Create(ctx, spec); err != nil {
			t.Errorf("the server after %s: %v", after, err)
		}
	}
	for access, does := range map[hsm.Access]func(*hsm.Provider) error{
		hsm.Destroy: func(p *hsm.Provider) error {
			found, err := p.Prunable(ctx, 0)
			if err != nil || len(found.Orphans) != 1 {
				t.Fatalf("%+v, %v", found, err)
			}
			_, err = p.Prune(ctx, found.Orphans)
			return err
		},
		hsm.Repair: func(p *hsm.Provider) error {
			list, err := p.Candidates(ctx)
			if err != nil || len(list) == 0 {
				t.Fatalf("%+v, %v", list, err)
			}
			return p.Adopt(ctx, list[0], hsm.Adoption{})
		},
		hsm.Make: func(p *hsm.Provider) error {
			_, err := p.Create(ctx, spec)
			return err
		},
		hsm.Rebind: nil,
	} {
		c.access = access
		p := c.mustOpen(t)
		if access == hsm.Make {
			if err := errors.Join(p.CheckFit(ctx), p.SurveyNow(ctx), p.Watch(ctx)); err != nil {
				t.Error(err)
			}
		}
		wantStillWorks(fmt.Sprint("nothing with access ", access))
		if does != nil {
			if err := does(p); !hsm.IsStale(err) || !strings.Contains(err.Error(), b.db) ||
				!strings.Contains(err.Error(), "claviger metastore accept") {
				t.Errorf("access %d: %v", access, err)
			}
			wantStillWorks(fmt.Sprint("a refusal with access ", access))
		}
		mustClose(t, p)
		wantStillWorks(fmt.Sprint("access ", access))
	}
	acceptCopy(t, c)
	c.access = hsm.Make
	p := c.mustOpen(t)
	create(t, p, "new")
	wantStopped(t, server, "k", "is a copy of the metastore", c.db)
	mustClose(t, p)
	mustClose(t, server)
	wantStale(t, b, c)
}

// TestAcceptCopyOnFullToken: the token has no room. AcceptCopy still records the operator's decision in the store, and
// reports that the token does not have it.
func TestAcceptCopyOnFullToken(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.create(t, "k")
	c := b.beside(t, b.copyStore(t))
	mustClose(t, c.mustOpen(t))
	b.access = hsm.Repair
	p := b.mustOpen(t)
	b.meter.Fail("CreateObject", 1000, errKilled)
	from, written, err := p.AcceptCopy(ctx)
	if !strings.HasSuffix(from, c.db) || written || !errors.Is(err, errKilled) {
		t.Errorf("%q, %t, %v", from, written, err)
	}
	if err := p.CheckNotStale(ctx); err != nil {
		t.Error(err)
	}
	mustClose(t, p)
	b.meter.Heal()
	b.access = hsm.Serve
	p = b.mustOpen(t)
	create(t, p, "new")
}

// TestOlderStateAtSamePlace: a server on an older state of the store, at its own place, serves the keys that it knows.
// It makes and destroys nothing before an operator has decided. Commands that change keys are refused.
func TestOlderStateAtSamePlace(t *testing.T) {
	ctx := t.Context()
	b := newSite(t)
	b.create(t, "k")
	data := b.copyStore(t)
	b.create(t, "since")
	b.putStore(t, data)
	for range 2 {
		p := b.mustOpen(t)
		keystream(t, p, "k@0")
		if err := p.CheckFit(ctx); !hsm.IsStale(err) {
			t.Errorf("%v", err)
		}
		wantStopped(t, p, "k", "at this very place", "failed over to a standby")
		if err := p.Delete(ctx, "k"); !hsm.IsStale(err) {
			t.Errorf("delete: %v", err)
		}
		mustClose(t, p)
	}
	for _, access := range []hsm.Access{hsm.Read, hsm.Journal, hsm.Destroy, hsm.Make} {
		b.access = access
		if p, err := b.open(ctx); !hsm.IsStale(err) {
			t.Errorf("access %d: %v", access, err)
			if err == nil {
				mustClose(t, p)
			}
		}
	}
	b.access = hsm.Repair
	p := b.mustOpen(t)
	if from, _, err := p.AcceptCopy(ctx); err != nil || !strings.HasSuffix(from, b.db) {
		t.Fatal(from, err)
	}
	mustClose(t, p)
	b.access = hsm.Serve
	p = b.mustOpen(t)
	wantMarks(t, p, map[string]hsm.Mark{"k@0": hsm.InUse, "since@0": hsm.Unknown})
	create(t, p, "new")
}
