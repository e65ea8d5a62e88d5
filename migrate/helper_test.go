package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/sqlite"
	"claviger/migrate"
	"claviger/provider"
	"claviger/provider/memory"
)

// born is the creation time of keys. noon is the time of these tests' clock.
var (
	born = time.Date(2024, 3, 1, 8, 30, 0, 123e6, time.UTC)
	noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

func text(s string) *string { return &s }

// testMigration is a source with keys, a target that makes keys of its own, and a store.
type testMigration struct {
	source *memory.Provider
	target *memory.Provider
	store  metastore.Store
	cfg    migrate.Config
	// here and there are how far past noon this host's clock and the store's are.
	here, there time.Duration
}

// Clocks returns fixed times, so that no test depends on the date.
func (b *testMigration) Clocks(context.Context) (metastore.Clocks, error) {
	now := noon.Add(b.here)
	return metastore.Compare(now, noon.Add(b.there), now, "PostgreSQL's"), nil
}

// onClock is a store with the times of another Clock.
type onClock struct {
	metastore.Store
	metastore.Clock
}

func (s onClock) Clocks(ctx context.Context) (metastore.Clocks, error) { return s.Clock.Clocks(ctx) }

func newTestMigration(t *testing.T) *testMigration {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metastore.db"))
	if err != nil {
		t.Fatal(err)
	}
	b := &testMigration{
		source: memory.New(memory.Config{URI: "kms://http@old.example.com:16000/kms", SequentialIDs: true}),
		target: memory.New(memory.Config{URI: "pkcs11:token=new", Sealed: true}),
	}
	b.store = onClock{store, b}
	t.Cleanup(func() {
		if err := errors.Join(b.source.Close(), b.target.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	b.cfg = migrate.Config{Source: b.source, Target: b.target, Store: b.store, Parallel: 1, Host: "new.example.com",
		Now: func() time.Time { return noon }}
	return b
}

// add makes a key of n versions at the source.
func (b *testMigration) add(t *testing.T, name string, n int, change ...func(*claviger.Metadata)) {
	t.Helper()
	addTo(t, b.source, name, n, 0, change...)
}

func addTo(t *testing.T, to provider.Importer, name string, n, first int, change ...func(*claviger.Metadata)) {
	t.Helper()
	m := claviger.Metadata{Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 256, Description: text("zone " + name),
		Created:    born,
		Attributes: map[string]string{claviger.ACLNameAttribute: name, "owner": "ops"}}
	for _, c := range change {
		c(&m)
	}
	if _, err := to.Import(t.Context(), m, n, first, nil); err != nil {
		t.Fatal(err)
	}
}

func (b *testMigration) engine(t *testing.T) *migrate.Engine {
	t.Helper()
	e, err := migrate.New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (b *testMigration) run(t *testing.T) *migrate.Result {
	t.Helper()
	r, err := b.engine(t).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func states(keys []migrate.KeyLine) map[string]migrate.State {
	m := make(map[string]migrate.State)
	for _, k := range keys {
		m[k.Key] = k.State
	}
	return m
}

func versions(t *testing.T, p provider.Reader, key string) []string {
	t.Helper()
	vs, err := p.Versions(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range vs {
		names = append(names, v.Name)
	}
	return names
}

// sameMetadata compares every field of the keys at the source and the target. The target's version numbers begin after
// the source's. The target has one version, or as many as the source if the mode is migrate.All.
func (b *testMigration) sameMetadata(t *testing.T, keys ...string) {
	t.Helper()
	atSource, err := b.source.Metadata(t.Context(), keys...)
	if err != nil {
		t.Fatal(err)
	}
	atTarget, err := b.target.Metadata(t.Context(), keys...)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		if atTarget[i] == nil {
			t.Errorf("key %q is not at the target", k)
			continue
		}
		s, o := atSource[i], atTarget[i]
		made := 1
		if b.cfg.Versions == migrate.All {
			made = s.Versions
		}
		for n, v := range versions(t, b.target, k) {
			if want := fmt.Sprintf("%s@%d", k, s.Versions+n); v != want {
				t.Errorf("version %d of key %q is %s, want %s", n, k, v, want)
			}
		}
		if s.Name != o.Name || s.Cipher != o.Cipher || s.BitLength != o.BitLength || s.Versions+made != o.Versions ||
			!s.Created.Equal(o.Created) || !maps.Equal(s.Attributes, o.Attributes) ||
			(s.Description == nil) != (o.Description == nil) || s.Description != nil &&
			*s.Description != *o.Description {
			t.Errorf("key %q: %+v at the source, %+v at the target", k, s, o)
		}
	}
}

func textOf[T any](write func(io.Writer, *T), v *T) string {
	var text strings.Builder
	write(&text, v)
	return text.String()
}

// stub is a source with wrong answers and errors.
type stub struct {
	migrate.Source
	change  func(*claviger.Metadata) // changes the metadata in answers
	refuse  map[string]claviger.Kind // by key: the error of a request for metadata
	keysErr error                    // the error of Keys
	noNames bool                     // Versions is refused
}

func (s *stub) Keys(ctx context.Context) ([]string, error) {
	if s.keysErr != nil {
		return nil, s.keysErr
	}
	return s.Source.Keys(ctx)
}

func (s *stub) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	for _, n := range names {
		if kind, ok := s.refuse[n]; ok {
			return nil, claviger.Errorf("kmsclient.Metadata", kind, n,
				"User [mig] is not authorized to perform [READ] on key with ACL name [%s]!!", n)
		}
	}
	ms, err := s.Source.Metadata(ctx, names...)
	for _, m := range ms {
		if m != nil && s.change != nil {
			s.change(m)
		}
	}
	return ms, err
}

func (s *stub) Versions(ctx context.Context, key string) ([]claviger.KeyVersion, error) {
	if s.noNames {
		return nil, claviger.Errorf("kmsclient.Versions", claviger.Denied, key,
			"User:mig not allowed to do 'GET_KEY_VERSIONS' on '%s'", key)
	}
	return s.Source.Versions(ctx, key)
}

// failing is a target whose imports of some keys fail.
type failing struct {
	migrate.Target
	errs  map[string]error
	calls int
}

func (f *failing) Import(ctx context.Context, m claviger.Metadata, n, first int,
	step func(string) error) ([]claviger.KeyVersion, error) {
	f.calls++
	if err := f.errs[m.Name]; err != nil {
		return nil, err
	}
	return f.Target.Import(ctx, m, n, first, step)
}

// checkOf returns the plan's check of that name.
func checkOf(t *testing.T, p *migrate.Plan, name string) migrate.Check {
	t.Helper()
	i := slices.IndexFunc(p.Checks, func(c migrate.Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no check %q: %+v", name, p.Checks)
	}
	return p.Checks[i]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
