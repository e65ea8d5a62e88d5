package keyring

import (
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
)

// TestMadeAtAFormerPrimary: a key was migrated from a KMS into a keystore, which was the primary then. Later it was
// migrated into today's primary, and the keystore became a source. Then the KMS rolls the key, and the new version has
// the name of the version in the keystore. An EDEK of that name may belong to either, so none is opened or re-encrypted
// until an operator decides. It does not matter which source comes first, or whether the keystore is a source.
func TestMadeAtAFormerPrimary(t *testing.T) {
	for _, order := range []string{keystoreFirst, keystoreLast, noKeystore} {
		t.Run(order, func(t *testing.T) { madeAtAFormerPrimary(t, order) })
	}
}

// The orders of the sources in TestMadeAtAFormerPrimary.
const (
	keystoreFirst = "keystore first"
	keystoreLast  = "keystore last"
	noKeystore    = "keystore not named"
)

// The key of TestMadeAtAFormerPrimary, its version in two places, and the URI of the keystore.
const formerKey, formerVersion, keystoreURI = "pin", "pin@1", "jceks://file@/var/lib/claviger/kms.keystore"

// formerPrimaryRing is a testRing whose key was taken over from far into a keystore, and later into the primary.
type formerPrimaryRing struct {
	*testRing
	far, keystore *farKMS
}

func newFormerPrimaryRing(t *testing.T, order string) *formerPrimaryRing {
	t.Helper()
	ctx := t.Context()
	far := newFarKMS(t, farURI, formerKey)
	file := memory.New(memory.Config{URI: keystoreURI})
	t.Cleanup(func() { _ = file.Close() })
	keystore := &farKMS{Provider: file, blocks: file, uri: keystoreURI}
	ms, err := far.Metadata(ctx, formerKey)
	if err != nil {
		t.Fatal(err)
	}
	primary := memory.New(memory.Config{Sealed: true})
	t.Cleanup(func() { _ = primary.Close() })
	imports := func(into any, first int) {
		t.Helper()
		importer, _ := into.(provider.Importer)
		if _, err := importer.Import(ctx, *ms[0], 1, first, nil); err != nil {
			t.Fatal(err)
		}
	}
	imports(keystore.Provider, 1)
	imports(primary, 2)
	of := Origin{Key: formerKey, TakenOver: true, Created: ms[0].Created, ACLName: ms[0].ACLName(), Numbered: true}
	there, here := of, of
	here.Source, here.Counted = farURI, 1
	there.Source, there.Counted, there.MadeThere = keystoreURI, 2, []string{formerVersion}
	l := newTestRing(t, func(c *Config) {
		c.Primary, c.Reencryption = primary, true
		c.History = &journal{list: []Origin{here, there}}
		switch order {
		case keystoreFirst:
			c.Sources = []Source{{Provider: keystore}, {Provider: far, Reencryption: true}}
		case keystoreLast:
			c.Sources = []Source{{Provider: far, Reencryption: true}, {Provider: keystore}}
		default:
			c.Sources = []Source{{Provider: far, Reencryption: true}}
		}
	})
	return &formerPrimaryRing{l, far, keystore}
}

// opens checks that the EDEK is opened and re-encrypted with the right DEK.
func (l *formerPrimaryRing) opens(t *testing.T, when string, e claviger.EDEK, dek []byte) {
	t.Helper()
	ctx := t.Context()
	if got, err := l.Decrypt(ctx, caller("u"), formerKey, true, e); err != nil || !got.Equal(dek) {
		t.Errorf("%s: decrypt: %v", when, err)
	}
	out, err := l.Reencrypt(ctx, caller("u"), formerKey, true, e)
	if err != nil {
		t.Errorf("%s: re-encryption: %v", when, err)
		return
	}
	if got, err := l.Decrypt(ctx, caller("u"), formerKey, true, out); err != nil || !got.Equal(dek) {
		t.Errorf("%s: after the re-encryption: %v", when, err)
	}
}

// refuses checks that the EDEKs are neither opened nor re-encrypted, and that the error has the cure.
func (l *formerPrimaryRing) refuses(t *testing.T, when string, edeks map[string]claviger.EDEK) {
	t.Helper()
	for what, e := range edeks {
		_, err := l.Decrypt(t.Context(), caller("u"), formerKey, true, e)
		if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(),
			"claviger.migration.theirs to "+formerVersion) {
			t.Errorf("%s: decrypt of %s: %v", when, what, err)
		}
		_, err = l.Reencrypt(t.Context(), caller("u"), formerKey, true, e)
		if !claviger.Is(err, claviger.Invalid) {
			t.Errorf("%s: re-encryption of %s: %v", when, what, err)
		}
	}
}

func madeAtAFormerPrimary(t *testing.T, order string) {
	ctx := t.Context()
	l := newFormerPrimaryRing(t, order)
	inKeystore, deks := newEDEKs(t, l.keystore.blocks, formerVersion, 1)
	if order != noKeystore {
		l.opens(t, "before the roll", inKeystore[0], deks[0])
	}
	if v, err := l.far.Roll(ctx, formerKey, nil); err != nil || v.Name != formerVersion {
		t.Fatal(v.Name, err)
	}
	l.forget(formerKey) // the answers of a source are cached for some time
	atSource, sourceDEKs := newEDEKs(t, l.far.blocks, formerVersion, 1)
	edeks := map[string]claviger.EDEK{"the keystore's": inKeystore[0], "the source's": atSource[0]}
	l.refuses(t, "rolled", edeks)
	if err := l.CompareSources(ctx); err != nil {
		t.Error(err)
	}
	err := l.CheckConflicts(ctx)
	if err == nil || !strings.Contains(err.Error(), formerVersion+" of "+farURI) ||
		!strings.Contains(err.Error(), "claviger.migration.theirs to "+formerVersion) {
		t.Errorf("readiness: %v", err)
	}
	l.refuses(t, "compared", edeks)
	if order != noKeystore {
		l.far.setFail(failing(claviger.Unavailable, "connection refused"))
		if _, err := l.Decrypt(ctx, caller("u"), formerKey, true, inKeystore[0]); err == nil {
			t.Error("the source does not answer, and the conflict is forgotten")
		}
		l.far.setFail(nil)
	}
	l.cfg.SourceVersions = map[string]bool{formerVersion: true}
	for _, s := range l.sources.list { // the failure above was cached
		s.keys.drop(formerKey)
	}
	l.opens(t, "after the operator's decision", atSource[0], sourceDEKs[0])
	if err := l.CompareSources(ctx); err != nil || l.CheckConflicts(ctx) != nil {
		t.Errorf("decided: %v, %v", err, l.CheckConflicts(ctx))
	}
}
