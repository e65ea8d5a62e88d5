package hsm_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger"
	"claviger/internal/logtest"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

// exchangeObjects gives versions other keys of the same CKA_ID and label.
func (b *testSite) exchangeObjects(t *testing.T, versions ...string) {
	t.Helper()
	b.destroyObjects(t, versions...)
	for _, v := range versions {
		id, label := b.object(t, v)
		b.withToken(t, func(tok *pkcs11.Token) {
			if err := tok.GenerateKey(t.Context(), id, label, 256); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestMostValuesWrong: if most keys on the token are other keys than the metastore says, no key is made or rolled, in
// a running server and from the start. A key with the right value is served.
func TestMostValuesWrong(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	var all []string
	for i := range 5 {
		create(t, p, fmt.Sprintf("k%d", i))
		all = append(all, fmt.Sprintf("k%d@0", i))
	}
	b.exchangeObjects(t, all...)
	wantStopped(t, p, "k0", "of 5 key versions that were compared, 5 have another check value", "k0@0",
		"restore the token or the metastore", "claviger hsm adopt --rebind")
	mustClose(t, p)
	if next, err := b.open(t.Context()); err == nil {
		mustClose(t, next)
		t.Error("the provider started although no key is right")
	}

	// Of five keys one is right again, as on a token on which a key was made after the exchange.
	b = newSite(t)
	p = b.mustOpen(t)
	for i := range 5 {
		create(t, p, fmt.Sprintf("k%d", i))
	}
	b.exchangeObjects(t, all[:4]...)
	mustClose(t, p)
	p = b.mustOpen(t)
	wantStopped(t, p, "k4", "of 5 key versions that were compared, 4 have another check value")
	keystream(t, p, "k4@0")
	mustClose(t, p)
}

// TestFewValuesWrong: one key of several that has the wrong value stops no creation. The periodic check finds it, and
// names it.
func TestFewValuesWrong(t *testing.T) {
	b := newSite(t)
	log := new(logtest.Buffer)
	b.log = slog.New(slog.NewTextHandler(log, nil))
	p := b.mustOpen(t)
	for i := range 4 {
		create(t, p, fmt.Sprintf("k%d", i))
	}
	b.exchangeObjects(t, "k1@0")
	if err := p.Watch(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.CheckKeys(t.Context()); !claviger.Is(err, claviger.Unavailable) ||
		!strings.Contains(err.Error(), "k1@0") {
		t.Errorf("the wrong key is not named: %v", err)
	}
	create(t, p, "young")
	if text := log.String(); strings.Contains(text, "no longer fit together") {
		t.Errorf("one wrong key is a misfit: %s", text)
	}
	mustClose(t, p)
}

// TestValuesNotCompared: while the token encrypts with no key, a comparison does not end a misfit of check values.
// Otherwise the next key would be made on the wrong token.
func TestValuesNotCompared(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	var all []string
	for i := range 5 {
		create(t, p, fmt.Sprintf("k%d", i))
		all = append(all, fmt.Sprintf("k%d@0", i))
	}
	b.exchangeObjects(t, all...)
	wantStopped(t, p, "k0", "of 5 key versions that were compared, 5 have another check value")
	b.meter.Fail("Encrypt", 1000, p11.Error(p11.CKR_DATA_INVALID))
	err := p.SurveyNow(t.Context())
	if err == nil || !strings.Contains(err.Error(), "did not encrypt with 5 of the 5 keys") {
		t.Errorf("a comparison without a result: %v", err)
	}
	b.meter.Heal()
	wantStopped(t, p, "k0", "of 5 key versions that were compared, 5 have another check value")
	mustClose(t, p)
}

// TestInspectWrongKeys: a command that shows what is on the token logs no error. It names a missing version in its
// result, and a version with a wrong check value in its misfit.
func TestInspectWrongKeys(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	for i := range 4 {
		create(t, p, fmt.Sprintf("k%d", i))
	}
	mustClose(t, p)
	log := new(logtest.Buffer)
	b.log, b.access = slog.New(slog.NewTextHandler(log, nil)), hsm.Inspect
	b.destroyObjects(t, "k1@0")
	p = b.mustOpen(t)
	if err := p.Misfit(); err != nil {
		t.Errorf("a version is missing: %v", err)
	}
	if h, err := p.Holdings(t.Context()); err != nil || len(h.Lost) != 1 {
		t.Errorf("%+v, %v", h, err)
	}
	mustClose(t, p)
	b.exchangeObjects(t, "k2@0")
	p = b.mustOpen(t)
	if err := p.Misfit(); err == nil || !strings.Contains(err.Error(), "k2@0") ||
		!strings.Contains(err.Error(), "of 1 of those that were compared") {
		t.Errorf("a version is wrong: %v", err)
	}
	mustClose(t, p)
	if text := log.String(); strings.Contains(text, "level=ERROR") {
		t.Errorf("logged: %s", text)
	}
}

// TestOnlyServersVerifyLater: a command verifies no versions in the background, and so logs no error about a version
// that is missing. A server that starts later does, and its log is awaited here.
func TestOnlyServersVerifyLater(t *testing.T) {
	b := newSite(t)
	for i := range 3 {
		b.create(t, fmt.Sprintf("k%d", i))
	}
	b.destroyObjects(t, "k1@0")
	logs := map[hsm.Access]*logtest.Buffer{}
	for _, access := range []hsm.Access{hsm.Inspect, hsm.Serve} {
		logs[access] = new(logtest.Buffer)
		b.log, b.access = slog.New(slog.NewTextHandler(logs[access], nil)), access
		p := b.mustOpen(t)
		defer mustClose(t, p)
	}
	const line = "a key version on the token is not as the metastore says"
	waitUntil(t, "the server verifies the missing version", func() error {
		if text := logs[hsm.Serve].String(); !strings.Contains(text, line) {
			return errors.New(text)
		}
		return nil
	})
	if text := logs[hsm.Inspect].String(); strings.Contains(text, "level=ERROR") {
		t.Errorf("the command logs %s", text)
	}
}

// TestValueRightAgain: a version whose check value is right again is compared like all others from then on.
func TestValueRightAgain(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "k")
	p.SetWrong("k@0")
	if err := p.Watch(t.Context()); err != nil || p.WasWrong("k@0") {
		t.Errorf("it counts as wrong: %v, %v", p.WasWrong("k@0"), err)
	}
	mustClose(t, p)
}

// TestWrongValueUnbound: if the object that binds token and metastore is gone, one wrong check value is enough for a
// misfit. The object is not made again, because this may be another token.
func TestWrongValueUnbound(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	for i := range 4 {
		create(t, p, fmt.Sprintf("k%d", i))
	}
	b.exchangeObjects(t, "k1@0")
	b.withToken(t, func(tok *pkcs11.Token) {
		list, err := tok.ListData(t.Context(), "claviger")
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		if err := tok.DestroyData(t.Context(), "claviger", list[0].Label); err != nil {
			t.Fatal(err)
		}
	})
	wantStopped(t, p, "k0", "of 4 key versions that were compared, 1 have another check value")
	mustClose(t, p)
}

// TestValuesOfAStep: before a key is made, no more than three check values are compared, so that a creation does not
// take long. The periodic check compares the values of more keys.
func TestValuesOfAStep(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	for i := range 20 {
		create(t, p, fmt.Sprintf("k%d", i))
	}
	mustClose(t, p)
	b.access = hsm.Make // verifies nothing in the background
	p = b.mustOpen(t)
	for what, c := range map[string]struct {
		check func(context.Context) error
		want  int
	}{"a step": {p.CheckStep, 3}, "the periodic check": {p.CheckNext, 16}} {
		before := b.meter.Count("Encrypt")
		if err := c.check(t.Context()); err != nil {
			t.Error(err)
		}
		if n := b.meter.Count("Encrypt") - before; n != c.want {
			t.Errorf("%s compares %d check values, want %d", what, n, c.want)
		}
	}
	mustClose(t, p)
}

// TestValueNotComparedIsNoChange: while the token does not encrypt with a key, its check value counts as it did before,
// wrong or right.
func TestValueNotComparedIsNoChange(t *testing.T) {
	b := newSite(t)
	p := b.mustOpen(t)
	create(t, p, "k")
	for _, wrong := range []bool{false, true} {
		if wrong {
			p.SetWrong("k@0")
		}
		b.meter.Fail("Encrypt", 1000, p11.Error(p11.CKR_DATA_INVALID))
		if differs, err := p.ValueDiffers(t.Context(), "k@0"); err != nil || differs || p.WasWrong("k@0") != wrong {
			t.Errorf("wrong before: %t; differs: %t, %v; wrong now: %t", wrong, differs, err, p.WasWrong("k@0"))
		}
		b.meter.Heal()
	}
	mustClose(t, p)
}
