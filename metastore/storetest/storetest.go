// Package storetest is the suite that every metastore passes. It tests the contract of each method, the order of
// results, conflicts, concurrency, locks, calls after Close, cancelled contexts, and which data survives a
// reopening and a SIGKILL.
package storetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
)

// Backend makes and opens the stores that the suite tests.
type Backend struct {
	// New returns the location of a new, empty store: a file's path, or a database's URL. The end of t removes
	// the store.
	New func(t *testing.T) (location string)
	// Open opens the store at a location. Several stores may be open at the same location.
	Open func(ctx context.Context, location string) (metastore.Store, error)
	// Nodes says that several servers may use one store.
	Nodes bool
}

func (b Backend) open(t *testing.T, location string) metastore.Store {
	t.Helper()
	s, err := b.Open(t.Context(), location)
	if err != nil {
		t.Fatalf("open %s: %v", location, err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// Run runs the suite. The test binary's TestMain must call Main, because the test Kill starts the binary again.
func Run(t *testing.T, b Backend) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, b Backend, s metastore.Store, location string)
	}{
		{"Empty", testEmpty},
		{"InsertGet", testInsertGet},
		{"Pages", testPages},
		{"ByVersion", testByVersion},
		{"VersionOrder", testVersionOrder},
		{"Conflicts", testConflicts},
		{"Remove", testRemove},
		{"RemoveVersion", testRemoveVersion},
		{"Prepend", testPrepend},
		{"Amend", testAmend},
		{"Intents", testIntents},
		{"FinishCreate", testFinishCreate},
		{"FinishRoll", testFinishRoll},
		{"TakeDuringFinish", testTakeDuringFinish},
		{"Numbers", testNumbers},
		{"NumbersOfDeletedKeys", testNumbersOfDeletedKeys},
		{"NumbersOfOtherStores", testNumbersOfOtherStores},
		{"LastNumber", testLastNumber},
		{"NumbersConcurrency", testNumbersConcurrency},
		{"Usage", testUsage},
		{"LongKeyName", testLongKeyName},
		{"LongNamesInRecords", testLongNamesInRecords},
		{"Journal", testJournal},
		{"Settings", testSettings},
		{"Locks", testLocks},
		{"Claims", testClaims},
		{"Concurrency", testConcurrency},
		{"TwoStores", testTwoStores},
		{"Reopen", testReopen},
		{"SoftDelete", testSoftDelete},
		{"DeletedKeys", testDeletedKeys},
		{"Undelete", testUndelete},
		{"Discard", testDiscard},
		{"DiscardSeveral", testDiscardSeveral},
		{"DeletedDuringStep", testDeletedDuringStep},
		{"DeletedByName", testDeletedByName},
		{"LastUses", testLastUses},
		{"NeverUsed", testNeverUsed},
		{"Clocks", testClocks},
		{"Closed", testClosed},
		{"Cancelled", testCancelled},
		{"Kill", testKill},
	} {
		t.Run(tt.name, func(t *testing.T) {
			location := b.New(t)
			tt.test(t, b, b.open(t, location), location)
		})
	}
}

// at returns a time in whole milliseconds, because a store keeps no smaller unit.
func at(ms int64) time.Time { return time.UnixMilli(1_700_000_000_000 + ms).UTC() }

func text(s string) *string { return &s }

// key returns a key whose versions have the given ids.
func key(name string, ids ...string) metastore.Key {
	k := metastore.Key{Metadata: claviger.Metadata{
		Name: name, Cipher: "AES/CTR/NoPadding", BitLength: 256, Description: text("zone of " + name),
		Attributes: map[string]string{claviger.ACLNameAttribute: name + "-acl", "": "", "ключ": "<\u2028>"},
		Created:    at(123),
	}}
	for i, id := range ids {
		k.List = append(k.List, version(id, int64(i)))
	}
	k.Versions = metastore.CountVersions(k.List)
	return k
}

func version(id string, n int64) metastore.Version {
	return metastore.Version{ID: id, Object: object(id), Created: at(1000 * n),
		Check: []byte{byte(n), 0xff, 0, 4, 5, 6, 7, 8}}
}

// object returns the HSM object of the version with that id. The store demands unique objects, so a test gives each
// id to one key only. An id like "01" is opaque: it is not a number, because of the leading zero.
func object(id string) string { return "0b" + id }

