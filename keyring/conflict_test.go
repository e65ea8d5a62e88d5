package keyring

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// twice is a key that was migrated, and that its source has rolled since, so that one
// name is two versions.
type twice struct {
	*shadowLab
	shared         string        // the name
	theirs, ours   claviger.EDEK // under it
	theirDEK, mine secret.Bytes
}

func newTwice(t *testing.T) *twice {
	t.Helper()
	s := newShadowLab(t, migrated, "present", "payroll", false)
	s.past.list[0].Numbered, s.past.list[0].Counted = true, 1
	s.origins.forget()
	v, err := s.far.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	if current, err := s.primary.Current(t.Context(), "payroll"); err != nil || current.Name != v.Name {
		t.Fatalf("here %s, there %s, %v", current.Name, v.Name, err)
	}
	theirs, theirDEKs := made(t, s.far.blocks, v.Name, 1)
	ours, deks := made(t, s.primary.Provider, v.Name, 1)
	return &twice{s, v.Name, theirs[0], ours[0], theirDEKs[0], deks[0]}
}

func (w *twice) decrypt(t *testing.T, e claviger.EDEK) (secret.Bytes, error) {
	t.Helper()
	return w.Decrypt(t.Context(), caller("alice"), "payroll", true, e)
}

func (w *twice) compare(t *testing.T) {
	t.Helper()
	if err := w.CompareSources(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// refuses wants that no EDEK of the shared name is opened or re-encrypted.
func (w *twice) refuses(t *testing.T, when string) {
	t.Helper()
	for what, e := range map[string]claviger.EDEK{"the source's": w.theirs, "ours": w.ours} {
		if _, err := w.decrypt(t, e); !claviger.Is(err, claviger.Unavailable) {
			t.Errorf("%s: decrypt of %s: %v", when, what, err)
		}
		if _, err := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, e); !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s: re-encryption of %s: %v", when, what, err)
		}
	}
}

// restart forgets what a new process does not know.
func (w *twice) restart() {
	w.conflicts.last = nil
	w.conflicts.known.Store(nil)
	w.conflicts.here.Store(nil)
	w.conflicts.used.Clear()
}

// TestConflictIsFoundInTime: a roll at the source is found by the server itself, within
// the interval of its comparisons. Until then what comes out is no DEK: this holds the
// bound that docs/sources.md and docs/threat-model.md state.
func TestConflictIsFoundInTime(t *testing.T) {
	if defaultCompareEvery != 30*time.Second {
		t.Errorf("the pages say 30 s, and it is %v", defaultCompareEvery)
	}
	w := newTwice(t)
	const every = time.Second
	w.cfg.CompareEvery = every
	began := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go w.WatchSources(ctx)
	if dek, err := w.decrypt(t, w.theirs); err != nil || dek.Equal(w.theirDEK) {
		t.Fatalf("before the comparison: %v", err) // the window that the pages tell of
	}
	for {
		if _, err := w.decrypt(t, w.theirs); claviger.Is(err, claviger.Unavailable) {
			break
		}
		if time.Since(began) > 10*every { // a busy machine
			t.Fatal("the server does not find the roll")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if took := time.Since(began); took < every/2 {
		t.Errorf("found after %v, so this tells nothing of the interval %v", took, every)
	}
}

// TestConflictIsNotDecrypted: once it is known that a source has rolled a migrated key to
// a version that is here too, no EDEK of that name is opened to what may be no DEK. All
// others go on.
func TestConflictIsNotDecrypted(t *testing.T) {
	w := newTwice(t)
	var logged strings.Builder
	w.log = slog.New(slog.NewTextHandler(&logged, nil))
	if dek, err := w.decrypt(t, w.theirs); err != nil || dek.Equal(w.theirDEK) {
		t.Fatalf("before anything is known: %v", err) // else this tests nothing
	}
	for range 2 { // what is in conflict stays so
		w.compare(t)
		for what, e := range map[string]claviger.EDEK{"the source's": w.theirs, "ours": w.ours} {
			_, err := w.decrypt(t, e)
			wantKind(t, err, claviger.Unavailable)
			if err == nil || !strings.Contains(err.Error(), "claviger.migration.ours to "+w.shared) || !strings.Contains(err.Error(), farURI) {
				t.Errorf("%s: %v", what, err)
			}
			if answer := claviger.AnswerOf(err); !strings.Contains(answer, w.shared) || strings.Contains(answer, farURI) {
				t.Errorf("%s: the caller is shown %q", what, answer)
			}
		}
	}
	if n := strings.Count(logged.String(), "level=ERROR"); n != 1 {
		t.Errorf("logged %d times: %s", n, logged.String())
	}
	if err := w.CheckConflicts(t.Context()); w.Conflicts() != 1 || err == nil || !strings.Contains(err.Error(), w.shared+" of "+farURI) {
		t.Errorf("%d, %v", w.Conflicts(), err)
	}
	// Nothing is made that could not be opened.
	if es, err := w.Generate(t.Context(), caller("alice"), "payroll", 1); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("EDEKs were made: %v, %v", es, err)
	}
	// A stranger learns nothing of it.
	_, err := w.Decrypt(t.Context(), caller("bob"), "payroll", true, w.theirs)
	wantKind(t, err, claviger.KeyDenied)
	// The source's older version, and a newer one here, open.
	if dek, err := w.decrypt(t, w.edek); err != nil || !dek.Equal(w.dek) {
		t.Errorf("an older version of the source: %v", err)
	}
	v, err := w.primary.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.forget("payroll")
	w.compare(t)
	es, deks := made(t, w.primary.Provider, v.Name, 1)
	if dek, err := w.decrypt(t, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("a newer version here: %v", err)
	}
	// An operator knows which of them the EDEKs are of.
	w.cfg.Ours = map[string]bool{w.shared: true}
	w.compare(t)
	if dek, err := w.decrypt(t, w.ours); err != nil || !dek.Equal(w.mine) || w.CheckConflicts(t.Context()) != nil {
		t.Errorf("claviger.migration.ours: %v, %v", err, w.CheckConflicts(t.Context()))
	}
	if _, err := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, w.ours); err != nil {
		t.Errorf("claviger.migration.ours, re-encryption: %v", err)
	}
}

