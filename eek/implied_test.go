package eek_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"claviger"
	"claviger/eek"
)

// TestImpliedOpens: each implied EDEK opens to the DEK that AES in counter mode gives, and that DEK, wrapped with the
// same IV, is the EDEK again. So each material is the EDEK of exactly one DEK.
func TestImpliedOpens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, names := drawKeys(t, 1)
		random, dekLen := bytesOf(4096).Draw(t, "random"), rapid.SampledFrom([]int{16, 24, 32, 50}).Draw(t, "length")
		n := rapid.IntRange(0, 40).Draw(t, "n")
		edeks, err := eek.Implied(names[0], dekLen, n, bytes.NewReader(random))
		if err != nil || len(edeks) != n || len(k.calls) > 0 {
			t.Fatalf("%d of %d EDEKs, %v", len(edeks), n, err)
		}
		deks, err := eek.Unwrap(t.Context(), k, edeks)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range edeks {
			if e.Version != names[0] || len(e.IV) != claviger.IVSize || len(e.Material) != dekLen {
				t.Fatalf("EDEK %d: %+v", i, e)
			}
			if !bytes.Equal(deks[i], ctr(t, k.material[names[0]], e.IV, e.Material)) {
				t.Fatalf("EDEK %d opens to another DEK than in counter mode", i)
			}
			if back := ctr(t, k.material[names[0]], e.IV, deks[i]); !bytes.Equal(back, e.Material) {
				t.Fatalf("EDEK %d: its DEK is wrapped to %x, not to %x", i, back, e.Material)
			}
		}
	})
}

// TestImpliedIsRandom: IVs and materials are the bytes of the generator, each used once and as it is. With the system's
// generator, the DEKs are all different, and each value of a byte is about equally frequent.
func TestImpliedIsRandom(t *testing.T) {
	const dekLen, n = 32, 4096
	given := make([]byte, n*(claviger.IVSize+dekLen))
	for i := range given {
		given[i] = byte(i * i >> 4)
	}
	edeks, err := eek.Implied("k@0", dekLen, n, bytes.NewReader(given))
	if err != nil {
		t.Fatal(err)
	}
	var used []byte
	for _, e := range edeks {
		used = append(append(used, e.IV...), e.Material...)
	}
	if !bytes.Equal(used, given) {
		t.Error("the generator's bytes were changed, left out or used again")
	}
	k := &keys{material: map[string][]byte{"k@0": bytes.Repeat([]byte{3}, 32)}}
	if edeks, err = eek.Implied("k@0", dekLen, n, nil); err != nil {
		t.Fatal(err)
	}
	deks, err := eek.Unwrap(t.Context(), k, edeks)
	if err != nil {
		t.Fatal(err)
	}
	seen, counts := map[string]bool{}, [256]float64{}
	for _, dek := range deks {
		seen[string(dek)] = true
		for _, b := range dek {
			counts[b]++
		}
	}
	if len(seen) != n {
		t.Errorf("%d different DEKs of %d", len(seen), n)
	}
	// The sum has 255 degrees of freedom: mean 255, standard deviation 22.6. A result above 480 has a probability of
	// about 1e-15.
	sum, expected := 0.0, float64(n*dekLen)/256
	for _, c := range counts {
		sum += (c - expected) * (c - expected) / expected
	}
	if sum > 480 {
		t.Errorf("chi-square of the DEKs' bytes: %v", sum)
	}
}

// TestKnownGenerator: an attacker who knows what the generator returns knows the DEKs of Generate. With Implied the
// attacker knows only the EDEKs: their DEKs depend on the key.
func TestKnownGenerator(t *testing.T) {
	const dekLen, n = 32, 10
	known := bytes.Repeat([]byte("not random at all; "), 100)
	k := &keys{material: map[string][]byte{"a@0": bytes.Repeat([]byte{1}, 32), "b@0": bytes.Repeat([]byte{2}, 32)}}
	opened := func(edeks []claviger.EDEK, err error) (deks []byte) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		list, err := eek.Unwrap(t.Context(), k, edeks)
		if err != nil {
			t.Fatal(err)
		}
		for _, dek := range list {
			deks = append(deks, dek...)
		}
		return deks
	}
	made := func(version string) []byte {
		return opened(eek.Generate(t.Context(), k, version, dekLen, n, bytes.NewReader(known)))
	}
	implied := func(version string) []byte {
		return opened(eek.Implied(version, dekLen, n, bytes.NewReader(known)))
	}
	if !bytes.Equal(made("a@0"), made("b@0")) || !bytes.Contains(known, made("a@0")[:dekLen]) {
		t.Error("the DEKs of Generate are not those of the generator")
	}
	a, b := implied("a@0"), implied("b@0")
	for at := 0; at < n*dekLen; at += dekLen {
		if dek := a[at : at+dekLen]; bytes.Contains(known, dek) || bytes.Equal(dek, b[at:at+dekLen]) {
			t.Errorf("DEK %d of Implied does not depend on the key", at/dekLen)
		}
	}
}

// TestImpliedRefuses: no EDEK is made for a DEK without a length, or when the generator fails.
func TestImpliedRefuses(t *testing.T) {
	for _, dekLen := range []int{-1, 0} {
		if edeks, err := eek.Implied("k@0", dekLen, 1, nil); !claviger.Is(err, claviger.Invalid) || edeks != nil {
			t.Errorf("a DEK of %d bytes: %v, %v", dekLen, edeks, err)
		}
	}
	broken := errors.New("no entropy")
	edeks, err := eek.Implied("k@0", 16, 2, iotest.ErrReader(broken))
	if !errors.Is(err, broken) || !claviger.Is(err, claviger.Internal) || edeks != nil {
		t.Errorf("without a generator: %v, %v", edeks, err)
	}
}

// TestImply: the service asks before each generation whether the version's key exists, makes no call to the provider,
// and makes nothing if the answer is no. The EDEKs are as long as the key's DEKs.
func TestImply(t *testing.T) {
	k := &keys{}
	var asked []string
	var refusal error
	s := eek.NewService(k).Imply(func(_ context.Context, version string) error {
		asked = append(asked, version)
		return refusal
	})
	for _, bits := range []int{128, 192, 256} {
		v := claviger.KeyVersion{Key: "k", Name: "k@7", BitLength: bits}
		edeks, err := s.Generate(t.Context(), v, 3)
		if err != nil || len(edeks) != 3 || edeks[2].Version != "k@7" || len(edeks[2].Material) != bits/8 {
			t.Errorf("%d bits: %+v, %v", bits, edeks, err)
		}
	}
	if edeks, err := s.Generate(t.Context(), claviger.KeyVersion{Name: "k@7", BitLength: 128}, 0); err != nil ||
		len(edeks) != 0 {
		t.Errorf("no EDEK: %v, %v", edeks, err)
	}
	if len(asked) != 3 || asked[0] != "k@7" || len(k.calls) > 0 {
		t.Errorf("asked for %q, calls to the provider: %q", asked, k.calls)
	}
	refusal = claviger.E("test", claviger.Unavailable, "k@7", nil)
	edeks, err := s.Generate(t.Context(), claviger.KeyVersion{Name: "k@7", BitLength: 128}, 1)
	if !errors.Is(err, refusal) || edeks != nil {
		t.Errorf("without a lease: %v, %v", edeks, err)
	}
}
