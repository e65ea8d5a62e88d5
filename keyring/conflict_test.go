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

// TestConflictIsNotDecrypted: once it is known that a source has rolled a migrated key to the name of a version here,
// no EDEK of that name is opened, because it might open to a wrong DEK. EDEKs of other versions are opened.
func TestConflictIsNotDecrypted(t *testing.T) {
	w := newConflictRing(t)
	var logged strings.Builder
	w.log = slog.New(slog.NewTextHandler(&logged, nil))
	if dek, err := w.decrypt(t, w.sourceEDEK); err != nil || dek.Equal(w.sourceDEK) {
		t.Fatalf("before the comparison: %v", err) // otherwise there is no conflict to test
	}
	for range 2 { // the conflict remains
		w.compare(t)
		if n := strings.Count(logged.String(), "level=ERROR"); n != 1 {
			t.Errorf("logged %d times: %s", n, logged.String())
		}
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
	if err := w.CheckConflicts(t.Context()); w.Conflicts() != 1 || err == nil || !strings.Contains(err.Error(),
		w.shared+" of "+farURI) {
		t.Errorf("%d, %v", w.Conflicts(), err)
	}
	// No EDEKs are made that could not be opened.
	if es, err := w.Generate(t.Context(), caller("alice"), "payroll", 1); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("EDEKs were made: %v, %v", es, err)
	}
	// A user without rights does not learn about the conflict.
	_, err := w.Decrypt(t.Context(), caller("bob"), "payroll", true, w.sourceEDEK)
	wantKind(t, err, claviger.KeyDenied)
	// EDEKs of the source's older version, and of a newer version here, are opened.
	if dek, err := w.decrypt(t, w.edek); err != nil || !dek.Equal(w.dek) {
		t.Errorf("an older version of the source: %v", err)
	}
	v := w.rollHere(t)
	w.compare(t)
	es, deks := newEDEKs(t, w.primary.Provider, v.Name, 1)
	if dek, err := w.decrypt(t, es[0]); err != nil || !dek.Equal(deks[0]) {
		t.Errorf("a newer version here: %v", err)
	}
	// An operator says that the EDEKs belong to the version here.
	w.cfg.OwnVersions = map[string]bool{w.shared: true}
	w.compare(t)
	if dek, err := w.decrypt(t, w.ownEDEK); err != nil || !dek.Equal(w.ownDEK) || w.CheckConflicts(t.Context()) != nil {
		t.Errorf("claviger.migration.ours: %v, %v", err, w.CheckConflicts(t.Context()))
	}
	if _, err := w.reencryptOne(t, w.ownEDEK); err != nil {
		t.Errorf("claviger.migration.ours, re-encryption: %v", err)
	}
}

// TestKeyMadeAgainAtTheSource: a migrated key was deleted at its source, and a user makes another key of its name
// there. The migrated key here still opens its EDEKs.
func TestKeyMadeAgainAtTheSource(t *testing.T) {
	w := newConflictRing(t)
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
	if dek, err := w.decrypt(t, w.ownEDEK); err != nil || !dek.Equal(w.ownDEK) || w.Conflicts() != 0 {
		t.Errorf("%v, %d conflicts", err, w.Conflicts())
	}
	// EDEKs of a version name that both keys have may belong to either key. The error does not blame a roll.
	for n := range 4 {
		if _, err := w.primary.Roll(t.Context(), "payroll", nil); err != nil {
			t.Fatal(n, err)
		}
	}
	w.forget("payroll")
	_, err := w.reencryptOne(t, w.ownEDEK)
	wantKind(t, err, claviger.Invalid)
	if !strings.Contains(err.Error(), "has a key 'payroll', made ") ||
		strings.Contains(err.Error(), "stop rolls") {
		t.Errorf("it says %v", err)
	}
	// EDEKs of other versions are re-encrypted, and all EDEKs after an operator has decided.
	es, deks := newEDEKs(t, w.primary.Provider, "payroll@4", 1)
	reencrypts := func(e claviger.EDEK, want secret.Bytes) {
		t.Helper()
		out, err := w.reencryptOne(t, e)
		if err != nil {
			t.Error(err)
		} else if dek, err := w.decrypt(t, out); err != nil || !dek.Equal(want) {
			t.Errorf("re-encrypted: %v", err)
		}
	}
	reencrypts(es[0], deks[0])
	w.cfg.OwnVersions = map[string]bool{w.shared: true}
	reencrypts(w.ownEDEK, w.ownDEK)
}