// TestConflictSurvivesSilence: a conflict that is known, by the source's word or by the
// journal's, stands while the source is silent; what was never told shuts nothing.
func TestConflictSurvivesSilence(t *testing.T) {
	w := newTwice(t)
	w.far.setFail(failing(claviger.Unavailable, "connection refused"))
	if err := w.CompareSources(t.Context()); err == nil {
		t.Error("a silent source is compared")
	}
	if _, err := w.decrypt(t, w.ours); err != nil {
		t.Errorf("nothing is known, and nothing is opened: %v", err)
	}
	w.far.setFail(nil)
	w.cfg.Settings = openStore(t)
	w.compare(t)
	w.far.setFail(failing(claviger.Unavailable, "connection refused"))
	_ = w.CompareSources(t.Context())
	_, err := w.decrypt(t, w.ours)
	wantKind(t, err, claviger.Unavailable)
	w.restart()
	_ = w.CompareSources(t.Context())
	_, err = w.decrypt(t, w.ours)
	wantKind(t, err, claviger.Unavailable)

	w = newTwice(t)
	w.far.setFail(failing(claviger.Unavailable, "connection refused"))
	w.past.mu.Lock()
	w.past.list[0].Rolled = 2
	w.past.mu.Unlock()
	w.origins.forget()
	_ = w.CompareSources(t.Context())
	_, err = w.decrypt(t, w.ours)
	wantKind(t, err, claviger.Unavailable)
	w.past.mu.Lock()
	w.past.list[0].Finished = time.Now() // then the operator has decided
	w.past.mu.Unlock()
	w.origins.forget()
	_ = w.CompareSources(t.Context())
	if _, err := w.decrypt(t, w.ours); err != nil {
		t.Errorf("after the end of the migration: %v", err)
	}
}

