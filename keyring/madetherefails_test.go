package keyring

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
)

// TestUnreadJournalDecidesNothing: while the journal cannot be read, no source is
// chosen for a version that a migration may have made.
func TestUnreadJournalDecidesNothing(t *testing.T) {
	l := newFormerPrimaryRing(t, keystoreFirst)
	l.origins.history = &journal{fail: errInjected}
	v := claviger.ParseVersion(formerVersion)
	if uri, err := l.formerPrimaryOf(t.Context(), v); uri != "" || !errors.Is(err, errInjected) {
		t.Errorf("%q, %v", uri, err)
	}
	twice, err := l.ofTwoSources(t.Context(), l.sources.list[0], useDecrypt, v, keystoreURI)
	if twice != nil || !errors.Is(err, errInjected) {
		t.Errorf("%v, %v", twice, err)
	}
}

// countsMore makes the source report one version more than it has. A real source
// does so while one of its nodes has not seen a roll yet.
func (l *formerPrimaryRing) countsMore(t *testing.T) {
	t.Helper()
	m, err := l.far.Metadata(t.Context(), formerKey)
	if err != nil {
		t.Fatal(err)
	}
	counted := *m[0]
	counted.Versions++
	for _, s := range l.sources.list {
		if s.URI() == farURI {
			s.keys.put(formerKey, &counted)
		}
	}
}

// TestOtherSourceIsNotKnown: a former primary has made an EDEK, and another source
// may have a version with the name of the EDEK's version. The EDEK is opened. It is
// re-encrypted only after that source has answered for some time that it has no
// such version.
func TestOtherSourceIsNotKnown(t *testing.T) {
	l := newFormerPrimaryRing(t, keystoreFirst)
	es, deks := newEDEKs(t, l.keystore.blocks, formerVersion, 1)
	decrypts := func(when string) {
		t.Helper()
		if dek, err := l.Decrypt(t.Context(), caller("u"), formerKey, true, es[0]); err != nil || !dek.Equal(deks[0]) {
			t.Errorf("%s: decrypt: %v", when, err)
		}
	}
	reencrypts := func(when, want string) {
		t.Helper()
		_, err := l.Reencrypt(t.Context(), caller("u"), formerKey, true, es[0])
		if (err == nil) != (want == "") || err != nil && (!claviger.Is(err, claviger.SourceUnreachable) ||
			!strings.Contains(err.Error(), want)) {
			t.Errorf("%s: re-encryption: %v", when, err)
		}
	}
	l.far.setFail(failing(claviger.Unavailable, "connection refused"))
	decrypts("no answer")
	reencrypts("no answer", "connection refused")
	l.far.setFail(nil)
	l.countsMore(t)
	decrypts("counted")
	reencrypts("counted", "not re-encrypted yet")
	for _, s := range l.sources.list {
		s.absent.Store(formerVersion, time.Now().Add(-absentSettles))
	}
	reencrypts("settled", "")
}

// TestMadeElsewhere: madeElsewhere returns the versions of the key below a number
// that were not made at the source itself, each once.
func TestMadeElsewhere(t *testing.T) {
	all := []Origin{
		{Key: "k", Source: "a", MadeThere: []string{"k@1", "k@2", "k@7", "k@name"}},
		{Key: "k", Source: "b", MadeThere: []string{"k@2", "k@3"}},
		{Key: "k", Source: "there", MadeThere: []string{"k@4"}},
		{Key: "other", Source: "a", MadeThere: []string{"other@1"}},
	}
	want := []string{"k@1", "k@2", "k@3"}
	if got := madeElsewhere(all, "there", "k", 5); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
