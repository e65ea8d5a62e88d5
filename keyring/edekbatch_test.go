package keyring

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// TestReencryptBatchCalls counts the calls of the provider: one for each old version, and one for the new version.
// EDEKs of the new version need no call.
func TestReencryptBatchCalls(t *testing.T) {
	for _, olds := range []int{0, 1, 3} {
		for _, untouched := range []int{0, 10} {
			t.Run(fmt.Sprintf("%d old versions, %d untouched", olds, untouched), func(t *testing.T) {
				l := newTestRing(t, nil)
				v := create(t, l.primary, "k")
				var es []claviger.EDEK
				var deks []secret.Bytes
				add := func(version string, n int) {
					e, d := newEDEKs(t, l.primary.Provider, version, n)
					es, deks = append(es, e...), append(deks, d...)
				}
				for range olds {
					add(v.Name, 1000/olds)
					var err error
					if v, err = l.Roll(t.Context(), caller("u"), "k", nil); err != nil {
						t.Fatal(err)
					}
				}
				add(v.Name, untouched)
				// The number of calls does not depend on the order of the versions.
				shuffle(t, len(es), func(i, j int) { es[i], es[j], deks[i], deks[j] = es[j], es[i], deks[j], deks[i] })

				calls, blocks := l.primary.encrypts.Load(), l.primary.blocks.Load()
				out, err := l.ReencryptBatch(t.Context(), caller("nn"), "k", es)
				if err != nil {
					t.Fatal(err)
				}
				want := int64(olds + 1)
				if olds == 0 {
					want = 0
				}
				if got := l.primary.encrypts.Load() - calls; got != want {
					t.Errorf("%d EncryptBlocks calls, want %d", got, want)
				}
				if got := l.primary.blocks.Load() - blocks; got != int64(2*(len(es)-untouched)) {
					t.Errorf("%d blocks for %d EDEKs", got, len(es)-untouched)
				}
				checkReencrypted(t, l.primary.Provider, v.Name, es, out, deks)
			})
		}
	}
}

// TestBatchLooksUpOnce: a batch looks up each distinct version once, in any order, even without a cache.
func TestBatchLooksUpOnce(t *testing.T) {
	l := newTestRing(t, func(c *Config) { c.CacheEnable = false })
	create(t, l.primary, "k")
	var es []claviger.EDEK
	for i := range 3 {
		e, _ := newEDEKs(t, l.primary.Provider, fmt.Sprintf("k@%d", i), 20)
		es = append(es, e...)
		if _, err := l.Roll(t.Context(), caller("u"), "k", nil); err != nil {
			t.Fatal(err)
		}
	}
	shuffle(t, len(es), func(i, j int) { es[i], es[j] = es[j], es[i] })
	if _, err := l.ReencryptBatch(t.Context(), caller("u"), "k", es); err != nil {
		t.Fatal(err)
	}
	if got := l.primary.versions.Load(); got != 3 {
		t.Errorf("the primary got calls for %d versions, want 3", got)
	}
}

func shuffle(t *testing.T, n int, swap func(i, j int)) {
	t.Helper()
	for i := n - 1; i > 0; i-- {
		var b [2]byte
		if _, err := rand.Read(b[:]); err != nil {
			t.Fatal(err)
		}
		swap(i, (int(b[0])<<8|int(b[1]))%(i+1))
	}
}

// checkReencrypted checks that out has the DEKs and IVs of es, in the same order, under the version.
func checkReencrypted(t testing.TB, by provider.BlockEncrypter, version string, es, out []claviger.EDEK,
	deks []secret.Bytes) {
	t.Helper()
	if len(out) != len(es) {
		t.Fatalf("%d EDEKs for %d", len(out), len(es))
	}
	for i, dek := range unwrapped(t, by, out) {
		switch {
		case out[i].Version != version:
			t.Fatalf("EDEK %d is under %s", i, out[i].Version)
		case !bytes.Equal(out[i].IV, es[i].IV):
			t.Fatalf("EDEK %d has another IV", i)
		case !dek.Equal(deks[i]):
			t.Fatalf("EDEK %d has another DEK", i)
		case es[i].Version == version && !bytes.Equal(out[i].Material, es[i].Material):
			t.Fatalf("EDEK %d was changed", i)
		}
	}
}

