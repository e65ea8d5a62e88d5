package migrate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
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

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", path, got, want)
	}
}

// born is a fixed creation time; the clock of these tests stands at noon.
var (
	born = time.Date(2024, 3, 1, 8, 30, 0, 123e6, time.UTC)
	noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

func text(s string) *string { return &s }

// bench is a source with keys, a target that makes its own, and a store.
type bench struct {
	source *memory.Provider
	target *memory.Provider
	store  metastore.Store
	cfg    migrate.Config
}

func newBench(t *testing.T) *bench {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "metastore.db"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		source: memory.New(memory.Config{URI: "kms://http@old.example.com:16000/kms", SequentialIDs: true}),
		target: memory.New(memory.Config{URI: "pkcs11:token=new", Sealed: true}),
		store:  store,
	}
	t.Cleanup(func() {
		if err := errors.Join(b.source.Close(), b.target.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	b.cfg = migrate.Config{Source: b.source, Target: b.target, Store: store, Parallel: 1, Host: "new.example.com", Now: func() time.Time { return noon }}
	return b
}

// add makes a key of n versions at the source.
func (b *bench) add(t *testing.T, name string, n int, change ...func(*claviger.Metadata)) {
	t.Helper()
	addTo(t, b.source, name, n, change...)
}

func addTo(t *testing.T, to provider.Importer, name string, n int, change ...func(*claviger.Metadata)) {
	t.Helper()
	m := claviger.Metadata{Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 256, Description: text("zone " + name), Created: born,
		Attributes: map[string]string{claviger.ACLNameAttribute: name, "owner": "ops"}}
	for _, c := range change {
		c(&m)
	}
	if _, err := to.Import(t.Context(), m, n, nil); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) engine(t *testing.T) *migrate.Engine {
	t.Helper()
	e, err := migrate.New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (b *bench) run(t *testing.T) *migrate.Result {
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

// sameMetadata compares every field at both sides.
func (b *bench) sameMetadata(t *testing.T, keys ...string) {
	t.Helper()
	theirs, err := b.source.Metadata(t.Context(), keys...)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := b.target.Metadata(t.Context(), keys...)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		if ours[i] == nil {
			t.Errorf("key %q is not at the target", k)
			continue
		}
		s, o := theirs[i], ours[i]
		if s.Name != o.Name || s.Cipher != o.Cipher || s.BitLength != o.BitLength || s.Versions != o.Versions || !s.Created.Equal(o.Created) || !maps.Equal(s.Attributes, o.Attributes) ||
			(s.Description == nil) != (o.Description == nil) || s.Description != nil && *s.Description != *o.Description {
			t.Errorf("key %q: %+v at the source, %+v at the target", k, s, o)
		}
	}
}

func TestRun(t *testing.T) {
	b := newBench(t)
	b.add(t, "zone1", 3)
	b.add(t, "zone2", 1, func(m *claviger.Metadata) { m.Description, m.Attributes, m.BitLength = nil, nil, 128 })
	b.add(t, "odd @/%", 2, func(m *claviger.Metadata) { m.Description = text("") })
	var steps []string
	var last migrate.Progress
	b.cfg.OnStep = func(key, step string) error { steps = append(steps, key+":"+step); return nil }
	b.cfg.Progress = func(p migrate.Progress) { last = p }

	r := b.run(t)
	if !r.Complete() || !r.Changed || r.Counts.Done != 3 || r.Counts.NewVersions != 6 || r.Err() != nil {
		t.Errorf("result %+v, %v", r.Counts, r.Err())
	}
	b.sameMetadata(t, "zone1", "zone2", "odd @/%")
	if last.Keys != 3 || last.KeysTotal != 3 || last.Versions != 6 || last.VersionsTotal != 6 {
		t.Errorf("last progress %+v", last)
	}
	if want := "zone2:importing zone2:intent zone2:generated 1 of 1 zone2:committed zone2:done"; !strings.Contains(strings.Join(steps, " "), want) {
		t.Errorf("steps %q", steps)
	}
	for _, k := range r.Keys {
		if !slices.Equal(k.SourceVersions, versions(t, b.source, k.Key)) || !slices.Equal(k.TargetVersions, versions(t, b.target, k.Key)) {
			t.Errorf("%s: %q -> %q", k.Key, k.SourceVersions, k.TargetVersions)
		}
	}
	objects := b.target.Objects()

	// Again: nothing happens, not even in the journal.
	before, err := b.store.Records(t.Context(), r.Run.Name)
	if err != nil {
		t.Fatal(err)
	}
	steps = nil
	r2 := b.run(t)
	if r2.Changed || !r2.Complete() || len(steps) != 0 || r2.Run.Name != r.Run.Name || b.target.Objects() != objects {
		t.Errorf("second run: %+v, steps %q", r2, steps)
	}
	if runs, err := b.store.Runs(t.Context()); err != nil || len(runs) != 1 {
		t.Errorf("runs %q, %v", runs, err)
	}
	if after, err := b.store.Records(t.Context(), r.Run.Name); err != nil || len(after) != len(before) {
		t.Errorf("records %v, %v", after, err)
	}

	// A key that is new at the source is taken up by a run of its own, which
	// leaves the others alone.
	b.add(t, "zone0", 1)
	r3 := b.run(t)
	if !r3.Changed || !r3.Complete() || r3.Run.Name == r.Run.Name || r3.Counts.NewVersions != 1 || b.target.Objects() != objects+1 {
		t.Errorf("third run: %+v", r3)
	}
	if recs, err := b.store.Records(t.Context(), r3.Run.Name); err != nil || len(recs) != 2 {
		t.Errorf("records of the third run: %v, %v", recs, err)
	}
	b.sameMetadata(t, "zone0", "zone1", "zone2", "odd @/%")
}

func TestCurrentVersionOnly(t *testing.T) {
	b := newBench(t)
	b.cfg.Versions = migrate.Current
	b.add(t, "k", 5)
	r := b.run(t)
	if !r.Complete() || b.target.Objects() != 1 {
		t.Errorf("%+v, %d objects", r, b.target.Objects())
	}
	v, err := b.engine(t).Verify(t.Context())
	if err != nil || v.Different != 0 || len(v.Keys) != 1 || !strings.Contains(strings.Join(v.Keys[0].Remarks, " "), "one version was made for 5") {
		t.Errorf("verify %+v, %v", v, err)
	}
	s, err := b.engine(t).Status(t.Context())
	if err != nil || len(s.Keys) != 1 {
		t.Fatal(s, err)
	}
	for i, m := range s.Keys[0].Versions {
		if m.Source != fmt.Sprintf("k@%d", i) || (m.Target != "") != (i == 4) {
			t.Errorf("version %d: %+v", i, m)
		}
	}
	// The other mode later does not make it anew.
	b.cfg.Versions = migrate.All
	if r := b.run(t); r.Changed || b.target.Objects() != 1 {
		t.Errorf("%+v", r)
	}
}

// TestPlanAndBlocked: keys that cannot be imported keep nobody from being so,
// the plan says the same beforehand, and it changes nothing.
func TestPlanAndBlocked(t *testing.T) {
	b := newBench(t)
	b.add(t, "done", 1)
	addTo(t, b.target, "done", 1)
	b.add(t, "good", 2)
	b.add(t, "clash", 2)
	addTo(t, b.target, "clash", 1, func(m *claviger.Metadata) {
		m.Description, m.BitLength, m.Created = nil, 128, born.Add(time.Millisecond)
		m.Attributes = map[string]string{claviger.ACLNameAttribute: "other", "new": "x"}
	})
	addTo(t, b.target, "ours", 1)
	b.cfg.MaxVersions = 5
	b.add(t, "many", 6)
	src := &stub{Source: b.source, change: func(m *claviger.Metadata) {
		switch m.Name {
		case "sm4":
			m.Cipher = "SM4/CTR/NoPadding"
		case "short":
			m.BitLength = 64
		case "empty":
			m.Versions = 0
		}
	}, refuse: map[string]claviger.Kind{"secret": claviger.KeyDenied}}
	b.cfg.Source = src
	for _, k := range []string{"sm4", "short", "empty", "secret"} {
		b.add(t, k, 1)
	}
	b.cfg.Probes.User = "mig"
	objects := b.target.Objects()

	p, err := b.engine(t).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]migrate.State{"done": migrate.Done, "good": migrate.Planned, "clash": migrate.Conflict, "many": migrate.Unsupported,
		"sm4": migrate.Unsupported, "short": migrate.Unsupported, "empty": migrate.Unsupported, "secret": migrate.Refused}
	if got := states(p.Keys); !maps.Equal(got, want) {
		t.Errorf("planned %v, want %v", got, want)
	}
	if p.Ready() || p.Counts.Blocked != 6 || p.Counts.Planned != 1 || p.Counts.NewVersions != 2 || !slices.Equal(p.OnlyTarget, []string{"ours"}) {
		t.Errorf("plan %+v", p)
	}
	if runs, err := b.store.Runs(t.Context()); err != nil || len(runs) != 0 || b.target.Objects() != objects {
		t.Errorf("the plan changed something: %q, %v, %d objects", runs, err, b.target.Objects())
	}
	golden(t, "plan", textOf(t, p.WriteText))

	r := b.run(t)
	want["good"] = migrate.Done
	if got := states(r.Keys); !maps.Equal(got, want) || r.Complete() || b.target.Objects() != objects+2 {
		t.Errorf("after the run %v, want %v", got, want)
	}
	golden(t, "conflicts", r.Err().Error()+"\n")
	_, err = b.engine(t).AtStart(t.Context())
	if !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "cloudera.hsmkp.initiatemigration") || !strings.Contains(err.Error(), "key clash (conflict)") {
		t.Errorf("start: %v", err)
	}

	// Once cured, the same run goes on and completes.
	for _, k := range []string{"sm4", "short", "empty", "secret", "many"} {
		if err := b.source.Delete(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.target.Delete(t.Context(), "clash"); err != nil {
		t.Fatal(err)
	}
	r2 := b.run(t)
	if !r2.Complete() || r2.Run.Name != r.Run.Name || r2.Run.Resumed == 0 {
		t.Errorf("cured: %+v", r2)
	}
	b.sameMetadata(t, "done", "good", "clash")
}

func textOf(t *testing.T, write func(io.Writer) error) string {
	t.Helper()
	var buf bytes.Buffer
	if err := write(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// stub is a source that also refuses, lies and fails.
type stub struct {
	migrate.Source
	change  func(*claviger.Metadata)
	refuse  map[string]claviger.Kind
	keysErr error
	noNames bool // versions need a right that we have not
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
			return nil, claviger.Errorf("kmsclient.Metadata", kind, n, "User [mig] is not authorized to perform [READ] on key with ACL name [%s]!!", n)
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

func (s *stub) Versions(ctx context.Context, key string) ([]provider.KeyVersion, error) {
	if s.noNames {
		return nil, claviger.Errorf("kmsclient.Versions", claviger.Denied, key, "User:mig not allowed to do 'GET_KEY_VERSIONS' on '%s'", key)
	}
	return s.Source.Versions(ctx, key)
}

// failing is a target whose imports of some keys fail.
type failing struct {
	migrate.Target
	errs  map[string]error
	calls int
}

func (f *failing) Import(ctx context.Context, m claviger.Metadata, n int, step func(string) error) ([]provider.KeyVersion, error) {
	f.calls++
	if err := f.errs[m.Name]; err != nil {
		return nil, err
	}
	return f.Target.Import(ctx, m, n, step)
}

func TestOneKeysErrorIsItsOwn(t *testing.T) {
	b := newBench(t)
	for _, k := range []string{"a", "b", "c", "d"} {
		b.add(t, k, 1)
	}
	f := &failing{Target: b.target, errs: map[string]error{
		"b": claviger.Errorf("hsm.Import", claviger.Internal, "b", "CKR_FUNCTION_FAILED"),
		"c": claviger.E("hsm.Import", claviger.KeyExists, "c", nil),
	}}
	b.cfg.Target = f
	r := b.run(t)
	want := map[string]migrate.State{"a": migrate.Done, "b": migrate.Failed, "c": migrate.Conflict, "d": migrate.Done}
	if got := states(r.Keys); !maps.Equal(got, want) || r.Complete() {
		t.Errorf("%v, %+v", got, r.Run)
	}
	if !strings.Contains(r.Keys[1].Why, "CKR_FUNCTION_FAILED") {
		t.Errorf("why: %q", r.Keys[1].Why)
	}
	f.errs = nil
	if r := b.run(t); !r.Complete() {
		t.Errorf("second run: %+v", r)
	}
}

// TestTargetAway: a thousand keys do not each wait for an HSM that is gone.
func TestTargetAway(t *testing.T) {
	b := newBench(t)
	f := &failing{Target: b.target, errs: map[string]error{}}
	for i := range 20 {
		k := fmt.Sprintf("k%02d", i)
		b.add(t, k, 1)
		f.errs[k] = claviger.Errorf("hsm.Import", claviger.Unavailable, k, "CKR_DEVICE_REMOVED")
	}
	b.cfg.Target = f
	r := b.run(t)
	if f.calls > 5 || r.Complete() || r.Counts.Planned < 15 || !strings.Contains(r.Err().Error(), "not begun") && !strings.Contains(r.Err().Error(), "more") {
		t.Errorf("%d imports tried, %+v", f.calls, r.Counts)
	}
	f.errs = nil
	if r := b.run(t); !r.Complete() || r.Counts.Done != 20 {
		t.Errorf("afterwards: %+v", r.Counts)
	}
}

func TestDeletedHereIsNotBroughtBack(t *testing.T) {
	b := newBench(t)
	b.add(t, "k", 1)
	b.add(t, "other", 1)
	b.run(t)
	if err := b.target.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r, err := b.engine(t).AtStart(t.Context())
		if err != nil || states(r.Keys)["k"] != migrate.Deleted || !r.Complete() {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if b.target.Objects() != 1 {
		t.Error("the key is back")
	}
	// A key made anew under the name is a conflict with the source's.
	addTo(t, b.target, "k", 1, func(m *claviger.Metadata) { m.Created = noon })
	if r := b.run(t); states(r.Keys)["k"] != migrate.Conflict {
		t.Errorf("%v", states(r.Keys))
	}
}

func TestVerify(t *testing.T) {
	b := newBench(t)
	b.add(t, "same", 2)
	b.add(t, "rolled", 1)
	b.add(t, "rolledThere", 1)
	b.add(t, "lost", 1)
	b.add(t, "changed", 1)
	b.run(t)
	src := &stub{Source: b.source, change: func(m *claviger.Metadata) {
		if m.Name == "changed" {
			m.Attributes["owner"], m.Description = "dev", nil
		}
	}}
	b.cfg.Source = src
	ctx := t.Context()
	if _, err := b.target.Roll(ctx, "rolled", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.source.Roll(ctx, "rolledThere", nil); err != nil {
		t.Fatal(err)
	}
	if err := b.target.Delete(ctx, "lost"); err != nil {
		t.Fatal(err)
	}
	b.add(t, "new", 1)
	addTo(t, b.target, "ours", 1)
	v, err := b.engine(t).Verify(ctx)
	if err != nil {
		t.Fatal(err)
	}
	same := make(map[string]bool)
	for _, k := range v.Keys {
		same[k.Key] = k.Same
	}
	if want := map[string]bool{"same": true, "rolled": true, "rolledThere": true, "lost": false, "changed": false, "new": false}; !maps.Equal(same, want) || v.Same != 3 || v.Different != 3 {
		t.Errorf("%v, want %v", same, want)
	}
	golden(t, "verify", textOf(t, v.WriteText))
}

// TestNamesNotShown: a source that rightly denies us GET tells no version
// names; counters name them when they are used.
func TestNamesNotShown(t *testing.T) {
	b := newBench(t)
	b.cfg.Source = &stub{Source: b.source, noNames: true}
	b.add(t, "k", 2)
	r := b.run(t)
	if !r.Complete() || r.Keys[0].SourceVersions != nil || len(r.Keys[0].TargetVersions) != 2 {
		t.Errorf("%+v", r)
	}
	must(t, b.store.AddUse(t.Context(), []metastore.Use{{Source: b.source.URI(), Version: "k@1", Op: "reencrypt", Count: 1000, Last: noon.Add(-time.Hour)}}))
	s, err := b.engine(t).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vs := s.Keys[0].Versions
	if len(vs) != 3 || vs[2].Source != "k@1" || vs[2].Reencrypted != 1000 || vs[0].Target == "" || vs[1].Target == "" {
		t.Errorf("%+v", vs)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStatusAndFinish(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	finish := func(o migrate.FinishOptions) *migrate.Ending {
		t.Helper()
		f, err := b.engine(t).Finish(ctx, o)
		must(t, err)
		return f
	}
	conf := map[string]string{
		"cloudera.hsmkp.initiatemigration":                "true",
		"hadoop.kms.key.provider.reencryption.source.uri": "kms://http@old.example.com:16000/kms",
		"hadoop.kms.reencryption.crypto.enable":           "true",
		"hadoop.kms.key.provider.uri":                     "cloudera.hsmkp://file@/etc/luna.keystore,keytrustee://file@/var/lib/kms-keytrustee/keytrustee/.keytrustee",
	}
	opts := migrate.FinishOptions{Since: noon.Add(-24 * time.Hour), EDEKsDone: true, Get: func(n string) (string, string, bool) { v, ok := conf[n]; return v, "/etc/kms/kms-site.xml:12", ok }}

	if f := finish(opts); len(f.Refusals) != 1 || !strings.Contains(f.Refusals[0], "nothing was migrated") {
		t.Errorf("before any run: %q", f.Refusals)
	}
	b.add(t, "k", 2)
	r := b.run(t)
	must(t, b.store.AddUse(ctx, []metastore.Use{
		{Source: b.source.URI(), Version: "k@0", Op: "decrypt", Count: 7, Last: noon.Add(-30 * time.Hour)},
		{Source: b.source.URI(), Version: "k@1", Op: "reencrypt", Count: 500, Last: noon.Add(-2 * time.Hour)},
	}))
	s, err := b.engine(t).Status(ctx)
	must(t, err)
	status := textOf(t, s.WriteText)
	for i, v := range r.Keys[0].TargetVersions { // the ids are random
		status = strings.ReplaceAll(status, v, fmt.Sprintf("k@%032d", i))
	}
	golden(t, "status", status)

	b.add(t, "late", 1)
	o := opts
	o.EDEKsDone = false
	f := finish(o)
	golden(t, "finish-refused", textOf(t, f.WriteText))
	if len(f.Refusals) != 3 || f.Finished || len(f.Properties) != 0 {
		t.Errorf("%+v", f)
	}
	b.run(t)
	opts.Since = noon.Add(-time.Hour)
	f = finish(opts)
	golden(t, "finish-properties", textOf(t, f.WriteText))
	if len(f.Refusals) != 0 || f.Finished || len(f.Properties) != 5 {
		t.Errorf("%+v", f)
	}

	conf = map[string]string{"hadoop.kms.key.provider.uri": "cloudera.hsmkp://file@/etc/luna.keystore", "cloudera.hsmkp.initiatemigration": "false"}
	b.cfg.Source = nil // it is no longer configured
	for range 2 {
		if f = finish(opts); !f.Finished {
			t.Errorf("%+v", f)
		}
	}
	golden(t, "finish", textOf(t, f.WriteText))
	s, err = b.engine(t).Status(ctx)
	if err != nil || s.Runs[len(s.Runs)-1].State != migrate.Finished {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestAtStart(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	b.add(t, "k", 1)

	// Another process migrates: wait for it.
	unlock, err := b.store.Lock(ctx, migrate.LockName)
	must(t, err)
	if _, err := b.engine(t).Run(ctx); !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "another process is migrating") {
		t.Errorf("run beside another: %v", err)
	}
	done := make(chan error)
	go func() {
		_, err := b.engine(t).AtStart(ctx)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	unlock()
	must(t, <-done)
	b.sameMetadata(t, "k")

	// The source goes away afterwards: a cluster must start all the same.
	away := claviger.Errorf("kmsclient.Keys", claviger.Unavailable, "", "dial tcp 192.0.2.1:16000: connect: connection refused")
	b.cfg.Source = &stub{Source: b.source, keysErr: away}
	if r, err := b.engine(t).AtStart(ctx); err != nil || !r.Complete() || len(r.Keys) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	// But not before the first migration is complete.
	fresh := newBench(t)
	fresh.cfg.Source = b.cfg.Source
	_, err = fresh.engine(t).AtStart(ctx)
	if !claviger.Is(err, claviger.SourceUnreachable) {
		t.Errorf("kind of %v", err)
	}
	golden(t, "unreachable", err.Error()+"\n")

	fresh.cfg.Source = &stub{Source: b.source, keysErr: claviger.Errorf("kmsclient.Keys", claviger.Denied, "", "User:mig not allowed to do 'GET_KEYS'")}
	fresh.cfg.Probes.User = "mig"
	_, err = fresh.engine(t).AtStart(ctx)
	if !claviger.Is(err, claviger.SourceRefused) {
		t.Errorf("kind of %v", err)
	}
	golden(t, "refused", err.Error()+"\n")

	fresh.cfg.Source = nil
	_, err = fresh.engine(t).AtStart(ctx)
	if !claviger.Is(err, claviger.Invalid) {
		t.Errorf("kind of %v", err)
	}
	golden(t, "no-source", err.Error()+"\n")
	if runs, err := fresh.store.Runs(ctx); err != nil || len(runs) != 0 {
		t.Errorf("a start that failed wrote %q, %v", runs, err)
	}
}

// TestBrokenOff ends the process's work after each durable step, one after the
// other, and lets another go on: the same keys, the same number of objects.
// TestKill does so to a real process on a real token.
func TestBrokenOff(t *testing.T) {
	build := func(t *testing.T) *bench {
		b := newBench(t)
		b.add(t, "a", 2)
		b.add(t, "b", 1)
		addTo(t, b.target, "c", 1)
		b.add(t, "c", 1)
		return b
	}
	total := 0
	count := build(t)
	count.cfg.OnStep = func(_, _ string) error { total++; return nil }
	count.run(t)
	want := count.target.Objects()
	if total < 12 {
		t.Fatalf("only %d steps", total)
	}
	for stop := 1; stop <= total; stop++ {
		b := build(t)
		n, broken := 0, errors.New("broken off")
		b.cfg.OnStep = func(_, _ string) error {
			if n++; n == stop {
				return broken
			}
			return nil
		}
		if _, err := b.engine(t).Run(t.Context()); !errors.Is(err, broken) {
			t.Fatalf("step %d: %v", stop, err)
		}
		b.cfg.OnStep = nil
		r := b.run(t)
		if !r.Complete() || b.target.Objects() != want {
			t.Errorf("broken off after step %d: %v, %d objects, want %d", stop, r.Run.State, b.target.Objects(), want)
		}
		b.sameMetadata(t, "a", "b", "c")
		if runs, err := b.store.Runs(t.Context()); err != nil || len(runs) != 1 {
			t.Errorf("broken off after step %d: runs %q, %v", stop, runs, err)
		}
		s, err := b.engine(t).Status(t.Context())
		if err != nil || len(s.Keys) != 3 || s.Counts.Done != 3 {
			t.Errorf("broken off after step %d: %+v, %v", stop, s, err)
		}
	}
}

func TestParallel(t *testing.T) {
	b := newBench(t)
	b.cfg.Parallel = 8
	var names []string
	for i := range 120 { // more than one batch of metadata
		names = append(names, fmt.Sprintf("k%03d", i))
		b.add(t, names[i], 1+i%3)
	}
	if r := b.run(t); !r.Complete() || r.Counts.Done != 120 || b.target.Objects() != 240 {
		t.Errorf("%+v", r.Counts)
	}
	b.sameMetadata(t, names...)
}

func TestCancelled(t *testing.T) {
	b := newBench(t)
	for i := range 10 {
		b.add(t, fmt.Sprint("k", i), 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	b.cfg.OnStep = func(key, step string) error {
		if key == "k3" && step == "intent" {
			cancel()
		}
		return nil
	}
	_, err := b.engine(t).Run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	b.cfg.OnStep = nil
	if r := b.run(t); !r.Complete() || b.target.Objects() != 10 {
		t.Errorf("%+v", r)
	}
}

// TestJSON holds the documented field names.
func TestJSON(t *testing.T) {
	b := newBench(t)
	b.add(t, "k", 1)
	p, err := b.engine(t).Plan(t.Context())
	must(t, err)
	v, err := b.engine(t).Verify(t.Context())
	must(t, err)
	r := b.run(t)
	r.Took = "1ms"
	s, err := b.engine(t).Status(t.Context())
	must(t, err)
	f, err := b.engine(t).Finish(t.Context(), migrate.FinishOptions{Since: noon, EDEKsDone: true, Get: func(string) (string, string, bool) { return "", "", false }})
	must(t, err)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	for _, doc := range []any{p, r, s, v, f} {
		must(t, enc.Encode(doc))
	}
	golden(t, "json", strings.ReplaceAll(out.String(), r.Keys[0].TargetVersions[0], "k@RANDOM"))
}

func TestNewRefuses(t *testing.T) {
	b := newBench(t)
	b.cfg.Versions = "some"
	if _, err := migrate.New(b.cfg); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), `"some"`) {
		t.Errorf("%v", err)
	}
	b.cfg.Versions, b.cfg.Target = "", nil
	if _, err := migrate.New(b.cfg); err == nil {
		t.Error("an engine without a target")
	}
}

// TestDamagedJournal: a record that cannot be read is an error with words, not
// an empty journal.
func TestDamagedJournal(t *testing.T) {
	b := newBench(t)
	b.add(t, "k", 1)
	r := b.run(t)
	must(t, b.store.Put(t.Context(), r.Run.Name, "k", []byte("{")))
	if _, err := b.engine(t).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "journal") {
		t.Errorf("%v", err)
	}
}
