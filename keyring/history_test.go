package keyring

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
)

// journal is a History in memory, with the records of migrations.
type journal struct {
	mu      sync.Mutex
	list    []Origin
	aliases map[string]string
	reads   int
	fail    error
}

func (j *journal) Origins(context.Context) ([]Origin, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.reads++
	return slices.Clone(j.list), j.fail
}

func (j *journal) Alias(_ context.Context, name string) (string, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	here, ok := j.aliases[claviger.FoldName(name)]
	return here, ok, j.fail
}

// takeOver migrates a key and records that.
func (j *journal) takeOver(t testing.TB, from provider.Reader, to provider.Importer, key string) {
	t.Helper()
	ms, err := from.Metadata(t.Context(), key)
	if err != nil || ms[0] == nil {
		t.Fatal(ms, err)
	}
	if _, err := to.Import(t.Context(), *ms[0], 1, ms[0].Versions, nil); err != nil {
		t.Fatal(err)
	}
	uri := farURI
	if named, ok := from.(interface{ URI() string }); ok {
		uri = named.URI()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, Origin{Key: key, Source: uri, TakenOver: true, Created: ms[0].Created,
		ACLName: ms[0].ACLName()})
}

// newFoldingRing is a testRing with the key k, whose source answers to every spelling. Only nn has rights.
func newFoldingRing(t *testing.T) *testRing {
	t.Helper()
	l, _ := withSource(t, func(c *Config) {
		c.CacheEnable = true
		c.Policy = rules(t, "key.acl.k.ALL", "nn")
	}, "k")
	l.past.aliases = map[string]string{"k": "k"}
	return l
}

// TestOriginOf: the record of a migration belongs to the key that the migration made, and not to a key that got the
// name later. The journal is read once for both.
func TestOriginOf(t *testing.T) {
	l, _ := withSource(t, nil, "k")
	ms, err := l.primary.Metadata(t.Context(), "k")
	if err != nil || ms[0] == nil {
		t.Fatal(ms, err)
	}
	later := *ms[0]
	later.Created = later.Created.Add(time.Hour)
	o, ok, err := l.OriginOf(t.Context(), ms[0])
	if err != nil || !ok || o.Source != farURI || !o.TakenOver {
		t.Errorf("the migrated key: %+v, %t, %v", o, ok, err)
	}
	if o, ok, err = l.OriginOf(t.Context(), &later); err != nil || ok {
		t.Errorf("a key that was made later: %+v, %v", o, err)
	}
	if l.past.reads != 1 {
		t.Errorf("the journal was read %d times", l.past.reads)
	}
}

// TestOtherSpellings: a zone keeps the spelling with which it was made, "Finance", of a key that its source listed as
// "finance". All requests of HDFS work with that spelling.
func TestOtherSpellings(t *testing.T) {
	l, nn := newFoldingRing(t), caller("nn")
	for range 2 { // with an empty cache, then from the cache
		es, err := l.Generate(t.Context(), nn, "K", 2)
		if err != nil || len(es) != 2 {
			t.Fatal(err)
		}
		cur, err := l.Current(t.Context(), nn, "K")
		if err != nil || cur == nil || es[0].Version != cur.Name {
			t.Fatalf("current %v, %v; an EDEK is under %s", cur, err, es[0].Version)
		}
		if m, err := l.Metadata(t.Context(), nn, "K"); err != nil || m == nil || m.Name != "K" || m.ACLName() != "k" {
			t.Errorf("metadata %v, %v", m, err)
		}
		if vs, err := l.Versions(t.Context(), nn, "K"); err != nil || len(vs) == 0 {
			t.Errorf("versions %v, %v", vs, err)
		}
		if _, err := l.Decrypt(t.Context(), nn, "K", true, es[0]); err != nil {
			t.Errorf("decrypt: %v", err)
		}
		if _, err := l.ReencryptBatch(t.Context(), nn, "K", es); err != nil {
			t.Errorf("re-encrypt: %v", err)
		}
		fresh, err := l.Roll(t.Context(), nn, "K", nil)
		if err != nil || fresh.Key != "k" {
			t.Errorf("roll: %v, %v", fresh, err)
		}
		if again, err := l.ReencryptBatch(t.Context(), nn, "K", es); err != nil || again[0].Version != fresh.Name {
			t.Errorf("re-encrypt after a roll: %v, %v", again, err)
		}
		if err := l.Invalidate(t.Context(), nn, "K"); err != nil {
			t.Errorf("invalidate: %v", err)
		}
	}
	// The rules of the key apply.
	_, err := l.Generate(t.Context(), caller("bob"), "K", 1)
	wantKind(t, err, claviger.KeyDenied)
	_, err = l.Current(t.Context(), caller("bob"), "K")
	wantKind(t, err, claviger.KeyDenied)
	// A key is deleted only by its own name.
	wantKind(t, l.Delete(t.Context(), nn, "K"), claviger.KeyNotFound)
	// Another name is not a spelling of the key.
	_, err = l.Generate(t.Context(), nn, "kk", 1)
	wantKind(t, err, claviger.KeyNotFound)
}

