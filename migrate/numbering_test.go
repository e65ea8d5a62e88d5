package migrate_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"claviger"
	"claviger/migrate"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// remoteKMS is a source that is a KMS on another host: it opens EDEKs.
type remoteKMS struct {
	stub
	kind claviger.Kind // of the error when it opens EDEKs; 0: no error

	mu        sync.Mutex
	unwrapped []string // one line for each call of Unwrap
}

func (f *remoteKMS) Unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	f.mu.Lock()
	f.unwrapped = append(f.unwrapped,
		fmt.Sprint(key, " ", as, " ", len(edeks), " ", edeks[0].Version, " ", len(edeks[0].IV)))
	f.mu.Unlock()
	if f.kind != 0 {
		return nil, claviger.E("kmsclient.Unwrap", f.kind, key, nil)
	}
	if _, err := f.Source.Version(ctx, edeks[0].Version); err != nil {
		return nil, err
	}
	return []secret.Bytes{make(secret.Bytes, 16)}, nil
}

func (f *remoteKMS) Generate(context.Context, string, int) ([]claviger.EDEK, error) {
	return nil, claviger.E("test", claviger.Denied, "", nil)
}

func (f *remoteKMS) Reencrypt(context.Context, string, []claviger.EDEK) ([]claviger.EDEK, error) {
	return nil, claviger.E("test", claviger.Denied, "", nil)
}

var _ provider.EDEKService = (*remoteKMS)(nil)

// TestNumbering checks how many versions are made, and with which numbers. That depends on how the source names its
// own versions, and on whether it shows the names.
func TestNumbering(t *testing.T) {
	javaKMS, trusteeKMS := memory.Config{SequentialIDs: true}, memory.Config{OpaqueIDs: true}
	next, all, fresh := []string{"k@3"}, []string{"k@3", "k@4", "k@5"}, []string{"k@0", "k@1", "k@2"}
	for _, tt := range []struct {
		name      string
		source    memory.Config
		hidden    bool          // the source does not show the names of versions
		unwrapErr claviger.Kind // remoteKMS.kind
		mode      migrate.Versions
		want      []string
	}{
		{"numbered", javaKMS, false, 0, "", next},
		{"numbered, all", javaKMS, false, 0, migrate.All, all},
		{"numbered, current", javaKMS, false, 0, migrate.Current, next},
		{"numbered, not shown", javaKMS, true, 0, "", next},
		{"numbered, not shown, no right to decrypt", javaKMS, true, claviger.Denied, "", next},
		{"numbered, not shown, no answer", javaKMS, true, claviger.SourceUnreachable, "", next},
		{"opaque", trusteeKMS, false, 0, "", fresh},
		{"opaque, current", trusteeKMS, false, 0, migrate.Current, fresh[:1]},
		{"opaque, not shown", trusteeKMS, true, 0, "", fresh},
		{"opaque, not shown, no right to decrypt", trusteeKMS, true, claviger.KeyDenied, "", next}, // safe with either
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newTestMigration(t)
			tt.source.URI = b.source.URI()
			b.source = memory.New(tt.source)
			src := &remoteKMS{stub: stub{Source: b.source, noNames: tt.hidden}, kind: tt.unwrapErr}
			b.cfg.Source, b.cfg.Versions = src, tt.mode
			b.add(t, "k", 3)
			p, err := b.engine(t).Plan(t.Context())
			must(t, err)
			if p.Counts.NewVersions != len(tt.want) {
				t.Errorf("planned %+v, want %d versions", p.Counts, len(tt.want))
			}
			src.unwrapped = nil // Plan requests that the source opens an EDEK of each key
			r := b.run(t)
			got := versions(t, b.target, "k")
			if !slices.Equal(got, tt.want) || !slices.Equal(r.Keys[0].TargetVersions, tt.want) {
				t.Errorf("made %q, reported %q, want %q", got, r.Keys[0].TargetVersions, tt.want)
			}
			ms, err := b.target.Metadata(t.Context(), "k")
			must(t, err)
			if current, err := b.target.Current(t.Context(), "k"); err != nil ||
				current.Name != fmt.Sprintf("k@%d", ms[0].Versions-1) {
				t.Errorf("current is %s (%v), and the metadata counts %d", current.Name, err, ms[0].Versions)
			}
			v, err := b.engine(t).Verify(t.Context())
			if err != nil || v.Different != 0 || v.Same != 1 {
				t.Errorf("verify %+v, %v", v, err)
			}
			if r := b.run(t); r.Changed {
				t.Errorf("the second run changed something: %+v", r)
			}
			for _, call := range src.unwrapped {
				if call != "k  1 k@2 16" {
					t.Errorf("call of Unwrap: %q", call)
				}
			}
			if tt.hidden != (len(src.unwrapped) > 0) {
				t.Errorf("calls of Unwrap: %q, names hidden: %t", src.unwrapped, tt.hidden)
			}
		})
	}
}

