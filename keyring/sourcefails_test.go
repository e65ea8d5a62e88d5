package keyring

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/secret"
)

// healthyKMS is a farKMS that can be probed.
type healthyKMS struct{ *farKMS }

func (k healthyKMS) Check(ctx context.Context) error { return k.at(ctx) }

// TestCheckSource: the error of CheckSource names the source, its property and the
// reason, also while the circuit breaker is open.
func TestCheckSource(t *testing.T) {
	far := newFarKMS(t, farURI, "k")
	l, _ := withSource(t, func(c *Config) {
		c.Sources = []Source{{Provider: healthyKMS{far}, Reencryption: true}}
		c.SourceFailures, c.SourcePause = 1, time.Hour
	})
	src := l.sources.list[0]
	if err := l.CheckSource(t.Context(), 0); err != nil || src.lastError() != nil {
		t.Errorf("%v, %v", err, src.lastError())
	}
	wantError := func(when string, want ...string) {
		t.Helper()
		err := l.CheckSource(t.Context(), 0)
		wantKind(t, err, claviger.SourceUnreachable)
		for _, w := range append(want, farURI, "hadoop.kms.key.provider.reencryption.source.uri") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v, want %q", when, err, w)
			}
		}
	}
	far.setFail(failing(claviger.Unavailable, "connection refused"))
	wantError("no answer", "connection refused")
	for range 3 { // the breaker opens only after requests of users
		_, _ = src.metadata(t.Context(), "k")
	}
	if err := src.lastError(); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("last failure: %v", err)
	}
	wantError("breaker open", "it is not called for a while", "the last at ", "connection refused")
}

// TestMigrationSource: keys are migrated from the source that is named for
// re-encryption, or else from the last of the provider list.
func TestMigrationSource(t *testing.T) {
	a, b := &source{}, &source{}
	for _, c := range []struct {
		list  []*source
		named int // for re-encryption; -1: none
		want  *source
	}{{nil, -1, nil}, {[]*source{a, b}, -1, b}, {[]*source{a, b}, 0, a}, {[]*source{a, b}, 1, b}} {
		for i, s := range c.list {
			s.reencryption = i == c.named
		}
		if got := (&sources{list: c.list}).migration(); got != c.want {
			t.Errorf("%d sources, %d named: %p, want %p", len(c.list), c.named, got, c.want)
		}
	}
}

// TestHomesFromUses: a version gets a home only if it has its own counter of uses,
// and if the source of the counter is configured.
func TestHomesFromUses(t *testing.T) {
	l, _ := withSource(t, nil, "k")
	l.sources.remember([]metastore.Use{
		{Source: farURI, Version: "k@0"}, {Source: farURI, Version: OtherVersions},
		{Source: "elsewhere", Version: "k@1"},
	})
	for version, want := range map[string]bool{"k@0": true, OtherVersions: false, "k@1": false} {
		if _, ok := l.sources.homes.get(version); ok != want {
			t.Errorf("%s has a home: %t", version, ok)
		}
	}
}

// noMetadataKMS is a source that returns no metadata, whichever keys are requested.
type noMetadataKMS struct{ *farKMS }

func (noMetadataKMS) Metadata(context.Context, ...string) ([]*claviger.Metadata, error) {
	return nil, nil
}

// TestSourceReturnsTooFewKeys: if an answer has fewer keys than the request, counts
// returns an error and no count.
func TestSourceReturnsTooFewKeys(t *testing.T) {
	far := noMetadataKMS{newFarKMS(t, farURI, "k")}
	l, _ := withSource(t, func(c *Config) { c.Sources = []Source{{Provider: far}} })
	counts, err := l.sources.list[0].counts(t.Context(), []string{"k", "l"})
	if len(counts) > 0 || !claviger.Is(err, claviger.Internal) || !strings.Contains(err.Error(), "returned 0 keys") {
		t.Errorf("%v, %v", counts, err)
	}
}

// openedDEKs is a source that remembers the DEKs that it has returned.
type openedDEKs struct {
	*farKMS
	deks []secret.Bytes
}

