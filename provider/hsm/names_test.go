package hsm_test

import (
	"errors"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/provider"
	"claviger/provider/hsm"
)

// callByName returns the errors of every request that fails if there is no key of that name.
func callByName(t *testing.T, p *hsm.Provider, key string) map[string]error {
	t.Helper()
	errs := map[string]error{}
	_, errs["current"] = p.Current(t.Context(), key)
	_, errs["roll"] = p.Roll(t.Context(), key, nil)
	errs["delete"] = p.Delete(t.Context(), key)
	return errs
}

// wantLost demands that each request for a key by its name gets Unavailable.
func wantLost(t *testing.T, p *hsm.Provider, key, version string) {
	t.Helper()
	errs := callByName(t, p, key)
	_, errs["metadata"] = p.Metadata(t.Context(), key)
	_, errs["versions"] = p.Versions(t.Context(), key)
	_, errs["describe"] = p.Describe(t.Context(), key)
	for what, err := range errs {
		if !claviger.Is(err, claviger.Unavailable) || !errors.Is(err, provider.ErrLost) ||
			!strings.Contains(err.Error(), version) || !strings.Contains(err.Error(), "claviger hsm adopt") {
			t.Errorf("%s of the lost key %s: %v", what, key, err)
		}
	}
}

// wantNoKey demands that each request for a key by its name gets KeyNotFound, or no entry.
func wantNoKey(t *testing.T, p *hsm.Provider, key string) {
	t.Helper()
	for what, err := range callByName(t, p, key) {
		if !claviger.Is(err, claviger.KeyNotFound) {
			t.Errorf("%s of %s: %v", what, key, err)
		}
	}
	if m, err := p.Metadata(t.Context(), key); err != nil || m[0] != nil {
		t.Errorf("metadata of %s: %+v, %v", key, m, err)
	}
	if vs, err := p.Versions(t.Context(), key); err != nil || len(vs) != 0 {
		t.Errorf("versions of %s: %+v, %v", key, vs, err)
	}
}

// TestLostNameWhileServing: a name that the store has lost is looked up on the token only if the store does not have
// it, and once a minute. Deleted keys are not lost. Names of sources are answered while the token does not answer.
func TestLostNameWhileServing(t *testing.T) {
	for _, soft := range []string{"true", "false"} {
		b := newSite(t)
		b.soft = soft
		b.create(t, "k")
		b.generate(t, "other@7") // not the number that would be given next, so only the survey finds it
		p := b.mustOpen(t)
		create(t, p, "gone")
		if err := p.Delete(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
		wantNoKey(t, p, "gone")
		wantNoKey(t, p, "never")
		wantLost(t, p, "other", "other@7")
		b.generate(t, "fresh@0")
		wantLost(t, p, "fresh", "fresh@0")

		searches := func(what string, want int, keys ...string) {
			t.Helper()
			b.meter.Reset()
			for _, key := range keys {
				for range 3 {
					_, _ = p.Current(t.Context(), key)
				}
			}
			if n := b.meter.Count("FindObjectsInit"); n != want {
				t.Errorf("%s: %d searches, want %d", what, n, want)
			}
		}
		searches("a key that is there", 0, "k")
		searches("a key of a source", 1, "elsewhere")
		searches("names that were asked for before", 0, "fresh", "other", "never", "gone", "elsewhere")

		b.meter.Fail("FindObjectsInit", 100, p11.Error(p11.CKR_FUNCTION_CANCELED))
		wantNoKey(t, p, "away")
		searches("a name, while the token does not answer", 0, "away")
		b.meter.Heal()
		mustClose(t, p)
	}
}

// TestSurveyedNamesWhileAway: a lost name that a survey has found gets Unavailable also while the token does not
// answer.
func TestSurveyedNamesWhileAway(t *testing.T) {
	b := newSite(t)
	b.create(t, "k")
	b.generate(t, "other@7")
	p := b.mustOpen(t)
	b.meter.Fail("FindObjectsInit", 100, p11.Error(p11.CKR_FUNCTION_CANCELED))
	if _, err := p.Current(t.Context(), "other"); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("while the token does not answer: %v", err)
	}
	b.meter.Heal()
	wantLost(t, p, "other", "other@7")
	mustClose(t, p)
}
