package keyring

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

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
		for what, e := range w.both() {
			_, err := w.decrypt(t, e)
			wantKind(t, err, claviger.Unavailable)
			if err == nil || !strings.Contains(err.Error(), "claviger.migration.ours to "+w.shared) ||
				!strings.Contains(err.Error(), farURI) {
				t.Errorf("%s: %v", what, err)
			}
			if answer := claviger.AnswerOf(err); !strings.Contains(answer, w.shared) || strings.Contains(answer,
				farURI) {
				t.Errorf("%s: the caller is shown %q", what, answer)
			}
		}
	}
	if n := strings.Count(logged.String(), "level=ERROR"); n != 1 {
		t.Errorf("logged %d times: %s", n, logged.String())
	}
	if err := w.CheckConflicts(t.Context()); w.Conflicts() != 1 || err == nil || !strings.Contains(err.Error(),
		w.shared+" of "+farURI) {
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
	v := w.rollHere(t)
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
	if _, err := w.reencryptOne(t, w.ours); err != nil {
		t.Errorf("claviger.migration.ours, re-encryption: %v", err)
	}
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
		w.rollThere(t)
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
	_, err := w.reencryptOne(t, w.ours)
	wantKind(t, err, claviger.Invalid)
	if !strings.Contains(err.Error(), "has another key 'payroll', made ") ||
		strings.Contains(err.Error(), "stop rolls") {
		t.Errorf("it says %v", err)
	}
	// Those of the others go on, and all by the operator's word.
	es, deks := made(t, w.primary.Provider, "payroll@4", 1)
	again := func(e claviger.EDEK, want secret.Bytes) {
		t.Helper()
		out, err := w.reencryptOne(t, e)
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
	for what, e := range w.both() {
		_, err := w.reencryptOne(t, e)
		wantKind(t, err, claviger.Invalid)
		if err == nil || !strings.Contains(err.Error(), w.shared) {
			t.Errorf("%s: %v", what, err)
		}
	}
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
			s.record(func(o *Origin) { o.Numbered, o.Counted = true, 1 })
			s.rollThere(t)
		}
		s.rollHere(t)
		e := s.edek
		e.Version = v.Name
		_, err = s.ReencryptBatch(t.Context(), caller("nn"), "payroll", []claviger.EDEK{e})
		wantKind(t, err, claviger.Invalid)
		if err == nil || !strings.Contains(err.Error(), "not re-encrypted") {
			t.Errorf("%s: %v", here, err)
		}
		s.forgetAll()
		s.silence()
		_, err = s.ReencryptBatch(t.Context(), caller("nn"), "payroll", []claviger.EDEK{e})
		wantKind(t, err, claviger.SourceUnreachable)
	}
	// A source whose names are no numbers has no such version, and may have been stopped.
	opaque := newShadowLab(t, migrated, "silent", "payroll", false)
	v, err := opaque.primary.Current(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	opaque.rollHere(t)
	es, _ := made(t, opaque.primary.Provider, v.Name, 1)
	if _, err := opaque.ReencryptBatch(t.Context(), caller("nn"), "payroll", es); err != nil {
		t.Errorf("a silent source of opaque names: %v", err)
	}
	// A key of which the source has never heard is re-encrypted as ever.
	s := newShadowLab(t, beforeSame, "absent", "payroll", false)
	s.rollHere(t)
	if _, err := s.reencryptOne(t, s.edek); err != nil {
		t.Error(err)
	}
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
	here := w.rollHere(t)
	if there, err := w.far.Roll(t.Context(), "payroll", nil); err != nil || there.Name != here.Name {
		t.Fatalf("here %s, there %s, %v", here.Name, there.Name, err)
	}
	w.compare(t)
	if err := w.CheckConflicts(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "ours to another@7,"+w.shared+","+here.Name+" and restart") {
		t.Errorf("%v", err)
	}
}