// TestConflictOutlivesTheConfiguration: what a source has told stands when it is taken out
// of the configuration, or is named by another URI, after a restart and on another node: the
// EDEKs in question are still there. A version that no key here has is in nobody's way.
func TestConflictOutlivesTheConfiguration(t *testing.T) {
	w := newTwice(t)
	w.cfg.Settings = openStore(t)
	w.compare(t)
	next, err := w.primary.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.forget("payroll")
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
	w.past.mu.Lock()
	w.past.list[0].Source = "kms://http@the-other-name:9600/kms"
	w.past.mu.Unlock()
	w.origins.forget()
	w.restart()
	w.compare(t)
	refused("under another URI")
	// Nothing was kept, as where the source was rolled after its URI was changed.
	w.cfg.Settings = openStore(t)
	w.restart()
	w.compare(t)
	refused("rolled under another URI")
	es, _ := made(t, w.primary.Provider, next.Name, 1)
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

// TestConflictOutlivesTheKeys: a conflict stands where the key at the source goes, or counts
// fewer versions, as after a restored backup; and where the key here is deleted, comes back
// at once with it.
func TestConflictOutlivesTheKeys(t *testing.T) {
	for what, lose := range map[string]func(w *twice) error{
		"deleted at the source": func(w *twice) error { return w.far.Delete(t.Context(), "payroll") },
		"an older copy at the source": func(w *twice) error {
			if err := w.far.Delete(t.Context(), "payroll"); err != nil {
				return err
			}
			_, err := w.far.Create(t.Context(), provider.Spec{Name: "payroll", Cipher: claviger.DefaultCipher,
				BitLength: 128})
			return err
		},
	} {
		w := newTwice(t)
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

	w := newTwice(t)
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

// TestKeyMadeAnewAtTheSource: a migrated key was deleted at its source, and a user makes a
// new key of its name there. The migrated key here still opens its EDEKs.
func TestKeyMadeAnewAtTheSource(t *testing.T) {
	w := newTwice(t)
	if err := w.far.Delete(t.Context(), "payroll"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // another time of creation
	if _, err := w.far.Create(t.Context(), provider.Spec{Name: "payroll", Cipher: claviger.DefaultCipher,
		BitLength: 128}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := w.far.Roll(t.Context(), "payroll", nil); err != nil {
			t.Fatal(err)
		}
	}
	w.compare(t)
	if dek, err := w.decrypt(t, w.ours); err != nil || !dek.Equal(w.mine) || w.Conflicts() != 0 {
		t.Errorf("%v, %d conflicts", err, w.Conflicts())
	}
	// EDEKs of a name that both have may be of either. No roll is the reason.
	for n := range 4 {
		if _, err := w.primary.Roll(t.Context(), "payroll", nil); err != nil {
			t.Fatal(n, err)
		}
	}
	w.forget("payroll")
	_, err := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, w.ours)
	wantKind(t, err, claviger.Invalid)
	if !strings.Contains(err.Error(), "has another key 'payroll', made ") ||
		strings.Contains(err.Error(), "stop rolls") {
		t.Errorf("it says %v", err)
	}
	// Those of the others go on, and all by the operator's word.
	es, deks := made(t, w.primary.Provider, "payroll@4", 1)
	again := func(e claviger.EDEK, want secret.Bytes) {
		t.Helper()
		out, err := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, e)
		if err != nil {
			t.Error(err)
		} else if dek, err := w.decrypt(t, out); err != nil || !dek.Equal(want) {
			t.Errorf("re-encrypted: %v", err)
		}
	}
	again(es[0], deks[0])
	w.cfg.Ours = map[string]bool{w.shared: true}
	again(w.ours, w.mine)
}

// TestConflictOfTheCurrentVersion: EDEKs of a current version in conflict are not handed
// back as re-encrypted.
func TestConflictOfTheCurrentVersion(t *testing.T) {
	w := newTwice(t)
	w.compare(t)
	for what, e := range map[string]claviger.EDEK{"the source's": w.theirs, "ours": w.ours} {
		_, err := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, e)
		wantKind(t, err, claviger.Invalid)
		if err == nil || !strings.Contains(err.Error(), w.shared) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestNoConflictByCount: what counts is whether the source has a version of that name.
func TestNoConflictByCount(t *testing.T) {
	// One that does not number its versions, as a Key Trustee KMS, counts as many.
	w := newTwice(t)
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
	w.past.list[0].Created = ms[0].Created // it is the key that was migrated
	w.origins.forget()
	w.sources.list[0].Provider, w.sources.list[0].crypter = opaque, remote{opaque, opaque}
	w.compare(t)
	if dek, err := w.decrypt(t, w.ours); err != nil || !dek.Equal(w.mine) {
		t.Errorf("a source of opaque names: %v", err)
	}
	// Without an answer the count decides.
	w.forgetAll()
	w.sources.list[0].has.Clear()
	asked := 0
	opaque.setFail(func(context.Context) error {
		if asked++; asked > 1 { // metadata, then the made-up EDEK
			return claviger.Errorf("far.call", claviger.Denied, "", "no DECRYPT_EEK")
		}
		return nil
	})
	w.compare(t)
	_, err = w.decrypt(t, w.ours)
	wantKind(t, err, claviger.Unavailable)
}

// TestStaleNode: a source of several nodes is asked at one that has not seen its roll yet, and
// counts the version at another. That answer is not kept, and nothing is re-encrypted by it.
func TestStaleNode(t *testing.T) {
	w := newTwice(t)
	next, err := w.primary.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.forget("payroll")
	stale, asked := true, 0
	w.far.setFail(func(context.Context) error {
		if asked++; stale && asked%2 == 0 { // metadata, then the made-up EDEK
			return claviger.E("far.call", claviger.VersionNotFound, w.shared, nil)
		}
		return nil
	})
	w.compare(t)
	asked = 0
	if out, err := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, w.theirs); !claviger.Is(err, claviger.SourceUnreachable) {
		t.Errorf("re-encrypted by a stale answer: %v, %v", out, err)
	}
	stale = false
	w.compare(t)
	_, err = w.decrypt(t, w.theirs)
	wantKind(t, err, claviger.Unavailable)
	_, err = w.Reencrypt(t.Context(), caller("nn"), "payroll", true, w.theirs)
	wantKind(t, err, claviger.Invalid)

	// One that says so for long enough has other names.
	settles := absentSettles
	absentSettles = 0
	defer func() { absentSettles = settles }()
	w = newTwice(t)
	if _, err := w.primary.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	w.forget("payroll")
	asked, stale = 0, true
	w.far.setFail(func(context.Context) error {
		if asked++; asked%2 == 0 {
			return claviger.E("far.call", claviger.VersionNotFound, w.shared, nil)
		}
		return nil
	})
	if out, err := w.Reencrypt(t.Context(), caller("nn"), "payroll", true, w.ours); err != nil || out.Version != next.Name {
		t.Errorf("after long enough: %v, %v", out, err)
	}
}

// TestGapOfNumbers: numbers that leave room for rolls at the source make its versions the
// source's, which opens them; and a key that cannot be read hides no other.
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
		past.list = append(past.list, Origin{Key: key, Source: farURI, TakenOver: true, Created: ms[0].Created, ACLName: key, Numbered: true, Counted: 1})
	}
	past.list = append(past.list, Origin{Key: "bad", Source: farURI, TakenOver: true, Numbered: true, Counted: 1})
	l := newLab(t, func(c *Config) {
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
	es, deks := made(t, far.blocks, "a@1", 1)
	if dek, err := l.Decrypt(t.Context(), caller("u"), "a", true, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("the version that the source has rolled to: %v", err)
	}
	if out, err := l.Reencrypt(t.Context(), caller("u"), "a", true, es[0]); err != nil || out.Version != "a@1000" {
		t.Errorf("re-encrypted: %+v, %v", out, err)
	} else if dek, err := l.Decrypt(t.Context(), caller("u"), "a", true, out); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("after the re-encryption: %v", err)
	}
}

// unreadable is a source that tells nothing of any key while it is asked for one of them.
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

// TestSameNameIsNotReencrypted: an EDEK of a version that a source has too is brought
// under no other version, whether the key was migrated or not, and whatever is known
// beforehand; nor while the source is silent.
func TestSameNameIsNotReencrypted(t *testing.T) {
	for _, here := range []string{beforeSame, migrated} {
		s := newShadowLab(t, here, "present", "payroll", false)
		v, err := s.primary.Current(t.Context(), "payroll")
		if err != nil {
			t.Fatal(err)
		}
		if here == migrated {
			s.past.list[0].Numbered, s.past.list[0].Counted = true, 1
			if _, err := s.far.Roll(t.Context(), "payroll", nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.primary.Roll(t.Context(), "payroll", nil); err != nil {
			t.Fatal(err)
		}
		e := s.edek
		e.Version = v.Name
		_, err = s.ReencryptBatch(t.Context(), caller("nn"), "payroll", []claviger.EDEK{e})
		wantKind(t, err, claviger.Invalid)
		if err == nil || !strings.Contains(err.Error(), "not re-encrypted") {
			t.Errorf("%s: %v", here, err)
		}
		s.forgetAll()
		s.far.setFail(failing(claviger.Unavailable, "connection refused"))
		_, err = s.ReencryptBatch(t.Context(), caller("nn"), "payroll", []claviger.EDEK{e})
		wantKind(t, err, claviger.SourceUnreachable)
	}
	// A source whose names are no numbers has no such version, and may have been stopped.
	opaque := newShadowLab(t, migrated, "silent", "payroll", false)
	v, err := opaque.primary.Current(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opaque.primary.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	es, _ := made(t, opaque.primary.Provider, v.Name, 1)
	if _, err := opaque.ReencryptBatch(t.Context(), caller("nn"), "payroll", es); err != nil {
		t.Errorf("a silent source of opaque names: %v", err)
	}
	// A key of which the source has never heard is re-encrypted as ever.
	s := newShadowLab(t, beforeSame, "absent", "payroll", false)
	if _, err := s.primary.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reencrypt(t.Context(), caller("nn"), "payroll", true, s.edek); err != nil {
		t.Error(err)
	}
}

// otherwise is a source that answers to every spelling, and gives its own.
type otherwise struct{ folding }

func (o otherwise) Metadata(ctx context.Context, names ...string) ([]*claviger.Metadata, error) {
	return o.farKMS.Metadata(ctx, strings.ToLower(names[0]))
}

// TestConflictOfASpelling: a source that has "payroll" and answers to "Payroll", as the
// key is called here, is compared by what it was asked for.
func TestConflictOfASpelling(t *testing.T) {
	s := newShadowLab(t, never, "present", "Payroll", false)
	far := otherwise{folding{s.far}}
	s.sources.list[0].Provider, s.sources.list[0].crypter = far, remote{far, far}
	m, err := s.far.Provider.Metadata(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	ours := *m[0]
	ours.Name = "Payroll"
	if _, err := s.primary.Import(t.Context(), ours, 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	s.past.list = append(s.past.list, Origin{Key: "Payroll", Source: farURI, TakenOver: true, Folded: true, Created: ours.Created, ACLName: "payroll", Numbered: true, Counted: 1})
	s.origins.forget()
	for n := range 2 {
		if err := s.CompareSources(t.Context()); err != nil || s.Conflicts() != n {
			t.Errorf("after %d rolls at the source: %v, %v", n, s.conflictsNow(), err)
		}
		if _, err := s.far.Roll(t.Context(), "payroll", nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRolledAtAnOpaqueSource: a migrated key whose source names no versions by numbers, as
// a Key Trustee KMS, and has rolled it since, is told, once in the log. Its old and new
// EDEKs open through the source.
func TestRolledAtAnOpaqueSource(t *testing.T) {
	s := newShadowLab(t, migrated, "present", "payroll", false)
	s.past.list[0].Counted = 1 // and Numbered is false
	s.origins.forget()
	var logged strings.Builder
	s.log = slog.New(slog.NewTextHandler(&logged, nil))
	check := func(when string, want bool) {
		t.Helper()
		s.origins.forget()
		_ = s.CompareSources(t.Context()) // a silent source is told by a check of its own
		err := s.CheckRolled(t.Context())
		if (err != nil) != want || want &&
			!strings.Contains(err.Error(), "key payroll of "+farURI+" (1 versions when it was migrated, 1 more now)") {
			t.Errorf("%s: %v", when, err)
		}
		if s.Conflicts() != 0 {
			t.Errorf("%s: in conflict: %v", when, s.conflictsNow())
		}
	}
	check("as it was", false)
	if _, err := s.far.Roll(t.Context(), "payroll", nil); err != nil {
		t.Fatal(err)
	}
	check("rolled", true)
	s.far.setFail(failing(claviger.Unavailable, "connection refused"))
	check("rolled, and silent since", true)
	if n := strings.Count(logged.String(), "a key was rolled at its source"); n != 1 {
		t.Errorf("logged %d times: %s", n, logged.String())
	}
	s.past.list[0].Finished = time.Now()
	s.far.setFail(nil)
	check("after the end of the migration", false)
}

// TestConflictCureIsWhole: the value to set has what is set already, and each version of the
// key that is in conflict: an operator who takes the text to the letter closes none again.
func TestConflictCureIsWhole(t *testing.T) {
	w := newTwice(t)
	w.cfg.Ours = map[string]bool{"another@7": true}
	w.compare(t)
	_, err := w.decrypt(t, w.theirs)
	if err == nil || !strings.Contains(err.Error(), "claviger.migration.ours to another@7,"+w.shared+" and restart") {
		t.Errorf("%v", err)
	}
	here, err := w.primary.Roll(t.Context(), "payroll", nil)
	if err != nil {
		t.Fatal(err)
	}
	if there, err := w.far.Roll(t.Context(), "payroll", nil); err != nil || there.Name != here.Name {
		t.Fatalf("here %s, there %s, %v", here.Name, there.Name, err)
	}
	w.compare(t)
	if err := w.CheckConflicts(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "ours to another@7,"+w.shared+","+here.Name+" and restart") {
		t.Errorf("%v", err)
	}
}