// TestOtherSpellingsOfOthers: each operation checks the rules of the key that has the name in another spelling, and
// does nothing to it for a user without rights, with and without the spelling in the cache.
func TestOtherSpellingsOfOthers(t *testing.T) {
	l, nn := newFoldingRing(t), caller("nn")
	if _, err := l.Generate(t.Context(), nn, "K", 1); err != nil {
		t.Fatal(err)
	}
	for _, cached := range []bool{true, false} {
		if !cached {
			l.forgetAll()
			l.aliased.Store(false)
		}
		for _, spelling := range []string{"K", "k"} {
			if _, err := l.Generate(t.Context(), nn, "k", 1); err != nil {
				t.Fatal(err)
			}
			for op, do := range operationsOf(t, l, caller("bob"), spelling) {
				if err := do(); !claviger.Is(err, claviger.KeyDenied) {
					t.Errorf("%s of %s, cached %t, by a user without rights: %v", op, spelling, cached, err)
				}
			}
		}
	}
}

// operationsOf returns requests of a user for the key k under a spelling of its name.
func operationsOf(t *testing.T, l *testRing, user claviger.Caller, spelling string) map[string]func() error {
	t.Helper()
	return map[string]func() error{
		"invalidate": func() error { return keepsQueue(t, l, user, spelling) },
		"roll":       func() error { _, err := l.Roll(t.Context(), user, spelling, nil); return err },
		"versions":   func() error { _, err := l.Versions(t.Context(), user, spelling); return err },
		"metadata":   func() error { _, err := l.Metadata(t.Context(), user, spelling); return err },
		"current":    func() error { _, err := l.Current(t.Context(), user, spelling); return err },
		"generate":   func() error { _, err := l.Generate(t.Context(), user, spelling, 1); return err },
		"describe": func() error {
			if spelling == "K" {
				return claviger.E("", claviger.KeyDenied, "", nil) // describe demands the exact name
			}
			_, err := l.Describe(t.Context(), user, spelling)
			return err
		},
	}
}

// keepsQueue calls Invalidate, and checks that the ready-made EDEKs are still there.
func keepsQueue(t *testing.T, l *testRing, user claviger.Caller, spelling string) error {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); l.Queued() == 0 &&
		time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := l.Generate(t.Context(), caller("nn"), "k", 1); err != nil {
			t.Fatal(err)
		}
	}
	before := l.Queued()
	err := l.Invalidate(t.Context(), user, spelling)
	if after := l.Queued(); after < before || before == 0 {
		t.Errorf("invalidate of %s: %d ready-made EDEKs, %d before", spelling, after, before)
	}
	return err
}

// TestMissingByTheJournal: an error "not found" includes what the journal has about the key.
func TestMissingByTheJournal(t *testing.T) {
	l := newSoftDeleteRing(t, func(c *Config) { c.History = &journal{} })
	j, _ := l.cfg.History.(*journal)
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	j.list = []Origin{
		{Key: "ended", Source: farURI, TakenOver: true, Finished: at},
		{Key: "left", Source: farURI, Finished: at},
		{Key: "waits", Source: farURI},
		{Key: "deleted", Source: farURI, TakenOver: true},
		{Key: "deleted", Source: farURI, TakenOver: true, Finished: at},
		{Key: "purged", Source: farURI, TakenOver: true, Finished: at, Made: []string{"purged@1"}},
	}
	made := create(t, l.primary, "deleted")
	if err := l.primary.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	e := func(version string) claviger.EDEK {
		return claviger.EDEK{Version: version, IV: make([]byte, 16), Material: make([]byte, 16)}
	}
	u := caller("u")
	decrypt := func(key, version string) error {
		_, err := l.Decrypt(t.Context(), u, key, true, e(version))
		return err
	}
	generate := func(key string) error {
		_, err := l.Generate(t.Context(), u, key, 1)
		return err
	}
	for _, c := range []struct {
		err  error
		kind claviger.Kind
		says []string // none: nothing is added
	}{
		{decrypt("ended", "ended@3"), claviger.VersionNotFound, []string{"of key 'ended' at " + farURI + ", whose " +
			"migration was finished at 2026-11-20T10:00:00Z", "reencryption.source.uri"}},
		{generate("left"), claviger.KeyNotFound,
			[]string{"'left' was at " + farURI, "finished at 2026-11-20T10:00:00Z " +
				"without it"}},
		{generate("waits"), claviger.KeyNotFound, []string{"'waits' is at " + farURI + " and was not migrated yet",
			"claviger migrate run"}},
		{generate("deleted"), claviger.KeyNotFound,
			[]string{"'deleted' was migrated from " + farURI + " and has been " +
				"deleted here since"}},
		{decrypt("deleted", made.Name), claviger.VersionNotFound,
			[]string{"a version of key 'deleted' here, which was " +
				"deleted", "claviger key undelete"}},
		{decrypt("deleted", "deleted@77"), claviger.VersionNotFound, []string{"can be read only while that KMS is a " +
			"source"}},
		{decrypt("purged", "purged@1"), claviger.VersionNotFound, []string{"made here for key 'purged'",
			"gone for ever", farURI + " never had it"}},
		{generate("unheard"), claviger.KeyNotFound, nil},
		{decrypt("unheard", "unheard@0"), claviger.VersionNotFound, nil},
	} {
		wantKind(t, c.err, c.kind)
		for _, s := range c.says {
			if !strings.Contains(c.err.Error(), s) {
				t.Errorf("%q does not say %q", c.err, s)
			}
		}
		if c.says == nil && strings.Contains(c.err.Error(), "migrat") {
			t.Errorf("%q", c.err)
		}
	}
	// Many requests for missing keys do not read the journal each time.
	before := j.reads
	for range 100 {
		wantKind(t, generate("unheard"), claviger.KeyNotFound)
	}
	if n := j.reads - before; n > 3 {
		t.Errorf("the journal was read %d times", n)
	}
	// If the journal cannot be read, other requests are answered, but no key is made, because the journal may have its
	// name.
	j.fail = claviger.E("journal", claviger.Unavailable, "", nil)
	l.origins.forget()
	_, err := l.Create(t.Context(), u, provider.Spec{Name: "new"})
	wantKind(t, err, claviger.Unavailable)
}

