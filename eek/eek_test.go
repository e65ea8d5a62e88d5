package eek_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"claviger"
	"claviger/eek"
	"claviger/provider"
	"claviger/secret"
)

// keys is a BlockEncrypter with known material that records its calls.
type keys struct {
	material map[string][]byte // by version name

	mu    sync.Mutex
	calls []string // version of each call
	last  []byte   // the slice of the last call, to check that it is wiped
}

var _ provider.BlockEncrypter = (*keys)(nil)

func (k *keys) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, version)
	k.last = blocks
	if err := ctx.Err(); err != nil {
		return claviger.E("test.EncryptBlocks", claviger.Unavailable, version, err)
	}
	m, ok := k.material[version]
	if !ok {
		return claviger.E("test.EncryptBlocks", claviger.VersionNotFound, version, nil)
	}
	c, err := aes.NewCipher(m)
	if err != nil {
		return err
	}
	for ; len(blocks) > 0; blocks = blocks[aes.BlockSize:] {
		c.Encrypt(blocks, blocks)
	}
	return nil
}

// ctr is the reference implementation: crypto/cipher's CTR with IV xor 0xff.
func ctr(t interface{ Fatal(...any) }, material, iv, in []byte) []byte {
	c, err := aes.NewCipher(material)
	if err != nil {
		t.Fatal(err)
	}
	kekIV := make([]byte, len(iv))
	for i, b := range iv {
		kekIV[i] = b ^ 0xff
	}
	out := make([]byte, len(in))
	cipher.NewCTR(c, kekIV).XORKeyStream(out, in)
	return out
}

var (
	genMaterial = rapid.OneOf(bytesOf(16), bytesOf(24), bytesOf(32))
	// Random IVs, and IVs whose counter overflows its low 64 bits or all 128 bits within a few blocks.
	genIV = rapid.OneOf(
		bytesOf(16),
		rapid.Custom(func(t *rapid.T) []byte {
			return append(bytesOf(8).Draw(t, "high"), 0, 0, 0, 0, 0, 0, 0, byte(rapid.IntRange(0, 4).Draw(t, "low")))
		}),
		rapid.Custom(func(t *rapid.T) []byte {
			return append(make([]byte, 15), byte(rapid.IntRange(0, 4).Draw(t, "low")))
		}),
	)
	genDEK = rapid.SliceOfN(rapid.Byte(), 0, 64)
)

func bytesOf(n int) *rapid.Generator[[]byte] { return rapid.SliceOfN(rapid.Byte(), n, n) }

func drawKeys(t *rapid.T, versions int) (*keys, []string) {
	k := &keys{material: map[string][]byte{}}
	var names []string
	for i := range versions {
		name := fmt.Sprintf("k@%d", i)
		k.material[name] = genMaterial.Draw(t, name)
		names = append(names, name)
	}
	return k, names
}

// TestUnwrapIsCTR: Unwrap decrypts as AES-CTR does, whatever the batch.
func TestUnwrapIsCTR(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, names := drawKeys(t, rapid.IntRange(1, 7).Draw(t, "versions"))
		var edeks []claviger.EDEK
		var want [][]byte
		for range rapid.IntRange(0, 40).Draw(t, "batch") {
			v := rapid.SampledFrom(names).Draw(t, "version")
			iv, dek := genIV.Draw(t, "iv"), genDEK.Draw(t, "dek")
			edeks = append(edeks, claviger.EDEK{Version: v, IV: iv, Material: ctr(t, k.material[v], iv, dek)})
			want = append(want, dek)
		}
		got, err := eek.Unwrap(t.Context(), k, edeks)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d DEKs for %d EDEKs", len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("DEK %d: got %x, want %x", i, []byte(got[i]), want[i])
			}
		}
		wantOneCallEach(t, k, edeks)
	})
}

