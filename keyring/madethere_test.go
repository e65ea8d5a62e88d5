package keyring

import (
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
)

// TestMadeAtAFormerPrimary: a key was taken over into a keystore, and later here, with the
// keystore as a source. The source that it came from then rolls to the number that it got there.
// No EDEK of that name is opened or re-encrypted by a guess, in whichever order the two are
// asked, nor where the keystore is no source, until an operator decides.
func TestMadeAtAFormerPrimary(t *testing.T) {
	for _, order := range []string{"keystore first", "keystore last", "keystore not named"} {
		t.Run(order, func(t *testing.T) { madeAtAFormerPrimary(t, order) })
	}
}

func madeAtAFormerPrimary(t *testing.T, order string) {
	const key, version, place = "pin", "pin@1", "jceks://file@/var/lib/claviger/kms.keystore"
	ctx := t.Context()
	far := newFarKMS(t, farURI, key)
	file := memory.New(memory.Config{URI: place})
	t.Cleanup(func() { _ = file.Close() })
	store := &farKMS{Provider: file, blocks: file, uri: place}
	ms, err := far.Metadata(ctx, key)
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
	imports(store.Provider, 1)
	imports(primary, 2)
	of := Origin{Key: key, TakenOver: true, Created: ms[0].Created, ACLName: ms[0].ACLName(), Numbered: true}
	there, here := of, of
	here.Source, here.Counted = farURI, 1
	there.Source, there.Counted, there.MadeThere = place, 2, []string{version}
	l := newLab(t, func(c *Config) {
		c.Primary, c.Reencryption = primary, true
		c.History = &journal{list: []Origin{here, there}}
		switch order {
		case "keystore first":
			c.Sources = []Source{{Provider: store}, {Provider: far, Reencryption: true}}
		case "keystore last":
			c.Sources = []Source{{Provider: far, Reencryption: true}, {Provider: store}}
		default:
			c.Sources = []Source{{Provider: far, Reencryption: true}}
		}
	})
	ours, deks := made(t, store.blocks, version, 1)
	opens := func(when string, e claviger.EDEK, dek []byte) {
		t.Helper()
		if got, err := l.Decrypt(ctx, caller("u"), key, true, e); err != nil || !got.Equal(dek) {
			t.Errorf("%s: decrypt: %v", when, err)
		}
		out, err := l.Reencrypt(ctx, caller("u"), key, true, e)
		if err != nil {
			t.Errorf("%s: re-encryption: %v", when, err)
			return
		}
		if got, err := l.Decrypt(ctx, caller("u"), key, true, out); err != nil || !got.Equal(dek) {
			t.Errorf("%s: after the re-encryption: %v", when, err)
		}
	}
	if order != "keystore not named" {
		opens("before the roll", ours[0], deks[0])
	}
	if v, err := far.Roll(ctx, key, nil); err != nil || v.Name != version {
		t.Fatal(v.Name, err)
	}
	l.forget(key) // what a source says is believed for a while
	theirs, theirDEKs := made(t, far.blocks, version, 1)
	refuses := func(when string) {
		t.Helper()
		for what, e := range map[string]claviger.EDEK{"the keystore's": ours[0], "the source's": theirs[0]} {
			_, err := l.Decrypt(ctx, caller("u"), key, true, e)
			if !claviger.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(),
				"claviger.migration.theirs to "+version) {
				t.Errorf("%s: decrypt of %s: %v", when, what, err)
			}
			if _, err = l.Reencrypt(ctx, caller("u"), key, true, e); !claviger.Is(err, claviger.Invalid) {
				t.Errorf("%s: re-encryption of %s: %v", when, what, err)
			}
		}
	}
	refuses("rolled")
	if err := l.CompareSources(ctx); err != nil {
		t.Error(err)
	}
	err = l.CheckConflicts(ctx)
	if err == nil || !strings.Contains(err.Error(), version+" of "+farURI) ||
		!strings.Contains(err.Error(), "claviger.migration.theirs to "+version) {
		t.Errorf("readiness: %v", err)
	}
	refuses("compared")
	if order != "keystore not named" {
		far.setFail(failing(claviger.Unavailable, "connection refused"))
		if _, err := l.Decrypt(ctx, caller("u"), key, true, ours[0]); err == nil {
			t.Error("the source is silent, and the conflict is forgotten")
		}
		far.setFail(nil)
	}
	l.cfg.Theirs = map[string]bool{version: true}
	for _, s := range l.sources.list { // the failure above has it left alone
		s.keys.drop(key)
	}
	opens("by the operator's word", theirs[0], theirDEKs[0])
	if err := l.CompareSources(ctx); err != nil || l.CheckConflicts(ctx) != nil {
		t.Errorf("decided: %v, %v", err, l.CheckConflicts(ctx))
	}
}
