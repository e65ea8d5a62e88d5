package providertest

import (
	"bytes"
	"crypto/aes"
	"slices"
	"sync"
	"testing"
	"time"

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
		testECB(t, s, enc, v1, v2, other)
		if err := enc.EncryptBlocks(t.Context(), v1.Name, nil); err != nil {
			t.Errorf("no blocks: %v", err)
		}
		for _, v := range missingVersions(name) {
			wantKind(t, "EncryptBlocks under a missing version", enc.EncryptBlocks(t.Context(), v, make([]byte, 16)),
				claviger.VersionNotFound)
		}
		testWrongVersion(t, enc, v1, v2)
	}
	t.Run("Material", func(t *testing.T) { testBlocksOfMaterial(t, s, p) })
	t.Run("Deleted", func(t *testing.T) { testBlocksDeleted(t, p) })
	t.Run("Parallel", func(t *testing.T) { testBlocksParallel(t, p) })
}

// testLeases checks that there is a lease of each version of a key, until the key is deleted.
func testLeases(t *testing.T, s Suite) {
	p := s.open(t)
	leaser := p.(provider.Leaser)
	name := keyName("leases")
	made := []claviger.KeyVersion{create(t, p, spec(name, 256)), roll(t, p, name)}
	for range 2 {
		for _, v := range made {
			if err := leaser.Lease(t.Context(), v.Name, time.Minute); err != nil {
				t.Errorf("Lease: %v", err)
			}
		}
	}
	if err := p.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	for _, v := range append(missingVersions(name), made[0].Name, made[1].Name) {
		wantKind(t, "Lease of a version that is not there", leaser.Lease(t.Context(), v, time.Minute),
			claviger.VersionNotFound)
	}
}

// testECB checks that v encrypts each block by itself, and otherwise than the other versions do.
func testECB(t *testing.T, s Suite, enc provider.BlockEncrypter, v claviger.KeyVersion, others ...claviger.KeyVersion) {
	t.Helper()
	// A NameNode's batch of 1,000 EDEKs has 2,000 blocks. Two of the blocks are equal.
	plain := bytesOf(2000 * aes.BlockSize)
	copy(plain[16:32], plain[:16])
	encrypt := func(version string) []byte {
		blocks := slices.Clone(plain)
		if err := enc.EncryptBlocks(t.Context(), version, blocks); err != nil {
			t.Fatalf("EncryptBlocks(%q): %v", version, err)
		}
		return blocks
	}
	a := encrypt(v.Name)
	if !bytes.Equal(a, encrypt(v.Name)) {
		t.Error("the same blocks encrypt differently the second time")
	}
	if !bytes.Equal(a[:16], a[16:32]) {
		t.Error("equal blocks encrypt differently: this is not ECB")
	}
	single := slices.Clone(plain[len(plain)-16:])
	if err := enc.EncryptBlocks(t.Context(), v.Name, single); err != nil || !bytes.Equal(single, a[len(a)-16:]) {
		t.Errorf("a single block encrypts differently, %v", err)
	}
	different := [][]byte{plain}
	for _, other := range others {
		different = append(different, encrypt(other.Name))
	}
	for _, b := range different {
		for i := 0; i < len(a); i += 16 {
			if bytes.Equal(a[i:i+16], b[i:i+16]) {
				t.Fatalf("block %d is not encrypted, or another version encrypts it to the same bytes", i/16)
			}
		}
	}
	if s.ShowsMaterial {
		wantAES(t, v.Material, plain, a)
	}
}

// wantAES demands that got is plain encrypted with AES in ECB mode.
func wantAES(t *testing.T, key secret.Bytes, plain, got []byte) {
	t.Helper()
	c, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 16)
	for i := 0; i < len(got); i += 16 {
		c.Encrypt(want, plain[i:])
		if !bytes.Equal(got[i:i+16], want) {
			t.Fatalf("block %d is not AES under the version's material", i/16)
		}
	}
}