// TestConflictOfTheCurrentVersion: if the current version is in conflict, its EDEKs are refused, not returned unchanged
// as already re-encrypted.
func TestConflictOfTheCurrentVersion(t *testing.T) {
	w := newConflictRing(t)
	w.compare(t)
	for what, e := range w.both() {
		_, err := w.reencryptOne(t, e)
		wantKind(t, err, claviger.Invalid)
		if err == nil || !strings.Contains(err.Error(), w.shared) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestSameNameIsNotReencrypted: an EDEK is not re-encrypted if a source has a version of the same name, whether the key
// was migrated or not, even if no conflict is known yet. It is not re-encrypted while the source does not answer
// either.
func TestSameNameIsNotReencrypted(t *testing.T) {
	for _, here := range []string{beforeSame, migrated} {
		s := newShadowRing(t, here, "present", "payroll", false)
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
	// A source with opaque ids has no such version, so it may have been stopped.
	opaque := newShadowRing(t, migrated, "silent", "payroll", false)
	v, err := opaque.primary.Current(t.Context(), "payroll")
	if err != nil {
		t.Fatal(err)
	}
	opaque.rollHere(t)
	es, _ := newEDEKs(t, opaque.primary.Provider, v.Name, 1)
	if _, err := opaque.ReencryptBatch(t.Context(), caller("nn"), "payroll", es); err != nil {
		t.Errorf("a silent source of opaque names: %v", err)
	}
	// EDEKs of a key that the source does not have are re-encrypted.
	s := newShadowRing(t, beforeSame, "absent", "payroll", false)
	s.rollHere(t)
	if _, err := s.reencryptOne(t, s.edek); err != nil {
		t.Error(err)
	}
}

// TestConflictCureIsComplete: the property value in the cure has the versions that are set already, and all versions of
// the key in conflict. So an operator who copies it loses no earlier decision.
func TestConflictCureIsComplete(t *testing.T) {
	w := newConflictRing(t)
	w.cfg.OwnVersions = map[string]bool{"another@7": true}
	w.compare(t)
	_, err := w.decrypt(t, w.sourceEDEK)
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

// TestNotComparedYet: a source that has rolled its key is noticed at a re-encryption, before any comparison. If it
// answers with an error, nothing is re-encrypted.
func TestNotComparedYet(t *testing.T) {
	w := newConflictRing(t)
	w.rollHere(t)
	_, err := w.reencryptOne(t, w.ownEDEK)
	wantKind(t, err, claviger.Invalid)
	if !strings.Contains(err.Error(), "is one key here and another key at") {
		t.Error(err)
	}
	w = newConflictRing(t)
	w.rollHere(t)
	w.far.setFail(failing(claviger.WrongKey, "an odd answer"))
	_, err = w.reencryptOne(t, w.ownEDEK)
	wantKind(t, err, claviger.WrongKey)
	// A version whose metadata is not known was made by no migration that is known.
	if list, err := w.originsOf(t.Context(), &claviger.KeyVersion{Key: "payroll", Name: w.shared}); len(list) > 0 ||
		err != nil {
		t.Errorf("origins: %+v, %v", list, err)
	}
}

// TestSilenceBesideOpaqueSource: a source that does not answer stops the re-encryption, unless the key came from
// another source, with opaque ids: a version of such a key has no number that the silent source could have given.
func TestSilenceBesideOpaqueSource(t *testing.T) {
	for _, numbered := range []bool{false, true} {
		w := newConflictRing(t)
		w.record(func(o *Origin) { o.Numbered, o.Source = numbered, "kms://http@elsewhere:9600/kms" })
		w.rollHere(t)
		w.silence()
		if _, err := w.reencryptOne(t, w.ownEDEK); (err != nil) != numbered {
			t.Errorf("numbered %t: %v", numbered, err)
		}
	}
}