// TestNumbersAreNotReused: no new version here gets the name of a version at the source, or of an earlier version
// here. This holds for a key that is unsupported, in conflict, deleted, or made again.
func TestNumbersAreNotReused(t *testing.T) {
	b := newTestMigration(t)
	ctx := t.Context()
	next := func(key string, want int) {
		t.Helper()
		if n, err := b.store.NextNumber(ctx, key); err != nil || n != want {
			t.Errorf("the next number of %s is %d (%v), want %d", key, n, err, want)
		}
	}
	b.add(t, "k", 2)
	b.add(t, "odd", 4, func(m *claviger.Metadata) { m.Cipher = "AES/CTR/NoPadding" })
	b.cfg.Source = &stub{Source: b.source, change: func(m *claviger.Metadata) {
		if m.Name == "odd" {
			m.Cipher = "SM4/CTR/NoPadding"
		}
	}}
	if r := b.run(t); states(r.Keys)["odd"] != migrate.Unsupported {
		t.Errorf("%v", states(r.Keys))
	}
	next("odd", 4) // it was not migrated, but EDEKs with the names of its versions exist
	next("k", 2)   // the memory provider of this test keeps its own, higher count

	// The source rolls the key, so two versions have one name. The report says so. The cure is to delete the key here
	// and to run the migration again.
	if _, err := b.source.Roll(ctx, "k", nil); err != nil {
		t.Fatal(err)
	}
	r, err := b.engine(t).Run(ctx)
	must(t, err)
	if k := r.Keys[0]; k.State != migrate.Conflict || !strings.Contains(k.Why,
		"k@2 is one key there and another key here") || r.Complete() {
		t.Errorf("rolled at the source: %+v", k)
	}
	if f, err := b.engine(t).Finish(ctx, migrate.FinishOptions{Since: noon, EDEKsDone: true}); err != nil ||
		!strings.Contains(strings.Join(f.Refusals, "\n"), "key k is conflict") {
		t.Errorf("finish: %+v, %v", f, err)
	}
	must(t, b.target.Delete(ctx, "k"))
	if r := b.run(t); states(r.Keys)["k"] != migrate.Done || !slices.Equal(versions(t, b.target, "k"),
		[]string{"k@3"}) {
		t.Errorf("after the cure: %v, %q", states(r.Keys), versions(t, b.target, "k"))
	}
	// A user deletes the key here and makes another one of the name.
	must(t, b.target.Delete(ctx, "k"))
	v, err := b.target.Create(ctx, provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128})
	if err != nil || v.Name != "k@4" {
		t.Errorf("made again: %s, %v", v.Name, err)
	}
}

// TestGap: Config.Gap leaves numbers free for later rolls at the source. While the source uses only these, verify finds
// no difference. After one roll more, the key is in conflict until the operator says to which key the EDEKs belong.
func TestGap(t *testing.T) {
	b := newTestMigration(t)
	ctx := t.Context()
	b.cfg.Gap = 2
	b.add(t, "k", 3)
	b.run(t)
	if got := versions(t, b.target, "k"); !slices.Equal(got, []string{"k@5"}) {
		t.Fatalf("made %q", got)
	}
	roll := func() {
		t.Helper()
		if _, err := b.source.Roll(ctx, "k", nil); err != nil {
			t.Fatal(err)
		}
	}
	same := func(when string, want bool) *migrate.Verification {
		t.Helper()
		v, err := b.engine(t).Verify(ctx)
		must(t, err)
		if (v.Different == 0) != want {
			t.Errorf("%s: %+v", when, v.Keys)
		}
		return v
	}
	origin := func() migrate.Origin {
		t.Helper()
		list, err := migrate.Origins(ctx, b.store, b.target.URI())
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		return list[0]
	}
	same("migrated", true)
	roll()
	roll() // k@4
	same("rolled twice", true)
	if r := b.run(t); !r.Complete() {
		t.Errorf("rolled twice: %+v", r.Keys)
	}
	if o := origin(); !o.Numbered || o.Rolled != 0 || o.Metadata.Versions != 3 {
		t.Errorf("the journal: %+v", o)
	}
	roll() // k@5
	if v := same("rolled three times", false); !strings.Contains(strings.Join(v.Keys[0].Remarks, ""),
		"claviger.migration.ours to k@5") {
		t.Errorf("%+v", v.Keys)
	}
	if r := b.run(t); states(r.Keys)["k"] != migrate.Conflict || r.Complete() {
		t.Errorf("rolled three times: %+v", r.Keys)
	}
	if o := origin(); o.Rolled != 6 || o.TakenOver {
		t.Errorf("the journal: %+v", o)
	}
	b.cfg.Ours = map[string]bool{"k@5": true}
	same("settled by the operator", true)
	if r := b.run(t); states(r.Keys)["k"] != migrate.Done || !r.Complete() {
		t.Errorf("settled by the operator: %+v", r.Keys)
	}
	if o := origin(); o.Rolled != 0 || !o.TakenOver {
		t.Errorf("the journal, settled by the operator: %+v", o)
	}
}

// TestCollisionByCount: a source that shows no version names and opens no EDEK counts as one that numbers its versions.
// If it rolls the key later, its count of versions shows a conflict. When it opens EDEKs again, its answer replaces the
// count.
func TestCollisionByCount(t *testing.T) {
	b := newTestMigration(t)
	b.source = memory.New(memory.Config{OpaqueIDs: true, URI: b.source.URI()})
	src := &remoteKMS{stub: stub{Source: b.source, noNames: true}, kind: claviger.Denied}
	b.cfg.Source = src
	b.add(t, "k", 1)
	b.run(t)
	if got := versions(t, b.target, "k"); !slices.Equal(got, []string{"k@1"}) {
		t.Fatalf("made %q", got)
	}
	if _, err := b.source.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	remarks := func() string {
		t.Helper()
		v, err := b.engine(t).Verify(t.Context())
		must(t, err)
		if v.Different != 1 {
			t.Errorf("not different: %+v", v.Keys)
		}
		return strings.Join(v.Keys[0].Remarks, "\n")
	}
	if got := remarks(); !strings.Contains(got, "k@1 is one key there and another key here") {
		t.Errorf("without an answer the count decides: %s", got)
	}
	src.kind = 0
	if got := remarks(); strings.Contains(got, "another key here") ||
		!strings.Contains(got, "rolled at the source since the migration: 1 more;") {
		t.Errorf("a source that has no version of that name: %s", got)
	}
}