// testWrongVersion opens EDEKs of one version under another version. The result is garbage of the right length and no
// error: an EDEK has no integrity check, and a provider must not add one.
func testWrongVersion(t *testing.T, enc provider.BlockEncrypter, v, other claviger.KeyVersion) {
	t.Helper()
	edeks, err := eek.Generate(t.Context(), enc, v.Name, v.BitLength/8, 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	right, err := eek.Unwrap(t.Context(), enc, edeks)
	if err != nil {
		t.Fatal(err)
	}
	for i := range edeks {
		edeks[i].Version = other.Name
	}
	wrong, err := eek.Unwrap(t.Context(), enc, edeks)
	if err != nil {
		t.Fatalf("Unwrap under the wrong version: %v", err)
	}
	for i := range right {
		if len(wrong[i]) != v.BitLength/8 || wrong[i].Equal(right[i]) {
			t.Errorf("the wrong version gives %d bytes; the right DEK: %v", len(wrong[i]), wrong[i].Equal(right[i]))
		}
	}
}

// testBlocksOfMaterial uses the test vectors of FIPS 197, appendix C.
func testBlocksOfMaterial(t *testing.T, s Suite, p provider.Provider) {
	if !s.TakesMaterial {
		t.Skip("the provider takes no material")
	}
	enc := p.(provider.BlockEncrypter)
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

func testBlocksDeleted(t *testing.T, p provider.Provider) {
	enc := p.(provider.BlockEncrypter)
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
}

func testBlocksParallel(t *testing.T, p provider.Provider) {
	enc := p.(provider.BlockEncrypter)
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
	inParallel(16, func(i int) {
		for range 20 {
			blocks := slices.Clone(plain)
			if err := enc.EncryptBlocks(t.Context(), vs[i%2], blocks); err != nil ||
				!bytes.Equal(blocks, want[i%2]) {
				t.Errorf("parallel EncryptBlocks: equal %v, %v", bytes.Equal(blocks, want[i%2]), err)
				return
			}
		}
	})
}

// edekCaller calls the EDEK methods of a provider. Each method fails the test on an error or a wrong count.
type edekCaller struct {
	p       provider.Provider
	service provider.EDEKService
}

func (c edekCaller) generate(t *testing.T, key string, n int) []claviger.EDEK {
	t.Helper()
	edeks, err := c.service.Generate(t.Context(), key, n)
	if err != nil || len(edeks) != n {
		t.Fatalf("Generate(%q, %d): %d, %v", key, n, len(edeks), err)
	}
	return edeks
}

func (c edekCaller) unwrap(t *testing.T, key string, edeks []claviger.EDEK) []secret.Bytes {
	t.Helper()
	deks, err := c.service.Unwrap(t.Context(), key, "", edeks)
	if err != nil || len(deks) != len(edeks) {
		t.Fatalf("Unwrap of %d: %d, %v", len(edeks), len(deks), err)
	}
	return deks
}

func (c edekCaller) reencrypt(t *testing.T, key string, edeks []claviger.EDEK) []claviger.EDEK {
	t.Helper()
	out, err := c.service.Reencrypt(t.Context(), key, edeks)
	if err != nil || len(out) != len(edeks) {
		t.Fatalf("Reencrypt of %d: %d, %v", len(edeks), len(out), err)
	}
	return out
}

func testEDEKs(t *testing.T, s Suite) {
	p := s.open(t)
	c := edekCaller{p, p.(provider.EDEKService)}
	for _, tt := range []struct {
		name string
		f    func(*testing.T, edekCaller)
	}{
		{"RoundTrip", testRoundTrip}, {"Versions", testEDEKVersions}, {"Lengths", testEDEKLengths},
		{"Missing", testEDEKsMissing}, {"Batch", testEDEKBatch}, {"Parallel", testEDEKsParallel},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.f(t, c) })
	}
}

func testRoundTrip(t *testing.T, c edekCaller) {
	for _, bits := range []int{128, 192, 256} {
		name := keyName("edek")
		v := create(t, c.p, spec(name, bits))
		edeks := append(c.generate(t, name, 1), c.generate(t, name, 150)...)
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
		deks := c.unwrap(t, name, edeks)
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
		again := c.unwrap(t, name, edeks)
		slices.Reverse(again)
		if !slices.EqualFunc(deks, again, secret.Bytes.Equal) {
			t.Error("the DEKs are not in the order of the EDEKs")
		}
		for _, n := range []int{0, -1} {
			if none, err := c.service.Generate(t.Context(), name, n); err != nil || len(none) != 0 {
				t.Errorf("Generate of %d: %d, %v", n, len(none), err)
			}
		}
		if len(c.unwrap(t, name, nil)) != 0 || len(c.reencrypt(t, name, nil)) != 0 {
			t.Error("a call without EDEKs returned some")
		}
	}
}