func refs(ids ...string) []metastore.Ref {
	list := make([]metastore.Ref, len(ids))
	for i, id := range ids {
		list[i] = metastore.Ref{ID: id, Object: object(id)}
	}
	return list
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind claviger.Kind) {
	t.Helper()
	if !claviger.Is(err, kind) {
		t.Errorf("error %v, want kind %q", err, kind)
	}
}

func wantKey(t *testing.T, got *metastore.Key, want metastore.Key) {
	t.Helper()
	if got == nil {
		t.Errorf("key %q is missing", want.Name)
		return
	}
	want.Versions = metastore.CountVersions(want.List)
	if diff := metadataDiff(got.Metadata, want.Metadata); diff != "" {
		t.Errorf("key %q: %s", want.Name, diff)
	}
	if !slices.EqualFunc(got.List, want.List, sameVersion) {
		t.Errorf("key %q has versions %v, want %v", want.Name, got.List, want.List)
	}
}

func metadataDiff(got, want claviger.Metadata) string {
	switch {
	case got.Name != want.Name || got.Cipher != want.Cipher || got.BitLength != want.BitLength ||
		got.Versions != want.Versions:
		return fmt.Sprintf("got %+v, want %+v", got, want)
	case (got.Description == nil) != (want.Description == nil) || got.Description != nil &&
		*got.Description != *want.Description:
		return fmt.Sprintf("description %v, want %v", got.Description, want.Description)
	case got.Attributes == nil:
		return "Attributes is nil"
	case !maps.Equal(got.Attributes, want.Attributes):
		return fmt.Sprintf("attributes %q, want %q", got.Attributes, want.Attributes)
	case !got.Created.Equal(want.Created):
		return fmt.Sprintf("created %v, want %v", got.Created, want.Created)
	}
	return ""
}

func sameVersion(a, b metastore.Version) bool {
	return a.ID == b.ID && a.Object == b.Object && a.Created.Equal(b.Created) && bytes.Equal(a.Check, b.Check)
}

func testEmpty(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	must(t, s.Check(ctx))
	if s.URI() == "" {
		t.Error("URI is empty")
	}
	if names, err := s.Names(ctx); err != nil || len(names) != 0 {
		t.Errorf("Names: %q, %v", names, err)
	}
	if ks, err := s.Get(ctx); err != nil || len(ks) != 0 {
		t.Errorf("Get without names: %v, %v", ks, err)
	}
	if ks, err := s.Get(ctx, "a", "b"); err != nil || len(ks) != 2 || ks[0] != nil || ks[1] != nil {
		t.Errorf("Get of missing keys: %v, %v", ks, err)
	}
	if is, err := s.Pending(ctx); err != nil || len(is) != 0 {
		t.Errorf("Pending: %v, %v", is, err)
	}
	if us, err := s.Uses(ctx); err != nil || len(us) != 0 {
		t.Errorf("Uses: %v, %v", us, err)
	}
	if rs, err := s.Runs(ctx); err != nil || len(rs) != 0 {
		t.Errorf("Runs: %v, %v", rs, err)
	}
	if rs, err := s.Records(ctx, "no such run"); err != nil || len(rs) != 0 {
		t.Errorf("Records: %v, %v", rs, err)
	}
	must(t, s.AddUse(ctx, nil))
	must(t, s.Drop(ctx, "no such key"))
}