// wantOneCallEach demands exactly one call for each version with material.
func wantOneCallEach(t *rapid.T, k *keys, edeks []claviger.EDEK) {
	need := map[string]bool{}
	for _, e := range edeks {
		if len(e.Material) > 0 {
			need[e.Version] = true
		}
	}
	for _, v := range k.calls {
		if !need[v] {
			t.Fatalf("calls %q: more than one for %s", k.calls, v)
		}
		delete(need, v)
	}
	if len(need) != 0 {
		t.Fatalf("calls %q: none for %v", k.calls, need)
	}
}

// TestWrapIsCTR: Wrap encrypts as AES-CTR does.
func TestWrapIsCTR(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, _ := drawKeys(t, 1)
		var ivs [][]byte
		var deks []secret.Bytes
		for range rapid.IntRange(1, 40).Draw(t, "batch") {
			ivs = append(ivs, genIV.Draw(t, "iv"))
			deks = append(deks, genDEK.Draw(t, "dek"))
		}
		got, err := eek.Wrap(t.Context(), k, "k@0", ivs, deks)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range got {
			if e.Version != "k@0" || !bytes.Equal(e.IV, ivs[i]) || !bytes.Equal(e.Material,
				ctr(t, k.material["k@0"], ivs[i], deks[i])) {
				t.Fatalf("EDEK %d of DEK %x is %+v", i, []byte(deks[i]), e)
			}
		}
		wantOneCallEach(t, k, got)
	})
}

// TestGenerate: IVs and DEKs are the bytes of the random source, and the EDEKs are the DEKs encrypted in AES-CTR.
func TestGenerate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, _ := drawKeys(t, 1)
		n, dekLen := rapid.IntRange(-1, 40).Draw(t, "n"), rapid.IntRange(0, 64).Draw(t, "dekLen")
		if dekLen == 0 || n <= 0 {
			got, err := eek.Generate(t.Context(), k, "k@0", dekLen, n, nil)
			if err != nil || len(got) != max(n, 0) || got == nil || len(k.calls) != 0 {
				t.Fatalf("%v, %v, calls %q", got, err, k.calls)
			}
			return
		}
		// With a known source, all IVs and DEKs must be its bytes.
		source := bytesOf(n*(16+dekLen)).Draw(t, "random")
		got, err := eek.Generate(t.Context(), k, "k@0", dekLen, n, bytes.NewReader(source))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != n || len(k.calls) != 1 {
			t.Fatalf("%d EDEKs of %d, calls %q", len(got), n, k.calls)
		}
		for i, e := range got {
			iv, dek := source[:16], source[16:16+dekLen]
			source = source[16+dekLen:]
			if e.Version != "k@0" || !bytes.Equal(e.IV, iv) || !bytes.Equal(e.Material, ctr(t, k.material["k@0"], iv,
				dek)) {
				t.Fatalf("EDEK %d is %+v", i, e)
			}
		}
		// An append to one slice must not write into the next EDEK.
		if cap(got[0].IV) != 16 || cap(got[0].Material) != dekLen {
			t.Fatal("an append changed the next EDEK")
		}
	})
}

