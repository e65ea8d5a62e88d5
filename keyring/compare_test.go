package keyring

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/memory"
)

// TestConflictIsFoundInTime: the server finds a roll at the source within Config.CompareEvery, which is the bound in
// docs/sources/conflicts.md and docs/threat-model/names.md. Before that, the source's EDEK opens here to a wrong DEK.
func TestConflictIsFoundInTime(t *testing.T) {
	if defaultCompareEvery != 30*time.Second {
		t.Errorf("the pages say 30 s, and it is %v", defaultCompareEvery)
	}
	w := newConflictRing(t)
	const every = time.Second
	w.cfg.CompareEvery = every
	began := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go w.WatchSources(ctx)
	if dek, err := w.decrypt(t, w.sourceEDEK); err != nil || dek.Equal(w.sourceDEK) {
		t.Fatalf("before the comparison: %v", err) // the time before detection that these pages describe
	}
	for {
		if _, err := w.decrypt(t, w.sourceEDEK); claviger.Is(err, claviger.Unavailable) {
			break
		}
		if time.Since(began) > 10*every { // a busy machine
			t.Fatal("the server does not find the roll")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if took := time.Since(began); took < every/2 {
		t.Errorf("found after %v, so this proves nothing about the interval %v", took, every)
	}
}

// TestConflictWhileSourceIsSilent: a conflict that the source or the journal has shown remains while the source does
// not answer. If neither has shown one, the silence alone blocks nothing.
func TestConflictWhileSourceIsSilent(t *testing.T) {
	w := newConflictRing(t)
	w.silence()
	if err := w.CompareSources(t.Context()); err == nil {
		t.Error("a silent source is compared")
	}
	if _, err := w.decrypt(t, w.ownEDEK); err != nil {
		t.Errorf("nothing is known, and nothing is opened: %v", err)
	}
	w.far.setFail(nil)
	w.cfg.Settings = openStore(t)
	w.compare(t)
	w.silence()
	_ = w.CompareSources(t.Context())
	w.wantConflict(t, w.ownEDEK)
	w.restart()
	_ = w.CompareSources(t.Context())
	w.wantConflict(t, w.ownEDEK)

	w = newConflictRing(t)
	w.silence()
	w.record(func(o *Origin) { o.Rolled = 2 })
	_ = w.CompareSources(t.Context())
	w.wantConflict(t, w.ownEDEK)
	// The operator ended the migration, which settles the conflict.
	w.record(func(o *Origin) { o.Finished = time.Now() })
	_ = w.CompareSources(t.Context())
	if _, err := w.decrypt(t, w.ownEDEK); err != nil {
		t.Errorf("after the end of the migration: %v", err)
	}
}

// TestConflictAfterConfigurationChange: a conflict remains if the source is removed from the configuration or gets
// another URI, after a restart, and on another node, because EDEKs of both versions still exist. A version that no key
// here has blocks nothing.
func TestConflictAfterConfigurationChange(t *testing.T) {
	w := newConflictRing(t)
	w.cfg.Settings = openStore(t)
	w.compare(t)
	next := w.rollHere(t)
	refused := func(when string) {
		t.Helper()
		w.refuses(t, when)
		if err := w.CheckConflicts(t.Context()); err == nil || !strings.Contains(err.Error(), w.shared) {
			t.Errorf("%s: readiness: %v", when, err)
		}
	}
	sources := w.sources.list
	w.sources.list = nil
	w.compare(t)
	refused("without the source")
	w.restart()
	w.compare(t)
	refused("without the source, after a restart")
	w.sources.list = sources
	w.record(func(o *Origin) { o.Source = "kms://http@the-other-name:9600/kms" })
	w.restart()
	w.compare(t)
	refused("under another URI")
	// No conflict was stored: the source was rolled after its URI was changed.
	w.cfg.Settings = openStore(t)
	w.restart()
	w.compare(t)
	refused("rolled under another URI")
	es, _ := newEDEKs(t, w.primary.Provider, next.Name, 1)
	if _, err := w.decrypt(t, es[0]); err != nil {
		t.Errorf("another version: %v", err)
	}
	w.sources.list = nil
	if err := w.primary.Delete(t.Context(), "payroll"); err != nil {
		t.Fatal(err)
	}
	w.compare(t)
	if err := w.CheckConflicts(t.Context()); err != nil {
		t.Errorf("the key was deleted: %v", err)
	}
}

// TestConflictAfterKeyChange: a conflict remains if the source's key is deleted, or has fewer versions after a restore
// from a backup. If the key here is deleted and undeleted, it is in conflict again at once.
func TestConflictAfterKeyChange(t *testing.T) {
	for what, lose := range map[string]func(w *conflictRing) error{
		"deleted at the source": func(w *conflictRing) error { return w.far.Delete(t.Context(), "payroll") },
		"an older copy at the source": func(w *conflictRing) error {
			if err := w.far.Delete(t.Context(), "payroll"); err != nil {
				return err
			}
			_, err := w.far.Create(t.Context(), provider.Spec{Name: "payroll", Cipher: claviger.DefaultCipher,
				BitLength: 128})
			return err
		},
	} {
		w := newConflictRing(t)
		w.cfg.Settings = openStore(t)
		w.compare(t)
		if err := lose(w); err != nil {
			t.Fatal(err)
		}
		w.compare(t)
		w.conflicts.last = nil
		w.compare(t)
		w.refuses(t, what)
		if w.Conflicts() != 1 {
			t.Errorf("%s: %d conflicts", what, w.Conflicts())
		}
	}

	w := newConflictRing(t)
	w.cfg.Settings = openStore(t)
	w.compare(t)
	if err := w.primary.Delete(t.Context(), "payroll"); err != nil {
		t.Fatal(err)
	}
	w.forget("payroll")
	w.compare(t)
	if w.Conflicts() != 0 {
		t.Errorf("the key is deleted, and is in conflict: %v", w.CheckConflicts(t.Context()))
	}
	w.sources.list = nil
	w.compare(t)
	if err := w.primary.Undelete(t.Context(), "payroll", w.shared); err != nil {
		t.Fatal(err)
	}
	w.forget("payroll")
	w.refuses(t, "undeleted, before anything is compared")
	w.compare(t)
	w.refuses(t, "undeleted")
}

// TestNoConflictByCount: a version is in conflict if the source has a version of that name. The source's count of
// versions alone decides only if the source does not say whether it has the version.
func TestNoConflictByCount(t *testing.T) {
	// A source with opaque ids, such as a Key Trustee KMS, may have the same count without such a version.
	w := newConflictRing(t)
	w.far.setFail(nil)
	opaque := &farKMS{Provider: memory.New(memory.Config{URI: farURI, OpaqueIDs: true}), uri: farURI}
	t.Cleanup(func() { _ = opaque.Provider.Close() })
	opaque.blocks, _ = opaque.Provider.(provider.BlockEncrypter)
	create(t, opaque, "payroll")
	if _, err := opaque.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	ms, err := opaque.Metadata(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	w.record(func(o *Origin) { o.Created = ms[0].Created }) // it is the key that was migrated
	w.sources.list[0].Provider, w.sources.list[0].crypter = opaque, remote{opaque, opaque}
	w.compare(t)
	if dek, err := w.decrypt(t, w.ownEDEK); err != nil || !dek.Equal(w.ownDEK) {
		t.Errorf("a source of opaque names: %v", err)
	}
	// The source refuses to say whether it has the version, so the count decides.
	w.forgetAll()
	w.sources.list[0].has.Clear()
	calls := 0
	opaque.setFail(func(context.Context) error {
		if calls++; calls > 1 { // metadata, then the made-up EDEK
			return claviger.Errorf("far.call", claviger.Denied, "", "no DECRYPT_EEK")
		}
		return nil
	})
	w.compare(t)
	w.wantConflict(t, w.ownEDEK)
}

// TestStaleNode: a source has several nodes. One node counts a rolled version, and another node, which has not seen the
// roll yet, says that there is no such version. That answer is not cached, and allows no re-encryption.
func TestStaleNode(t *testing.T) {
	w := newConflictRing(t)
	next := w.rollHere(t)
	stale := true
	reset := w.staleEverySecond(&stale)
	w.compare(t)
	reset()
	if out, err := w.reencryptOne(t, w.sourceEDEK); !claviger.Is(err, claviger.SourceUnreachable) {
		t.Errorf("re-encrypted by a stale answer: %v, %v", out, err)
	}
	stale = false
	w.compare(t)
	w.wantConflict(t, w.sourceEDEK)
	_, err := w.reencryptOne(t, w.sourceEDEK)
	wantKind(t, err, claviger.Invalid)

	// If the source gives that answer for long enough, it has no version of that name.
	settles := absentSettles
	absentSettles = 0
	defer func() { absentSettles = settles }()
	w = newConflictRing(t)
	w.rollHere(t)
	stale = true
	w.staleEverySecond(&stale)
	if out, err := w.reencryptOne(t, w.ownEDEK); err != nil || out.Version != next.Name {
		t.Errorf("after long enough: %v, %v", out, err)
	}
}

// TestGapOfNumbers: if the numbers here leave room for rolls at the source, the source's new versions are not in
// conflict, and the source opens their EDEKs. A key that cannot be read does not hide conflicts of other keys.
func TestGapOfNumbers(t *testing.T) {
	far := newFarKMS(t, farURI, "a", "bad", "z")
	primary := &counting{Provider: memory.New(memory.Config{Sealed: true})}
	t.Cleanup(func() { _ = primary.Provider.Close() })
	past := &journal{}
	for key, first := range map[string]int{"a": 1000, "z": 1} {
		ms, err := far.Provider.Metadata(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := primary.Import(t.Context(), *ms[0], 1, first, nil); err != nil {
			t.Fatal(err)
		}
		past.list = append(past.list, Origin{Key: key, Source: farURI, TakenOver: true, Created: ms[0].Created,
			ACLName: key, Numbered: true, Counted: 1})
	}
	past.list = append(past.list, Origin{Key: "bad", Source: farURI, TakenOver: true, Numbered: true, Counted: 1})
	l := newTestRing(t, func(c *Config) {
		c.Primary, c.History, c.Reencryption = primary, past, true
		c.Sources = []Source{{Provider: unreadable{far, "bad"}, Reencryption: true}}
	})
	for _, key := range []string{"a", "z"} {
		if _, err := far.Roll(t.Context(), key, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.CompareSources(t.Context()); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a key that cannot be read: %v", err)
	}
	if l.Conflicts() != 1 || l.conflictsNow()["z@1"] == "" {
		t.Errorf("in conflict: %v", l.conflictsNow())
	}
	es, deks := newEDEKs(t, far.blocks, "a@1", 1)
	if dek, err := l.Decrypt(t.Context(), caller("u"), "a", true, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("the version that the source has rolled to: %v", err)
	}
	if out, err := l.Reencrypt(t.Context(), caller("u"), "a", true, es[0]); err != nil || out.Version != "a@1000" {
		t.Errorf("re-encrypted: %+v, %v", out, err)
	} else if dek, err := l.Decrypt(t.Context(), caller("u"), "a", true, out); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("after the re-encryption: %v", err)
	}
}

// unreadable is a source that fails each request for metadata that includes one certain key.
type unreadable struct {
	*farKMS
	key string
}

func (u unreadable) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	for _, n := range names {
		if n == u.key {
			return nil, claviger.Errorf("far.Metadata", claviger.Internal, n, "a damaged entry")
		}
	}
	return u.farKMS.Metadata(ctx, names...)
}

// ownSpelling is a source that finds a key by every spelling of its name, and returns it under its own spelling.
type ownSpelling struct{ folding }

func (o ownSpelling) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	return o.farKMS.Metadata(ctx, strings.ToLower(names[0]))
}

// TestConflictOfASpelling: the key here is "Payroll", and the source calls it "payroll" but finds it by both names. A
// conflict is found under the name here.
func TestConflictOfASpelling(t *testing.T) {
	s := newShadowRing(t, never, "present", "Payroll", false)
	far := ownSpelling{folding{s.far}}
	s.sources.list[0].Provider, s.sources.list[0].crypter = far, remote{far, far}
	m, err := s.far.Provider.Metadata(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	own := *m[0]
	own.Name = "Payroll"
	if _, err := s.primary.Import(t.Context(), own, 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	s.past.list = append(s.past.list, Origin{Key: "Payroll", Source: farURI, TakenOver: true, Folded: true,
		Created: own.Created, ACLName: "payroll", Numbered: true, Counted: 1})
	s.origins.forget()
	for n := range 2 {
		if err := s.CompareSources(t.Context()); err != nil || s.Conflicts() != n {
			t.Errorf("after %d rolls at the source: %v, %v", n, s.conflictsNow(), err)
		}
		s.rollThere(t)
	}
}

// readHistory calls read when the journal is read.
type readHistory struct {
	*journal
	read func()
}

func (h readHistory) Origins(ctx context.Context) ([]Origin, error) {
	h.read()
	return h.journal.Origins(ctx)
}

// TestWatchWithoutSources: conflicts in the journal, and those of other nodes, count even if no source is configured.
func TestWatchWithoutSources(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	l := newTestRing(t, func(c *Config) {
		c.History, c.CompareEvery = readHistory{&journal{}, stop}, time.Millisecond
	})
	l.WatchSources(ctx)
	if ctx.Err() == nil {
		t.Error("the journal was not read")
	}
	newTestRing(t, nil).WatchSources(t.Context()) // returns at once: there is nothing to compare
}

// TestConflictsAreAdded: a new conflict of a source is stored beside its earlier ones.
func TestConflictsAreAdded(t *testing.T) {
	const earlier = "payroll@7"
	w := newConflictRing(t)
	w.cfg.Settings = openStore(t)
	if err := metastore.SetConflicts(t.Context(), w.cfg.Settings, map[string][]string{farURI: {earlier}}); err != nil {
		t.Fatal(err)
	}
	w.compare(t)
	lists, err := metastore.Conflicts(t.Context(), w.cfg.Settings)
	if err != nil || !slices.Equal(lists[farURI], []string{w.shared, earlier}) {
		t.Errorf("stored: %q, %v", lists, err)
	}
	// Without a store, the process keeps them.
	w = newConflictRing(t)
	w.conflicts.last = map[string]map[string]bool{"kms://http@elsewhere:9600/kms": {earlier: true}}
	w.compare(t)
	if now := w.conflictsNow(); now[earlier] == "" || now[w.shared] == "" {
		t.Errorf("known: %q", now)
	}
}

// TestToCompare checks which records of the journal make the server compare a key with a source.
func TestToCompare(t *testing.T) {
	l, _ := withSource(t, nil, "k")
	const other = "kms://http@elsewhere:9600/kms"
	ended := time.Now()
	two := Origin{Key: "k", Source: farURI, Numbered: true, Counted: 2}
	for _, tt := range []struct {
		name string
		list []Origin
		want map[string]compared
	}{
		{"numbered", []Origin{two}, map[string]compared{"k": {counted: 2, any: true}}},
		{"numbered, ended", []Origin{{Key: "k", Source: farURI, Numbered: true, Counted: 2, Finished: ended}},
			map[string]compared{"k": {counted: 2, any: true}}},
		{"opaque", []Origin{{Key: "k", Source: farURI, TakenOver: true, Counted: 1}},
			map[string]compared{"k": {counted: 1, opaque: true, any: true}}},
		{"opaque, ended", []Origin{{Key: "k", Source: farURI, TakenOver: true, Counted: 1, Finished: ended}}, nil},
		{"opaque, not counted", []Origin{{Key: "k", Source: farURI, TakenOver: true}}, nil},
		{"opaque, not migrated", []Origin{{Key: "k", Source: farURI, Counted: 1}}, nil},
		{"another source", []Origin{{Key: "k", Source: other, Numbered: true, Counted: 2}},
			map[string]compared{"k": {counted: 2}}},
		{"another source, ended", []Origin{{Key: "k", Source: other, Numbered: true, Counted: 2, Finished: ended}},
			nil},
		{"made there", []Origin{{Key: "k", Source: other, MadeThere: []string{"k@0"}}},
			map[string]compared{"k": {}}},
		{"made at this source", []Origin{{Key: "k", Source: farURI, MadeThere: []string{"k@0"}}}, nil},
		{"known, and made there", []Origin{two, {Key: "k", Source: other, MadeThere: []string{"k@0"},
			Finished: ended}}, map[string]compared{"k": {counted: 2, any: true}}},
	} {
		if got := l.toCompare(l.sources.list[0], tt.list); !maps.Equal(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestVersionsBelow: only versions whose names have a lower number can be in conflict.
func TestVersionsBelow(t *testing.T) {
	numbered := newTestRing(t, nil)
	create(t, numbered.primary, "k")
	rollKey(t, numbered)
	if got, err := numbered.versionsBelow(t.Context(), "k", 1); err != nil || !slices.Equal(got, []string{"k@0"}) {
		t.Errorf("numbered: %q, %v", got, err)
	}
	opaque := newTestRing(t, func(c *Config) { c.Primary = memory.New(memory.Config{OpaqueIDs: true}) })
	create(t, opaque.cfg.Primary, "k")
	if got, err := opaque.versionsBelow(t.Context(), "k", 9); err != nil || len(got) > 0 {
		t.Errorf("opaque: %q, %v", got, err)
	}
}