func testEDEKVersions(t *testing.T, c edekCaller) {
	name := keyName("edek-versions")
	create(t, c.p, spec(name, 256))
	old := c.generate(t, name, 20)
	v2 := roll(t, c.p, name)
	mixed := append(slices.Clone(old), c.generate(t, name, 20)...)
	if mixed[20].Version != v2.Name {
		t.Errorf("an EDEK after a roll is under %q, want %q", mixed[20].Version, v2.Name)
	}
	deks := c.unwrap(t, name, mixed)
	renewed := c.reencrypt(t, name, mixed)
	for i, e := range renewed {
		if e.Version != v2.Name || !bytes.Equal(e.IV, mixed[i].IV) {
			t.Errorf("re-encrypted to %+v, from %+v", e, mixed[i])
		}
		if i < 20 == bytes.Equal(e.Material, mixed[i].Material) {
			t.Errorf("EDEK %d, under %q before: material is the same: %v", i, mixed[i].Version, i >= 20)
		}
	}
	if !slices.EqualFunc(deks, c.unwrap(t, name, renewed), secret.Bytes.Equal) {
		t.Error("re-encryption changed the DEKs")
	}

	// The wrong version gives garbage, and no error.
	wrong := slices.Clone(old[:1])
	wrong[0].Version = v2.Name
	if got := c.unwrap(t, name, wrong); len(got[0]) != 32 || got[0].Equal(deks[0]) {
		t.Errorf("the wrong version gives %d bytes; the right DEK: %v", len(got[0]), got[0].Equal(deks[0]))
	}
}

func testEDEKLengths(t *testing.T, c edekCaller) {
	name := keyName("edek-lengths")
	v := create(t, c.p, spec(name, 128))
	long := claviger.EDEK{Version: v.Name, IV: make([]byte, claviger.IVSize), Material: bytesOf(64)}
	dek := c.unwrap(t, name, []claviger.EDEK{long})[0]
	for n := range 64 {
		e := long
		e.Material = long.Material[:n]
		if got := c.unwrap(t, name, []claviger.EDEK{e})[0]; !got.Equal(dek[:n]) {
			t.Errorf("the DEK of the first %d bytes is not the beginning of the DEK of all 64", n)
		}
	}
	for _, n := range []int{0, 1, 15, 17} {
		e := long
		e.IV = make([]byte, n)
		_, err := c.service.Unwrap(t.Context(), name, "", []claviger.EDEK{e})
		wantKind(t, "Unwrap with a wrong IV", err, claviger.BadIV)
		_, err = c.service.Reencrypt(t.Context(), name, []claviger.EDEK{e})
		wantKind(t, "Reencrypt with a wrong IV", err, claviger.BadIV)
	}
}

func testEDEKsMissing(t *testing.T, c edekCaller) {
	name, other := keyName("edek-missing"), keyName("edek-other")
	create(t, c.p, spec(name, 128))
	create(t, c.p, spec(other, 128))
	good, foreign := c.generate(t, name, 3), c.generate(t, other, 1)
	_, err := c.service.Generate(t.Context(), keyName("nokey"), 1)
	wantKind(t, "Generate under a missing key", err, claviger.KeyNotFound)

	_, err = c.service.Unwrap(t.Context(), name, "", append(slices.Clone(good), foreign...))
	wantKind(t, "Unwrap of another key's EDEK", err, claviger.WrongKey)
	_, err = c.service.Reencrypt(t.Context(), name, append(slices.Clone(good), foreign...))
	wantKind(t, "Reencrypt of another key's EDEK", err, claviger.WrongKey)

	lost := good[0]
	lost.Version = claviger.VersionName(name, "no-such-version")
	_, err = c.service.Unwrap(t.Context(), name, "", append(slices.Clone(good), lost))
	wantKind(t, "Unwrap under a missing version", err, claviger.VersionNotFound)
	_, err = c.service.Reencrypt(t.Context(), name, append(slices.Clone(good), lost))
	wantKind(t, "Reencrypt from a missing version", err, claviger.VersionNotFound)
}

func testEDEKBatch(t *testing.T, c edekCaller) {
	name := keyName("edek-batch")
	create(t, c.p, spec(name, 256))
	edeks := c.generate(t, name, 1000)
	roll(t, c.p, name)
	renewed := c.reencrypt(t, name, edeks)
	for _, i := range []int{0, 1, 499, 998, 999} {
		a := c.unwrap(t, name, []claviger.EDEK{edeks[i], renewed[i]})
		if !a[0].Equal(a[1]) {
			t.Errorf("re-encryption changed the DEK of EDEK %d of 1000", i)
		}
	}
}

func testEDEKsParallel(t *testing.T, c edekCaller) {
	name := keyName("edek-parallel")
	create(t, c.p, spec(name, 128))
	edeks := c.generate(t, name, 16)
	want := c.unwrap(t, name, edeks)
	var mu sync.Mutex
	failed := false
	inParallel(16, func(i int) {
		for range 5 {
			got, err := c.service.Unwrap(t.Context(), name, "", edeks[i:])
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
}