// TestMissingIsNotCached: the answer that a source has no such version is not cached. The source may have rolled to the
// version since, and a client does not retry after "not found".
func TestMissingIsNotCached(t *testing.T) {
	l, far := withSource(t, nil, "k")
	es, _ := newEDEKs(t, far.blocks, "k@0", 1)
	e := es[0]
	e.Version = "k@1"
	for range 3 {
		_, err := l.Decrypt(t.Context(), caller("u"), "k", true, e)
		wantKind(t, err, claviger.VersionNotFound)
		_, err = l.Reencrypt(t.Context(), caller("u"), "k", true, e)
		wantKind(t, err, claviger.VersionNotFound)
	}
	if calls := far.calls(); len(calls) != 7 { // k's metadata, and k@1 each time
		t.Errorf("the source got the calls %q", calls)
	}
	if _, err := far.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	es, deks := newEDEKs(t, far.blocks, "k@1", 1)
	if dek, err := l.Decrypt(t.Context(), caller("u"), "k", true, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("rolled a moment ago: %v", err)
	}
	far.setFail(failing(claviger.Unavailable, "connection refused"))
	e.Version = "k@2"
	_, err := l.Decrypt(t.Context(), caller("u"), "k", true, e)
	wantKind(t, err, claviger.SourceUnreachable)
	far.setFail(nil)
	_, err = l.Version(t.Context(), caller("u"), "k@2")
	if err != nil {
		t.Error(err)
	}
	if _, err := far.Roll(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	if v, err := l.Version(t.Context(), caller("u"), "k@2"); err != nil || v == nil {
		t.Errorf("its version, rolled a moment ago: %v, %v", v, err)
	}
}

// TestTakenOver: only a migration that took over a key of the same creation time and ACL name counts. If the journal
// cannot be read, that is an error.
func TestTakenOver(t *testing.T) {
	past := &journal{}
	l := newTestRing(t, func(c *Config) { c.History = past })
	key := &claviger.Metadata{Name: "k", Created: time.UnixMilli(1000)}
	acl := key.ACLName()
	for _, tt := range []struct {
		name string
		past Origin
		want bool
	}{
		{"taken over", Origin{Key: "k", TakenOver: true, Created: key.Created, ACLName: acl}, true},
		{"in conflict", Origin{Key: "k", Created: key.Created, ACLName: acl}, false},
		{"another key", Origin{Key: "k", TakenOver: true, Created: time.UnixMilli(2000), ACLName: acl}, false},
		{"another ACL name", Origin{Key: "k", TakenOver: true, Created: key.Created, ACLName: "other"}, false},
	} {
		past.list = []Origin{tt.past}
		l.origins.forget()
		if got, err := l.takenOver(t.Context(), key, key); got != tt.want || err != nil {
			t.Errorf("%s: %t, %v", tt.name, got, err)
		}
	}
	past.fail = errInjected
	l.origins.forget()
	if got, err := l.takenOver(t.Context(), key, key); got || !errors.Is(err, errInjected) {
		t.Errorf("the journal cannot be read: %t, %v", got, err)
	}
}
