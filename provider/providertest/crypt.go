package providertest

import (
	"bytes"
	"crypto/aes"
	"slices"
	"sync"
	"testing"

	"claviger"
	"claviger/eek"
	"claviger/provider"
	"claviger/secret"
)

func testBlocks(t *testing.T, s Suite) {
	p := s.open(t)
	enc := p.(provider.BlockEncrypter)
	for _, bits := range []int{128, 192, 256} {
		name := keyName("blocks")
		v1 := create(t, p, spec(name, bits))
		v2 := roll(t, p, name)
		other := create(t, p, spec(keyName("blocks-other"), bits))

		// As many as a NameNode's batch of 1,000 EDEKs has, one repeated.
		plain := bytesOf(2000 * aes.BlockSize)
		copy(plain[16:32], plain[:16])
		encrypt := func(v string) []byte {
			blocks := slices.Clone(plain)
			if err := enc.EncryptBlocks(t.Context(), v, blocks); err != nil {
				t.Fatalf("EncryptBlocks(%q): %v", v, err)
			}
			return blocks
		}
		a := encrypt(v1.Name)
		if !bytes.Equal(a, encrypt(v1.Name)) {
			t.Error("the same blocks encrypt differently")
		}
		if !bytes.Equal(a[:16], a[16:32]) {
			t.Error("equal blocks encrypt differently: this is not ECB")
		}
		single := slices.Clone(plain[len(plain)-16:])
		if err := enc.EncryptBlocks(t.Context(), v1.Name, single); err != nil || !bytes.Equal(single, a[len(a)-16:]) {
			t.Errorf("a block alone encrypts differently, %v", err)
		}
		for _, b := range [][]byte{plain, encrypt(v2.Name), encrypt(other.Name)} {
			for i := 0; i < len(a); i += 16 {
				if bytes.Equal(a[i:i+16], b[i:i+16]) {
					t.Fatalf("block %d is encrypted alike under another version, or not at all", i/16)
				}
			}
		}
		if s.ShowsMaterial {
			c, err := aes.NewCipher(v1.Material)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 16)
			for i := 0; i < len(a); i += 16 {
				c.Encrypt(want, plain[i:])
				if !bytes.Equal(a[i:i+16], want) {
					t.Fatalf("block %d is not AES under the version's material", i/16)
				}
			}
		}
		if err := enc.EncryptBlocks(t.Context(), v1.Name, nil); err != nil {
			t.Errorf("no blocks: %v", err)
		}
		for _, v := range missing(name) {
			wantKind(t, "EncryptBlocks under a missing version", enc.EncryptBlocks(t.Context(), v, make([]byte, 16)),
				claviger.VersionNotFound)
		}

		// The wrong key gives garbage of the right length, and no error: there is
		// no integrity in an EDEK, and none may be made up.
		edeks, err := eek.Generate(t.Context(), enc, v1.Name, bits/8, 10, nil)
		if err != nil {
			t.Fatal(err)
		}
		right, err := eek.Unwrap(t.Context(), enc, edeks)
		if err != nil {
			t.Fatal(err)
		}
		for i := range edeks {
			edeks[i].Version = v2.Name
		}
		wrong, err := eek.Unwrap(t.Context(), enc, edeks)
		if err != nil {
			t.Fatalf("Unwrap under the wrong version: %v", err)
		}
		for i := range right {
			if len(wrong[i]) != bits/8 || wrong[i].Equal(right[i]) {
				t.Errorf("the wrong version gives %d bytes; the right DEK: %v", len(wrong[i]), wrong[i].Equal(right[i]))
			}
		}
	}
	t.Run("Material", func(t *testing.T) { testBlocksOfMaterial(t, s, p, enc) })
	t.Run("Deleted", func(t *testing.T) {
		name := keyName("blocks-deleted")
		v := create(t, p, spec(name, 128))
		if err := enc.EncryptBlocks(t.Context(), v.Name, make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		if err := p.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "EncryptBlocks under a deleted version", enc.EncryptBlocks(t.Context(), v.Name, make([]byte, 16)),
			claviger.VersionNotFound)
	})
	t.Run("Parallel", func(t *testing.T) {
		name := keyName("blocks-parallel")
		vs := []string{create(t, p, spec(name, 256)).Name, roll(t, p, name).Name}
		want := make([][]byte, 2)
		plain := bytesOf(64)
		for i, v := range vs {
			want[i] = slices.Clone(plain)
			if err := enc.EncryptBlocks(t.Context(), v, want[i]); err != nil {
				t.Fatal(err)
			}
		}
		together(16, func(i int) {
			for range 20 {
				blocks := slices.Clone(plain)
				if err := enc.EncryptBlocks(t.Context(), vs[i%2], blocks); err != nil ||
					!bytes.Equal(blocks, want[i%2]) {
					t.Errorf("parallel EncryptBlocks: equal %v, %v", bytes.Equal(blocks, want[i%2]), err)
					return
				}
			}
		})
	})
}