func testInsertGet(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	keys := []metastore.Key{
		key("b", "0b01"), key("a", "0a02", "0a01"), key("B", "0c01"), key("a b/c@d?%", "0d01"), key("schlüssel",
			"0e01"), key(" ' \" ; --", "0f01"),
	}
	keys[0].Description, keys[0].Attributes = nil, nil
	keys[1].Description, keys[1].Attributes = text(""), map[string]string{}
	for _, k := range keys {
		must(t, s.Insert(ctx, k))
	}
	names, err := s.Names(ctx)
	must(t, err)
	if want := []string{" ' \" ; --", "B", "a", "a b/c@d?%", "b", "schlüssel"}; !slices.Equal(names, want) {
		t.Errorf("Names %q, want %q", names, want)
	}
	got, err := s.Get(ctx, "b", "missing", "a", "b", "B", "a b/c@d?%", "schlüssel", " ' \" ; --")
	must(t, err)
	if len(got) != 8 || got[1] != nil {
		t.Fatalf("Get: %v", got)
	}
	for i, k := range []int{0, -1, 1, 0, 2, 3, 4, 5} {
		if k >= 0 {
			wantKey(t, got[i], keys[k])
		}
	}
	k := key("none")
	if err := s.Insert(ctx, k); err == nil {
		t.Error("Insert accepted a key without a version")
	}
	for _, v := range []metastore.Version{{ID: "1"}, {Object: "0b10"}} {
		k := metastore.Key{Metadata: key("none").Metadata, List: []metastore.Version{v}}
		wantKind(t, s.Insert(ctx, k), claviger.Invalid)
		wantKind(t, s.Append(ctx, "a", v), claviger.Invalid)
	}
}

func testByVersion(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	k, withAt := key("k", "01", "02"), key("k@01", "03")
	must(t, s.Insert(ctx, k))
	must(t, s.Insert(ctx, withAt))
	m, v, err := s.ByVersion(ctx, "k@02")
	must(t, err)
	if diff := metadataDiff(*m, k.Metadata); diff != "" {
		t.Error(diff)
	}
	if !sameVersion(v, k.List[1]) {
		t.Errorf("version %v, want %v", v, k.List[1])
	}
	if m, v, err := s.ByVersion(ctx, "k@01@03"); err != nil || m.Name != "k@01" || v.ID != "03" {
		t.Errorf("version of a key with @ in its name: %v, %v, %v", m, v, err)
	}
	for _, name := range []string{"", "k", "k@", "@01", "k@03", "K@01", "k@1", "k@01 ", "k@01@01"} {
		_, _, err := s.ByVersion(ctx, name)
		wantKind(t, err, claviger.VersionNotFound)
	}
}

// testVersionOrder checks that versions stay in the order in which they were written, whatever their ids and
// creation times are.
func testVersionOrder(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	want := key("k", "ff", "00", "7a")
	must(t, s.Insert(ctx, want))
	for i, id := range []string{"fe", "01", "80", "02"} {
		v := version(id, int64(-i)) // created earlier than the version before it
		must(t, s.Append(ctx, "k", v))
		want.List = append(want.List, v)
		got, err := s.Get(ctx, "k")
		must(t, err)
		wantKey(t, got[0], want)
		m, _, err := s.ByVersion(ctx, "k@ff")
		must(t, err)
		if n := metastore.CountVersions(want.List); m.Versions != n {
			t.Errorf("ByVersion counts %d versions, want %d", m.Versions, n)
		}
	}
}

func testConflicts(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	k := key("k", "01")
	must(t, s.Insert(ctx, k))
	if _, err := s.Begin(ctx, metastore.Intent{Key: "k", Op: "roll", Refs: refs("02")}); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Insert(ctx, key("k", "09")), claviger.KeyExists)
	wantKind(t, s.Append(ctx, "missing", version("08", 1)), claviger.KeyNotFound)
	_, err := s.Remove(ctx, "missing")
	wantKind(t, err, claviger.KeyNotFound)
	// The failed calls have changed nothing, and the intent is still there.
	got, err := s.Get(ctx, "k")
	must(t, err)
	wantKey(t, got[0], k)
	if p, err := s.Pending(ctx); err != nil || len(p) != 1 {
		t.Errorf("intents after failures: %v, %v", p, err)
	}
	_, err = s.Begin(ctx, metastore.Intent{Key: "other", Op: "create", Refs: refs("03")})
	must(t, err)
	if p, err := s.Pending(ctx, "K", "\xff", "k"); err != nil || len(p) != 1 || p[0].Key != "k" {
		t.Errorf("intents of some keys: %v, %v", p, err)
	}
	must(t, s.Drop(ctx, "other"))
	if p, err := s.Pending(ctx, "\xff"); err != nil || len(p) != 0 {
		t.Errorf("intents of a name that no key has: %v, %v", p, err)
	}
	// Names that differ only in case are different names.
	must(t, s.Insert(ctx, key("K", "0a")))
}