// TestGenerateIsRandom: without a source, all IVs and EDEKs differ.
func TestGenerateIsRandom(t *testing.T) {
	k := &keys{material: map[string][]byte{"k@0": make([]byte, 32)}}
	got, err := eek.Generate(t.Context(), k, "k@0", 32, 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range got {
		seen[string(e.IV)] = true
		seen[string(e.Material)] = true
	}
	if len(seen) != 2000 {
		t.Errorf("only %d different IVs and materials of 2000", len(seen))
	}
}

// TestReencrypt: the DEKs stay the same under the new version, and EDEKs that already have the new version do not
// change.
func TestReencrypt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, names := drawKeys(t, rapid.IntRange(1, 7).Draw(t, "versions"))
		to := &keys{material: map[string][]byte{"k@new": genMaterial.Draw(t, "new")}}
		var edeks, old []claviger.EDEK
		for range rapid.IntRange(0, 40).Draw(t, "batch") {
			e := claviger.EDEK{Version: "k@new", IV: genIV.Draw(t, "iv"), Material: genDEK.Draw(t, "material")}
			if !rapid.Bool().Draw(t, "already new") {
				e.Version = rapid.SampledFrom(names).Draw(t, "version")
				old = append(old, e)
			}
			edeks = append(edeks, e)
		}
		before := clone(edeks)
		got, err := eek.Reencrypt(t.Context(), from, to, "k@new", edeks)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(edeks) {
			t.Fatalf("%d EDEKs for %d", len(got), len(edeks))
		}
		for i, e := range edeks {
			want := e
			if e.Version != "k@new" {
				dek := ctr(t, from.material[e.Version], e.IV, e.Material)
				want = claviger.EDEK{Version: "k@new", IV: e.IV, Material: ctr(t, to.material["k@new"], e.IV, dek)}
			}
			if got[i].Version != want.Version || !bytes.Equal(got[i].IV, want.IV) ||
				!bytes.Equal(got[i].Material, want.Material) {
				t.Fatalf("EDEK %d: got %+v, want %+v", i, got[i], want)
			}
			if !bytes.Equal(e.IV, before[i].IV) || !bytes.Equal(e.Material, before[i].Material) ||
				e.Version != before[i].Version {
				t.Fatalf("EDEK %d was changed", i)
			}
		}
		wantOneCallEach(t, from, old)
		if len(to.calls) > 1 {
			t.Fatalf("calls for the new version: %q", to.calls)
		}
	})
}

func clone(edeks []claviger.EDEK) []claviger.EDEK {
	out := slices.Clone(edeks)
	for i := range out {
		out[i].IV, out[i].Material = bytes.Clone(out[i].IV), bytes.Clone(out[i].Material)
	}
	return out
}

