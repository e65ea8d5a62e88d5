package keyring

import (
	"context"
	"strings"
	"testing"

	"claviger"
	"claviger/provider/memory"
)

// TestLostKeysDoNotOpenTheBreaker: the question whether a keystore source has a version does not use the key. So keys
// that are lost from the source's token do not open the source's circuit breaker, and its other keys are still served.
func TestLostKeysDoNotOpenTheBreaker(t *testing.T) {
	store := &counting{Provider: memory.New(memory.Config{URI: "pkcs11:token=old", SequentialIDs: true})}
	t.Cleanup(func() { _ = store.Provider.Close() })
	create(t, store, "k")
	names := []string{"k@0"}
	for range 2 * defaultSourceFailures {
		v, err := store.Roll(t.Context(), "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, v.Name)
	}
	l, _ := withSource(t, func(c *Config) { c.Sources = []Source{{Provider: store}} })
	store.before = func(_ context.Context, call string) error {
		if call == "EncryptBlocks" {
			return claviger.Errorf("hsm.EncryptBlocks", claviger.Unavailable, "k", "the token has no such key")
		}
		return nil
	}
	s := l.sources.list[0]
	for _, name := range names {
		if !s.mayHave(t.Context(), claviger.ParseVersion(name)) {
			t.Errorf("%s is reported missing, but is at the source", name)
		}
	}
	if s.mayHave(t.Context(), claviger.ParseVersion("k@99")) {
		t.Error("k@99 is reported, but is not at the source")
	}
	if state := l.Sources()[0].State; state != "closed" {
		t.Errorf("the breaker is %s", state)
	}
	if n := store.encrypts.Load(); n != 0 {
		t.Errorf("%d uses of keys at the source", n)
	}
}

// TestEmptyEDEKIsSentToAKMSOnce: an EDEK without encrypted bytes costs one decrypt call to a KMS source.
func TestEmptyEDEKIsSentToAKMSOnce(t *testing.T) {
	l, far := withSource(t, nil, "k")
	e := claviger.EDEK{Version: "k@0", IV: make([]byte, claviger.IVSize)}
	if dek, err := l.Decrypt(t.Context(), caller("bob"), "k", true, e); err != nil || len(dek) != 0 {
		t.Fatalf("%d bytes, %v", len(dek), err)
	}
	if got := strings.Join(far.calls(), " "); got != "metadata/k bob/k@0/1" {
		t.Errorf("the source got the calls %q", got)
	}
}

// respelling is a provider that returns a version with its name in upper case.
type respelling struct{ *counting }

func (p respelling) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	v, err := p.counting.Version(ctx, version)
	v.Name = strings.ToUpper(v.Name)
	return v, err
}

// TestReencryptFailsForAnUndecryptedEDEK: if neither the primary nor a source decrypted an EDEK of a batch, the batch
// fails. The EDEK must not be replaced by an EDEK of an empty DEK.
func TestReencryptFailsForAnUndecryptedEDEK(t *testing.T) {
	l, far := withSource(t, func(c *Config) { c.Primary = respelling{c.Primary.(*counting)} }, "k")
	cur, err := l.Current(t.Context(), caller("u"), "k")
	if err != nil {
		t.Fatal(err)
	}
	old, _ := newEDEKs(t, l.primary.Provider, cur.Name, 1)
	if _, err := l.Roll(t.Context(), caller("u"), "k", nil); err != nil {
		t.Fatal(err)
	}
	foreign, _ := newEDEKs(t, far.blocks, "k@0", 1)
	out, err := l.ReencryptBatch(t.Context(), caller("hdfs"), "k", append(old, foreign...))
	wantKind(t, err, claviger.Internal)
	if len(out) != 0 {
		t.Errorf("%d EDEKs", len(out))
	}
}
