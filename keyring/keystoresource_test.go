package keyring

import (
	"context"
	"strings"
	"testing"

	"claviger"
	"claviger/provider/memory"
)

// TestLostVersionsOfAKeystore: whether a keystore source has a version is read without a use of the key. Keys that its
// token has lost do not open the breaker, so its other keys are served.
func TestLostVersionsOfAKeystore(t *testing.T) {
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
			t.Errorf("%s is at the source", name)
		}
	}
	if s.mayHave(t.Context(), claviger.ParseVersion("k@99")) {
		t.Error("k@99 is not at the source")
	}
	if state := l.Sources()[0].State; state != "closed" {
		t.Errorf("the breaker is %s", state)
	}
	if n := store.encrypts.Load(); n != 0 {
		t.Errorf("%d uses of keys at the source", n)
	}
}

// TestNoMaterialCostsAKMSOneCall: a KMS source is called once for an EDEK without material.
func TestNoMaterialCostsAKMSOneCall(t *testing.T) {
	l, far := withSource(t, nil, "k")
	e := claviger.EDEK{Version: "k@0", IV: make([]byte, claviger.IVSize)}
	if dek, err := l.Decrypt(t.Context(), caller("bob"), "k", true, e); err != nil || len(dek) != 0 {
		t.Fatalf("%d bytes, %v", len(dek), err)
	}
	if got := strings.Join(far.calls(), " "); got != "metadata/k bob/k@0/1" {
		t.Errorf("the source got the calls %q", got)
	}
}

// respelling is a provider that returns a version under another spelling of its name.
type respelling struct{ *counting }

func (p respelling) Version(ctx context.Context, version string) (claviger.KeyVersion, error) {
	v, err := p.counting.Version(ctx, version)
	v.Name = strings.ToUpper(v.Name)
	return v, err
}

// TestUnopenedIsNotWrapped: an EDEK that nothing opened is not replaced by an EDEK of an empty DEK.
func TestUnopenedIsNotWrapped(t *testing.T) {
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
