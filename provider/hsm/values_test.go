package hsm_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"claviger"
	"claviger/internal/logtest"
	"claviger/pkcs11"
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