// testBlocksOfMaterial uses the vectors of FIPS 197, appendix C.
func testBlocksOfMaterial(t *testing.T, s Suite, p provider.Provider, enc provider.BlockEncrypter) {
	if !s.TakesMaterial {
		t.Skip("the provider takes no material")
	}
	for bits, want := range map[int]string{
		128: "\x69\xc4\xe0\xd8\x6a\x7b\x04\x30\xd8\xcd\xb7\x80\x70\xb4\xc5\x5a",
		192: "\xdd\xa9\x7c\xa4\x86\x4c\xdf\xe0\x6e\xaf\x70\xa0\xec\x0d\x71\x91",
		256: "\x8e\xa2\xb7\xca\x51\x67\x45\xbf\xea\xfc\x49\x90\x4b\x49\x60\x89",
	} {
		sp := spec(keyName("fips197"), bits)
		for i := range bits / 8 {
			sp.Material = append(sp.Material, byte(i))
		}
		v := create(t, p, sp)
		block := []byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff")
		if err := enc.EncryptBlocks(t.Context(), v.Name, block); err != nil || string(block) != want {
			t.Errorf("AES-%d: %x, %v", bits, block, err)
		}
	}
}

func testEDEKs(t *testing.T, s Suite) {
	p := s.open(t)
	service := p.(provider.EDEKService)
	generate := func(t *testing.T, key string, n int) []claviger.EDEK {
		t.Helper()
		edeks, err := service.Generate(t.Context(), key, n)
		if err != nil || len(edeks) != n {
			t.Fatalf("Generate(%q, %d): %d, %v", key, n, len(edeks), err)
		}
		return edeks
	}
	unwrap := func(t *testing.T, key string, edeks []claviger.EDEK) []secret.Bytes {
		t.Helper()
		deks, err := service.Unwrap(t.Context(), key, "", edeks)
		if err != nil || len(deks) != len(edeks) {
			t.Fatalf("Unwrap of %d: %d, %v", len(edeks), len(deks), err)
		}
		return deks
	}
	reencrypt := func(t *testing.T, key string, edeks []claviger.EDEK) []claviger.EDEK {
		t.Helper()
		out, err := service.Reencrypt(t.Context(), key, edeks)
		if err != nil || len(out) != len(edeks) {
			t.Fatalf("Reencrypt of %d: %d, %v", len(edeks), len(out), err)
		}
		return out
	}

	t.Run("RoundTrip", func(t *testing.T) {
		for _, bits := range []int{128, 192, 256} {
			name := keyName("edek")
			v := create(t, p, spec(name, bits))
			edeks := append(generate(t, name, 1), generate(t, name, 150)...)
			seen := map[string]bool{}
			for _, e := range edeks {
				if e.Version != v.Name || len(e.IV) != claviger.IVSize || len(e.Material) != bits/8 {
					t.Fatalf("EDEK %+v, want %d bytes under %q", e, bits/8, v.Name)
				}
				seen[string(e.IV)], seen[string(e.Material)] = true, true
			}
			if len(seen) != 302 {
				t.Errorf("%d different IVs and materials of 302", len(seen))
			}
			deks := unwrap(t, name, edeks)
			different := map[string]bool{}
			for _, d := range deks {
				if len(d) != bits/8 {
					t.Fatalf("a DEK of %d bytes, want %d", len(d), bits/8)
				}
				different[string(d)] = true
			}
			if len(different) != len(edeks) {
				t.Errorf("%d different DEKs of %d", len(different), len(edeks))
			}
			slices.Reverse(edeks)
			again := unwrap(t, name, edeks)
			slices.Reverse(again)
			if !slices.EqualFunc(deks, again, secret.Bytes.Equal) {
				t.Error("the order of DEKs is not that of the EDEKs")
			}
			for _, n := range []int{0, -1} {
				if none, err := service.Generate(t.Context(), name, n); err != nil || len(none) != 0 {
					t.Errorf("Generate of %d: %d, %v", n, len(none), err)
				}
			}
			if len(unwrap(t, name, nil)) != 0 || len(reencrypt(t, name, nil)) != 0 {
				t.Error("something came of nothing")
			}
		}
	})
	t.Run("Versions", func(t *testing.T) {
		name := keyName("edek-versions")
		create(t, p, spec(name, 256))
		old := generate(t, name, 20)
		v2 := roll(t, p, name)
		mixed := append(slices.Clone(old), generate(t, name, 20)...)
		if mixed[20].Version != v2.Name {
			t.Errorf("an EDEK after a roll is under %q, want %q", mixed[20].Version, v2.Name)
		}
		deks := unwrap(t, name, mixed)
		renewed := reencrypt(t, name, mixed)
		for i, e := range renewed {
			if e.Version != v2.Name || !bytes.Equal(e.IV, mixed[i].IV) {
				t.Errorf("re-encrypted to %+v, from %+v", e, mixed[i])
			}
			if i < 20 == bytes.Equal(e.Material, mixed[i].Material) {
				t.Errorf("EDEK %d, under %q before: material is the same: %v", i, mixed[i].Version, i >= 20)
			}
		}
		if !slices.EqualFunc(deks, unwrap(t, name, renewed), secret.Bytes.Equal) {
			t.Error("re-encryption changed the DEKs")
		}

		// The wrong version gives garbage, and no error.
		wrong := slices.Clone(old[:1])
		wrong[0].Version = v2.Name
		if got := unwrap(t, name, wrong); len(got[0]) != 32 || got[0].Equal(deks[0]) {
			t.Errorf("the wrong version gives %d bytes; the right DEK: %v", len(got[0]), got[0].Equal(deks[0]))
		}
	})
	t.Run("Lengths", func(t *testing.T) {
		name := keyName("edek-lengths")
		v := create(t, p, spec(name, 128))
		long := claviger.EDEK{Version: v.Name, IV: make([]byte, claviger.IVSize), Material: bytesOf(64)}
		dek := unwrap(t, name, []claviger.EDEK{long})[0]
		for n := range 64 {
			e := long
			e.Material = long.Material[:n]
			if got := unwrap(t, name, []claviger.EDEK{e})[0]; !got.Equal(dek[:n]) {
				t.Errorf("%d bytes do not open to the beginning of 64", n)
			}
		}
		for _, n := range []int{0, 1, 15, 17} {
			e := long
			e.IV = make([]byte, n)
			_, err := service.Unwrap(t.Context(), name, "", []claviger.EDEK{e})
			wantKind(t, "Unwrap with a wrong IV", err, claviger.BadIV)
			_, err = service.Reencrypt(t.Context(), name, []claviger.EDEK{e})
			wantKind(t, "Reencrypt with a wrong IV", err, claviger.BadIV)
		}
	})
	t.Run("Missing", func(t *testing.T) {
		name, other := keyName("edek-missing"), keyName("edek-other")
		create(t, p, spec(name, 128))
		create(t, p, spec(other, 128))
		good, foreign := generate(t, name, 3), generate(t, other, 1)
		_, err := service.Generate(t.Context(), keyName("nokey"), 1)
		wantKind(t, "Generate under a missing key", err, claviger.KeyNotFound)

		_, err = service.Unwrap(t.Context(), name, "", append(slices.Clone(good), foreign...))
		wantKind(t, "Unwrap of another key's EDEK", err, claviger.WrongKey)
		_, err = service.Reencrypt(t.Context(), name, append(slices.Clone(good), foreign...))
		wantKind(t, "Reencrypt of another key's EDEK", err, claviger.WrongKey)

		lost := good[0]
		lost.Version = claviger.VersionName(name, "no-such-version")
		_, err = service.Unwrap(t.Context(), name, "", append(slices.Clone(good), lost))
		wantKind(t, "Unwrap under a missing version", err, claviger.VersionNotFound)
		_, err = service.Reencrypt(t.Context(), name, append(slices.Clone(good), lost))
		wantKind(t, "Reencrypt from a missing version", err, claviger.VersionNotFound)
	})
	t.Run("Batch", func(t *testing.T) {
		name := keyName("edek-batch")
		create(t, p, spec(name, 256))
		edeks := generate(t, name, 1000)
		roll(t, p, name)
		renewed := reencrypt(t, name, edeks)
		sample := []int{0, 1, 499, 998, 999}
		for _, i := range sample {
			a := unwrap(t, name, []claviger.EDEK{edeks[i], renewed[i]})
			if !a[0].Equal(a[1]) {
				t.Errorf("EDEK %d of 1000 was re-encrypted to another DEK", i)
			}
		}
	})
	t.Run("Parallel", func(t *testing.T) {
		name := keyName("edek-parallel")
		create(t, p, spec(name, 128))
		edeks := generate(t, name, 16)
		want := unwrap(t, name, edeks)
		var mu sync.Mutex
		failed := false
		together(16, func(i int) {
			for range 5 {
				got, err := service.Unwrap(t.Context(), name, "", edeks[i:])
				if err != nil || !slices.EqualFunc(got, want[i:], secret.Bytes.Equal) {
					mu.Lock()
					defer mu.Unlock()
					if !failed {
						t.Errorf("parallel Unwrap: %v", err)
					}
					failed = true
					return
				}
			}
		})
	})
}