func (o *openedDEKs) Unwrap(ctx context.Context, key, as string, es []claviger.EDEK) ([]secret.Bytes, error) {
	deks, err := o.farKMS.Unwrap(ctx, key, as, es)
	o.deks = append(o.deks, deks...)
	return deks, err
}

// TestVersionOfASource: the DEK of a probe is wiped. A version that the source has
// is probed once, and then it does not count as absent.
func TestVersionOfASource(t *testing.T) {
	far := &openedDEKs{farKMS: newFarKMS(t, farURI, "k")}
	l, _ := withSource(t, func(c *Config) { c.Sources = []Source{{Provider: far, Reencryption: true}} })
	s, v := l.sources.list[0], claviger.ParseVersion("k@0")
	s.absent.Store(v.Name(), time.Now().Add(-absentSettles))
	for range 3 {
		if !s.mayHave(t.Context(), v) {
			t.Error("the source does not have the version")
		}
	}
	if n := len(far.calls()); n != 1 {
		t.Errorf("%d calls", n)
	}
	if s.settled(v) {
		t.Error("the version counts as absent")
	}
	for _, dek := range far.deks {
		if len(dek) == 0 || !bytes.Equal(dek, make([]byte, len(dek))) {
			t.Error("the DEK of the probe is not wiped")
		}
	}
}

// TestRolledKeysInOrder: rolled keys are logged once, and CheckRolled names them in
// the order of their sources.
func TestRolledKeysInOrder(t *testing.T) {
	var logged strings.Builder
	l := newTestRing(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&logged, nil)) })
	a := rolledKey{key: "k", source: "a", counted: 1, since: 1}
	b := rolledKey{key: "k", source: "b", counted: 1, since: 1}
	for i := range 2 {
		l.setRolled([]rolledKey{b, a})
		if n := strings.Count(logged.String(), "a key was rolled at its source"); n != 2 {
			t.Errorf("after %d times: logged %d times", i+1, n)
		}
	}
	err := l.CheckRolled(t.Context())
	if err == nil || strings.Index(err.Error(), "of a (") > strings.Index(err.Error(), "of b (") {
		t.Error(err)
	}
}

// TestRolledKeysOfASilentSource: the rolled keys of a source that does not answer
// are kept. Those of other sources are not.
func TestRolledKeysOfASilentSource(t *testing.T) {
	of := func(key, source string, since int) rolledKey {
		return rolledKey{key: key, source: source, since: since}
	}
	before := []rolledKey{of("k", "a", 1), of("l", "a", 1), of("k", "b", 1)}
	for _, c := range []struct{ now, want []rolledKey }{
		{nil, []rolledKey{of("k", "a", 1), of("l", "a", 1)}},
		{[]rolledKey{of("k", "a", 2)}, []rolledKey{of("k", "a", 2), of("l", "a", 1)}},
		{[]rolledKey{of("l", "b", 2)}, []rolledKey{of("l", "b", 2), of("k", "a", 1), of("l", "a", 1)}},
	} {
		if got := withBefore(slices.Clone(c.now), before, "a"); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.now, got, c.want)
		}
	}
}

// TestCreateWhileASourceFails: after any error of the source, Create makes no key,
// because the source may have a key of that name.
func TestCreateWhileASourceFails(t *testing.T) {
	for _, kind := range []claviger.Kind{claviger.Unavailable, claviger.Internal, claviger.Denied, claviger.Invalid} {
		l, far := withSource(t, nil, "k")
		far.setFail(failing(kind, "injected"))
		_, err := l.Create(t.Context(), caller("u"), shadowSpec("new"))
		if err == nil || !strings.Contains(fmt.Sprint(err), "new") && kind != claviger.Invalid {
			t.Errorf("kind %v: %v", kind, err)
		}
	}
}