func testRemove(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	must(t, s.Insert(ctx, key("k", "03", "01")))
	must(t, s.Append(ctx, "k", version("02", 2)))
	in, err := s.Remove(ctx, "k")
	must(t, err)
	if in.Key != "k" || in.Op != "delete" || !slices.Equal(in.Refs, refs("03", "01", "02")) || in.Begun.IsZero() {
		t.Errorf("Remove returned %+v", in)
	}
	if got, err := s.Get(ctx, "k"); err != nil || got[0] != nil {
		t.Errorf("removed key: %v, %v", got[0], err)
	}
	_, _, err = s.ByVersion(ctx, "k@01")
	wantKind(t, err, claviger.VersionNotFound)
	p, err := s.Pending(ctx)
	must(t, err)
	if len(p) != 1 || p[0].Op != "delete" || !slices.Equal(p[0].Refs, in.Refs) || !p[0].Begun.Equal(in.Begun) {
		t.Errorf("Pending %+v, want %+v", p, in)
	}
	_, err = s.Remove(ctx, "k")
	wantKind(t, err, claviger.KeyNotFound)

	// The name is free only after the deletion is finished.
	_, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: refs("04")})
	wantKind(t, err, claviger.Unavailable)
	must(t, s.Drop(ctx, "k"))
	_, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "create", Refs: refs("04")})
	must(t, err)
	must(t, s.Insert(ctx, key("k", "04")))

	// A key with an unfinished step is not removed, because the store would lose the refs of the step's HSM objects.
	_, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "roll", Refs: refs("05")})
	must(t, err)
	_, err = s.Remove(ctx, "k")
	wantKind(t, err, claviger.Unavailable)
	if got, err := s.Get(ctx, "k"); err != nil || got[0] == nil {
		t.Errorf("key after a refused removal: %v, %v", got[0], err)
	}
	must(t, s.Drop(ctx, "k"))
	_, err = s.Begin(ctx, metastore.Intent{Key: "k", Op: "delete", Refs: refs("05")})
	must(t, err)
	in, err = s.Remove(ctx, "k")
	must(t, err)
	slices.SortFunc(in.Refs, func(a, b metastore.Ref) int { return cmp.Compare(a.ID, b.ID) })
	if !slices.Equal(in.Refs, refs("04", "05")) {
		t.Errorf("Remove after Begin of a deletion returned refs %q, want the refs of both", in.Refs)
	}
	p, err = s.Pending(ctx)
	must(t, err)
	if len(p) != 1 || len(p[0].Refs) != 2 {
		t.Errorf("Pending %+v", p)
	}
}

func testIntents(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	first := metastore.Intent{Key: "z", Op: "import", Refs: refs("02", "01"), Begun: at(5), Payload: []byte(`{"a":1}`)}
	got, err := s.Begin(ctx, first)
	must(t, err)
	same := func(got, want metastore.Intent) {
		t.Helper()
		if got.Key != want.Key || got.Op != want.Op || !slices.Equal(got.Refs, want.Refs) ||
			!got.Begun.Equal(want.Begun) || !bytes.Equal(got.Payload, want.Payload) {
			t.Errorf("intent %+v, want %+v", got, want)
		}
	}
	same(got, first)
	// A second Begin of the same step returns the first intent.
	got, err = s.Begin(ctx, metastore.Intent{Key: "z", Op: "import", Refs: refs("09"), Begun: at(9),
		Payload: []byte("x")})
	must(t, err)
	same(got, first)
	_, err = s.Begin(ctx, metastore.Intent{Key: "z", Op: "create", Refs: refs("08")})
	wantKind(t, err, claviger.Unavailable)

	for _, k := range []string{"m", "a"} {
		in, err := s.Begin(ctx, metastore.Intent{Key: k, Op: "create", Refs: refs(k)})
		must(t, err)
		if in.Begun.IsZero() {
			t.Error("Begun is zero")
		}
	}
	keys := func(want ...string) {
		t.Helper()
		p, err := s.Pending(ctx)
		must(t, err)
		var got []string
		for _, i := range p {
			got = append(got, i.Key)
		}
		if !slices.Equal(got, want) {
			t.Errorf("Pending: %q, want %q", got, want)
		}
	}
	keys("z", "m", "a")
	must(t, s.Insert(ctx, key("m", "m1")))
	keys("z", "a")
	must(t, s.Drop(ctx, "z"))
	keys("a")
	_, err = s.Begin(ctx, metastore.Intent{Key: "m", Op: "roll", Refs: refs("m2")})
	must(t, err)
	keys("a", "m")
	must(t, s.Append(ctx, "m", version("m2", 2)))
	keys("a")
	if _, err := s.Begin(ctx, metastore.Intent{Op: "create"}); err == nil {
		t.Error("Begin accepted an intent without a key")
	}
}

