package keyring

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
)

// leasing is a provider that gives leases of the versions that it has, until it is away.
type leasing struct {
	*counting
	away   atomic.Bool
	leases atomic.Int64
}

func (p *leasing) Lease(ctx context.Context, version string, length time.Duration) error {
	p.leases.Add(1)
	if p.away.Load() || length != time.Minute {
		return claviger.Errorf("leasing", claviger.Unavailable, version, "away, or a lease of %v", length)
	}
	_, err := p.Provider.Version(ctx, version)
	return err
}

func newImpliedRing(t *testing.T, change func(*Config)) (*testRing, *leasing) {
	t.Helper()
	var p *leasing
	l := newTestRing(t, func(cfg *Config) {
		counting, _ := cfg.Primary.(*counting)
		p = &leasing{counting: counting}
		cfg.Primary, cfg.ImpliedLease = p, time.Minute
		if change != nil {
			change(cfg)
		}
	})
	return l, p
}

// TestImplied: EDEKs are made under the current version without an encryption, under the rules of the key and with its
// audit line, and only while the provider gives a lease: none are kept ready.
func TestImplied(t *testing.T) {
	l, p := newImpliedRing(t, func(cfg *Config) {
		cfg.Policy = rules(t, "key.acl.k.GENERATE_EEK", "maker", "key.acl.k.MANAGEMENT", "maker")
	})
	create(t, l.primary, "k")
	for round := range 3 {
		es, err := l.Generate(t.Context(), caller("maker"), "k", 500)
		if err != nil || len(es) != 500 || p.encrypts.Load() != 0 {
			t.Fatalf("%d EDEKs by %d encryptions, %v", len(es), p.encrypts.Load(), err)
		}
		if want := claviger.VersionName("k", string(rune('0'+round))); es[499].Version != want ||
			len(es[499].Material) != 16 {
			t.Errorf("%+v after %d rolls", es[499], round)
		}
		if _, err := l.Roll(t.Context(), caller("maker"), "k", nil); err != nil {
			t.Fatal(err)
		}
	}
	l.audit.take()
	_, err := l.Generate(t.Context(), caller("other"), "k", 1)
	wantKind(t, err, claviger.KeyDenied)
	if lines := l.audit.take(); len(lines) == 0 ||
		lines[0] != "UNAUTHORIZED[op=GENERATE_EEK, key=k, user=other] " {
		t.Errorf("audit of a refusal: %q", lines)
	}
	if _, err := l.Generate(t.Context(), caller("maker"), "k", 1); err != nil {
		t.Fatal(err)
	}
	if lines := l.audit.take(); len(lines) != 1 || lines[0] != "OK[op=GENERATE_EEK, key=k, user=maker] " {
		t.Errorf("audit of a success: %q", lines)
	}
	if l.Implied() != 1501 || l.Queued() != 0 {
		t.Errorf("%d implied, %d ready", l.Implied(), l.Queued())
	}
	p.away.Store(true)
	_, err = l.Generate(t.Context(), caller("maker"), "k", 1)
	wantKind(t, err, claviger.Unavailable)
	p.away.Store(false)
	if err := l.Delete(t.Context(), caller("maker"), "k"); err != nil {
		t.Fatal(err)
	}
	n := p.leases.Load()
	_, err = l.Generate(t.Context(), caller("maker"), "k", 1)
	wantKind(t, err, claviger.KeyNotFound)
	if p.leases.Load() != n || l.Implied() != 1501 {
		t.Errorf("a lease of a deleted key was requested, or EDEKs of it were made: %d", l.Implied())
	}
}

// TestImpliedElsewhere: another node rolls or deletes the key. The next request makes EDEKs under the new version, or
// none, although this node has the key in its caches and the provider would give a lease of the old version.
func TestImpliedElsewhere(t *testing.T) {
	s := newShared(t)
	l, _ := newImpliedRing(t, func(cfg *Config) { cfg.Shared = s })
	create(t, l.primary, "k")
	l.edeks(t, "k", 1)
	if _, err := l.primary.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	s.epoch.Add(1)
	if es, _ := l.edeks(t, "k", 1); es[0].Version != "k@1" {
		t.Errorf("EDEK of %s after a roll at another node", es[0].Version)
	}
	if err := l.primary.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	s.epoch.Add(1)
	_, err := l.Generate(t.Context(), caller("u"), "k", 1)
	wantKind(t, err, claviger.KeyNotFound)
}

// TestImpliedNeedsLeases: a provider that gives no leases is refused.
func TestImpliedNeedsLeases(t *testing.T) {
	for _, p := range []provider.Provider{memory.New(memory.Config{}), newFarKMS(t, "kms://http@h/kms")} {
		cfg := config(t, p)
		cfg.ImpliedLease = time.Minute
		if r, err := New(cfg); !claviger.Is(err, claviger.Internal) {
			t.Errorf("%s: %v, %v", p.URI(), r, err)
		}
	}
}