// TestUndeleteReadsTheSourceAgain: Undelete does not use a cached answer of the
// source, because another key of the name may have been made at the source since.
func TestUndeleteReadsTheSourceAgain(t *testing.T) {
	s := newFailingRing(t)
	if err := s.Ring.Delete(t.Context(), caller("u"), "payroll"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.sources.list[0].metadata(t.Context(), "payroll"); err != nil {
		t.Fatal(err)
	}
	if err := s.far.Delete(t.Context(), "payroll"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // the two keys differ in their time of creation
	create(t, s.far.Provider, "payroll")
	err := s.Undelete(t.Context(), caller("u"), "payroll", "")
	wantKind(t, err, claviger.Invalid)
}

// rollingMigrator is a Migrator that rolls the key at the primary, like a migration
// of a key that the primary already has.
type rollingMigrator struct {
	oneKey
	roll func() error
}

func (m rollingMigrator) RunKey(ctx context.Context, key string) ([]string, error) {
	if err := m.roll(); err != nil {
		return nil, err
	}
	return m.oneKey.RunKey(ctx, key)
}

// TestMigrateDropsTheKey: a migration drops the key from the caches, and afterwards
// other operations on the key do not wait.
func TestMigrateDropsTheKey(t *testing.T) {
	var l *testRing
	roll := func() error { return errOf(l.primary.Provider.Roll(context.Background(), "k", nil)) }
	past := &journal{}
	l = newTestRing(t, func(c *Config) {
		c.Policy = rules(t, append(slices.Clone(everything), "default.key.acl.MIGRATE", "*")...)
		c.Migrator, c.History = rollingMigrator{roll: roll}, past
	})
	create(t, l.primary, "k")
	if _, err := l.Current(t.Context(), caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.origins.of(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	past.list = []Origin{{Key: "k", Source: farURI}}
	if _, err := l.Migrate(t.Context(), caller("u"), "k"); err != nil {
		t.Fatal(err)
	}
	if v, err := l.Current(t.Context(), caller("u"), "k"); err != nil || v.Name != "k@1" {
		t.Errorf("the current version is %v, %v", v, err)
	}
	if list, err := l.origins.of(t.Context(), "k"); err != nil || len(list) != 1 {
		t.Errorf("the journal is %v, %v", list, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := l.Delete(ctx, caller("u"), "k"); err != nil {
		t.Error(err)
	}
}

// failingMigrator is a Migrator whose source fails.
type failingMigrator struct {
	oneKey
	err error
}

func (m failingMigrator) SourceMetadata(context.Context, string) (*claviger.Metadata, error) {
	return nil, m.err
}

// TestMigrateFromAFailingSource: the error has the reason of the source. A request
// that ends with this error does not take a slot again.
func TestMigrateFromAFailingSource(t *testing.T) {
	for _, c := range []struct {
		name string
		fail func(context.Context) error
		kind claviger.Kind
		text string
		did  []string
	}{
		{"no answer", failing(claviger.Unavailable, "connection refused"), claviger.SourceUnreachable,
			"connection refused", []string{"release"}},
		{"refused", failing(claviger.SourceRefused, "not for you"), claviger.SourceRefused, "not for you",
			[]string{"release"}},
		{"no such key", failing(claviger.KeyNotFound, "none"), claviger.KeyNotFound, "",
			[]string{"release", "acquire"}},
	} {
		w := newFailingRing(t, func(c *Config) { c.SourceFailures, c.SourcePause = 1, time.Hour })
		w.setRules(t, "default.key.acl.MIGRATE", "*")
		w.cfg.Migrator = failingMigrator{err: c.fail(t.Context())}
		slot := &recordedSlot{}
		_, err := w.Migrate(WithSlot(t.Context(), slot), caller("u"), "theirs")
		if !claviger.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || !slices.Equal(slot.did, c.did) {
			t.Errorf("%s: %v, %q", c.name, err, slot.did)
		}
		if c.kind != claviger.SourceUnreachable {
			continue
		}
		_, err = w.Migrate(t.Context(), caller("u"), "theirs")
		if !claviger.Is(err, claviger.SourceUnreachable) ||
			!strings.Contains(err.Error(), "it is not called for a while") {
			t.Errorf("the breaker is open: %v", err)
		}
	}
}