func testUsage(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	must(t, s.AddUse(ctx, []metastore.Use{
		{Source: "kms://b", Version: "k@0", Op: "decrypt", Count: 3, Last: at(50)},
		{Source: "kms://a", Version: "k@1", Op: "reencrypt", Count: 1000, Last: at(10)},
		{Source: "kms://a", Version: "k@1", Op: "decrypt", Count: 1, Last: at(10)},
		{Source: "kms://a", Version: "k@1", Op: "decrypt", Count: 2, Last: at(20)},
	}))
	// The counter of kms://b is already at a later time; Last must not move back.
	must(t, s.AddUse(ctx, []metastore.Use{{Source: "kms://b", Version: "k@0", Op: "decrypt", Count: 4, Last: at(40)}}))
	must(t, s.AddUse(ctx, []metastore.Use{{Source: "kms://a", Version: "k@1", Op: "reencrypt", Count: 1,
		Last: at(11)}}))
	got, err := s.Uses(ctx)
	must(t, err)
	want := []metastore.Use{
		{Source: "kms://a", Version: "k@1", Op: "decrypt", Count: 3, Last: at(20)},
		{Source: "kms://a", Version: "k@1", Op: "reencrypt", Count: 1001, Last: at(11)},
		{Source: "kms://b", Version: "k@0", Op: "decrypt", Count: 7, Last: at(50)},
	}
	if !slices.EqualFunc(got, want, func(a, b metastore.Use) bool {
		return a.Source == b.Source && a.Version == b.Version && a.Op == b.Op && a.Count == b.Count &&
			a.Last.Equal(b.Last)
	}) {
		t.Errorf("Uses\n%v, want\n%v", got, want)
	}
}

func testJournal(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	begin := time.Now().Add(-time.Second)
	for _, p := range [][3]string{
		{"run2", "", `{"v":1}`}, {"run2", "k2", `1`}, {"run1", "", `{}`}, {"run2", "k1", `2`}, {"run1", "k1",
			``}, {"run2", "", `{"v":2}`}, {"run2", "k2", `3`},
	} {
		must(t, s.Put(ctx, p[0], p[1], []byte(p[2])))
	}
	check := func(run string, want ...string) {
		t.Helper()
		rs, err := s.Records(ctx, run)
		must(t, err)
		var got []string
		for _, r := range rs {
			got = append(got, r.Item+"="+string(r.Data))
			if r.At.Before(begin) || r.At.After(time.Now().Add(time.Second)) {
				t.Errorf("record %q has the time %v", r.Item, r.At)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("records of %s: %q, want %q", run, got, want)
		}
	}
	check("run2", `={"v":2}`, "k2=3", "k1=2")
	check("run1", `={}`, "k1=")
	runs, err := s.Runs(ctx)
	must(t, err)
	if !slices.Equal(runs, []string{"run2", "run1"}) {
		t.Errorf("runs %q", runs)
	}
	if err := s.Put(ctx, "", "k", []byte("x")); err == nil {
		t.Error("Put accepted a record without a run")
	}
}

func testSettings(t *testing.T, _ Backend, s metastore.Store, _ string) {
	ctx := t.Context()
	if v, ok, err := s.Setting(ctx, "token"); v != "" || ok || err != nil {
		t.Errorf("unset: %q, %v, %v", v, ok, err)
	}
	for _, v := range []string{"a", "", "serial 'x'"} {
		must(t, s.SetSetting(ctx, "token", v))
		if got, ok, err := s.Setting(ctx, "token"); got != v || !ok || err != nil {
			t.Errorf("set to %q: %q, %v, %v", v, got, ok, err)
		}
	}
	if _, ok, err := s.Setting(ctx, "Token"); ok || err != nil {
		t.Errorf("another name: %v, %v", ok, err)
	}
}