// TestErrors: a wrong IV is refused before the provider is called, and a missing version is reported as such.
func TestErrors(t *testing.T) {
	k := &keys{material: map[string][]byte{"k@0": make([]byte, 16), "k@1": make([]byte, 16)}}
	good := claviger.EDEK{Version: "k@0", IV: make([]byte, 16), Material: make([]byte, 16)}
	for _, n := range []int{0, 1, 15, 17, 32} {
		bad := good
		bad.IV = make([]byte, n)
		if _, err := eek.Unwrap(t.Context(), k, []claviger.EDEK{good, bad}); !claviger.Is(err, claviger.BadIV) {
			t.Errorf("Unwrap with an IV of %d bytes: %v", n, err)
		}
		if _, err := eek.Reencrypt(t.Context(), k, k, "k@1", []claviger.EDEK{good, bad}); !claviger.Is(err,
			claviger.BadIV) {
			t.Errorf("Reencrypt with an IV of %d bytes: %v", n, err)
		}
		if _, err := eek.Wrap(t.Context(), k, "k@0", [][]byte{bad.IV}, []secret.Bytes{{1}}); !claviger.Is(err,
			claviger.BadIV) {
			t.Errorf("Wrap with an IV of %d bytes: %v", n, err)
		}
	}
	if len(k.calls) != 0 {
		t.Errorf("calls with a bad IV: %q", k.calls)
	}
	if _, err := eek.Wrap(t.Context(), k, "k@0", nil, []secret.Bytes{{1}}); err == nil {
		t.Error("Wrap accepts a DEK without an IV")
	}
	if _, err := eek.Generate(t.Context(), k, "k@0", -1, 1, nil); !claviger.Is(err, claviger.Invalid) {
		t.Errorf("DEK of -1 bytes: %v", err)
	}
	if _, err := eek.Generate(t.Context(), k, "k@0", 16, 2, io.LimitReader(rand.Reader, 40)); !errors.Is(err,
		io.ErrUnexpectedEOF) {
		t.Errorf("short random source: %v", err)
	}

	missing := good
	missing.Version = "k@7"
	if _, err := eek.Unwrap(t.Context(), k, []claviger.EDEK{good, missing}); !claviger.Is(err,
		claviger.VersionNotFound) {
		t.Errorf("Unwrap of a missing version: %v", err)
	}
	if _, err := eek.Generate(t.Context(), k, "k@7", 16, 1, nil); !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("Generate under a missing version: %v", err)
	}
	if _, err := eek.Wrap(t.Context(), k, "k@7", [][]byte{good.IV}, []secret.Bytes{{1}}); !claviger.Is(err,
		claviger.VersionNotFound) {
		t.Errorf("Wrap under a missing version: %v", err)
	}
	for _, err := range []error{
		second(eek.Reencrypt(t.Context(), k, k, "k@1", []claviger.EDEK{missing})),
		second(eek.Reencrypt(t.Context(), k, k, "k@7", []claviger.EDEK{good})),
	} {
		if !claviger.Is(err, claviger.VersionNotFound) {
			t.Errorf("Reencrypt: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestKeystreamIsWiped checks that no keystream is left in memory, because keystream and EDEK together give the DEK.
func TestKeystreamIsWiped(t *testing.T) {
	k := &keys{material: map[string][]byte{"k@0": make([]byte, 16), "k@1": make([]byte, 32)}}
	wiped := func(what string) {
		t.Helper()
		if len(k.last) == 0 || !bytes.Equal(k.last, make([]byte, len(k.last))) {
			t.Errorf("%s left %d blocks of keystream", what, len(k.last)/16)
		}
		k.last = nil
	}
	edeks, err := eek.Generate(t.Context(), k, "k@0", 32, 5, nil)
	if err != nil {
		t.Fatal(err)
	}
	wiped("Generate")
	if _, err = eek.Unwrap(t.Context(), k, edeks); err != nil {
		t.Fatal(err)
	}
	wiped("Unwrap")
	if _, err = eek.Reencrypt(t.Context(), k, k, "k@1", edeks); err != nil {
		t.Fatal(err)
	}
	wiped("Reencrypt")
	if _, err = eek.Wrap(t.Context(), k, "k@1", [][]byte{edeks[0].IV}, []secret.Bytes{{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	wiped("Wrap")
	from := &keys{material: k.material}
	if _, err = eek.Reencrypt(t.Context(), from, k, "k@7", edeks); err == nil {
		t.Fatal("Unwrap under the missing version k@7 succeeded")
	}
	k.last = from.last
	wiped("a failed Reencrypt")
}

func benchKeys() *keys {
	k := &keys{material: map[string][]byte{}}
	for i := range 2 {
		m := make([]byte, 32)
		_, _ = rand.Read(m)
		k.material[fmt.Sprintf("k@%d", i)] = m
	}
	return k
}

func benchBatch(b *testing.B, n int, f func(*keys, []claviger.EDEK) error) {
	k := benchKeys()
	edeks, err := eek.Generate(b.Context(), k, "k@0", 32, n, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		k.calls = k.calls[:0]
		if err := f(k, edeks); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "EDEK/s")
}

func BenchmarkGenerate500(b *testing.B) {
	benchBatch(b, 500, func(k *keys, _ []claviger.EDEK) error {
		return second(eek.Generate(b.Context(), k, "k@0", 32, 500, nil))
	})
}

func BenchmarkUnwrap1(b *testing.B) {
	benchBatch(b, 1, func(k *keys, e []claviger.EDEK) error { return second(eek.Unwrap(b.Context(), k, e)) })
}

func BenchmarkUnwrap1000(b *testing.B) {
	benchBatch(b, 1000, func(k *keys, e []claviger.EDEK) error { return second(eek.Unwrap(b.Context(), k, e)) })
}

func BenchmarkReencrypt1000(b *testing.B) {
	benchBatch(b, 1000, func(k *keys, e []claviger.EDEK) error {
		return second(eek.Reencrypt(b.Context(), k, k, "k@1", e))
	})
}