// TestReencryptBatchRefused: one bad EDEK fails the batch. The first version that is missing or of another key gives
// the error, before any IV is checked.
func TestReencryptBatchRefused(t *testing.T) {
	l := newTestRing(t, func(c *Config) {
		c.Policy = rules(t, append([]string{"key.acl.shut.GENERATE_EEK", "nobody"}, everything...)...)
	})
	create(t, l.primary, "k")
	create(t, l.primary, "k256")
	create(t, l.primary, "shut")
	good, _ := newEDEKs(t, l.primary.Provider, "k@0", 2)
	other, _ := newEDEKs(t, l.primary.Provider, "k256@0", 1)
	shut, _ := newEDEKs(t, l.primary.Provider, "shut@0", 1)
	missing := good[0]
	missing.Version = "k@99"
	badIV := good[0]
	badIV.IV = badIV.IV[1:]
	if _, err := l.Roll(t.Context(), caller("u"), "k", nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		key  string
		es   []claviger.EDEK
		kind claviger.Kind
		text string
	}{
		{"other key", "k", []claviger.EDEK{good[0], other[0], good[1]}, claviger.WrongKey,
			"KeyVersion 'k256@0' does not belong to the key 'k'"},
		{"missing version", "k", []claviger.EDEK{good[0], missing}, claviger.VersionNotFound, ""},
		{"missing, then other key", "k", []claviger.EDEK{missing, other[0]}, claviger.VersionNotFound, ""},
		{"bad IV", "k", []claviger.EDEK{good[0], badIV}, claviger.BadIV, ""},
		{"bad IV, then missing", "k", []claviger.EDEK{badIV, missing}, claviger.VersionNotFound, ""},
		{"missing key", "nokey", []claviger.EDEK{{Version: "nokey@0", IV: make([]byte, 16)}},
			claviger.VersionNotFound, ""},
		{"key not allowed", "shut", shut, claviger.KeyDenied, ""},
		// Hadoop: wrong key
		{"key not allowed, wrong version", "shut", []claviger.EDEK{shut[0], good[0]}, claviger.KeyDenied, ""},
		{"wrong version first", "shut", []claviger.EDEK{good[0], shut[0]}, claviger.WrongKey, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := l.primary.encrypts.Load()
			out, err := l.ReencryptBatch(t.Context(), caller("u"), c.key, c.es)
			wantKind(t, err, c.kind)
			if out != nil {
				t.Errorf("%d EDEKs were returned", len(out))
			}
			if c.text != "" && text(t, err) != c.text {
				t.Errorf("%q", text(t, err))
			}
			if got := l.primary.encrypts.Load() - calls; got != 0 {
				t.Errorf("%d EncryptBlocks calls", got)
			}
		})
	}
	l.audit.take()
	if out, err := l.ReencryptBatch(t.Context(), caller("u"), "shut", nil); err != nil || out == nil || len(out) != 0 {
		t.Errorf("empty batch: %v, %v", out, err)
	}
	if got := l.audit.take(); len(got) != 1 || got[0] != "OK[op=REENCRYPT_EEK_BATCH, key=shut, user=u] reencrypted 0 "+
		"keys" {
		t.Errorf("audit %q", got)
	}
}

// TestReencryptWithoutKeyAuthorization: the errors have Hadoop's order, but no DEK of one key is wrapped under another
// key.
func TestReencryptWithoutKeyAuthorization(t *testing.T) {
	l := newTestRing(t, func(c *Config) { c.KeyAuthorization = false })
	create(t, l.primary, "k")
	create(t, l.primary, "other")
	es, deks := l.edeks(t, "k", 1)
	u := caller("u")
	_, err := l.ReencryptBatch(t.Context(), u, "zz", es)
	wantKind(t, err, claviger.KeyNotFound)
	_, err = l.ReencryptBatch(t.Context(), u, "other", es)
	wantKind(t, err, claviger.WrongKey)
	_, err = l.Reencrypt(t.Context(), u, "", false, es[0])
	wantKind(t, err, claviger.WrongKey)
	if _, err := l.Roll(t.Context(), u, "k", nil); err != nil {
		t.Fatal(err)
	}
	out, err := l.Reencrypt(t.Context(), u, "k", true, es[0])
	if err != nil {
		t.Fatal(err)
	}
	checkReencrypted(t, l.primary.Provider, "k@1", es, []claviger.EDEK{out}, deks)
}

// TestBatchModel compares the results of random batches with the expected results.
func TestBatchModel(t *testing.T) {
	l := newTestRing(t, nil)
	names := []string{create(t, l.primary, "k").Name}
	for range 4 {
		v, err := l.Roll(t.Context(), caller("u"), "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, v.Name)
	}
	rapid.Check(t, func(rt *rapid.T) {
		var es []claviger.EDEK
		var deks []secret.Bytes
		old := map[string]bool{}
		for range rapid.IntRange(0, 30).Draw(rt, "n") {
			v := rapid.SampledFrom(names).Draw(rt, "version")
			e, d := newEDEKs(t, l.primary.Provider, v, 1)
			es, deks = append(es, e...), append(deks, d...)
			if v != names[len(names)-1] {
				old[v] = true
			}
		}
		calls := l.primary.encrypts.Load()
		out, err := l.ReencryptBatch(t.Context(), caller("u"), "k", es)
		if err != nil {
			rt.Fatal(err)
		}
		want := int64(len(old))
		if want > 0 {
			want++
		}
		if got := l.primary.encrypts.Load() - calls; got != want {
			rt.Fatalf("%d EncryptBlocks calls for %d old versions", got, len(old))
		}
		checkReencrypted(t, l.primary.Provider, names[len(names)-1], es, out, deks)
	})
}
