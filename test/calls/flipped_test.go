package calls

import (
	"testing"

	"claviger"
	"claviger/internal/faultmodule"
	"claviger/internal/softhsm/softhsmtest"
)

// TestFlippedDecrypts: the HSM flips a bit of some results and reports no error. With the default of
// claviger.hsm.self.check no decrypt returns a wrong DEK.
func TestFlippedDecrypts(t *testing.T) {
	token := softhsmtest.New(t)
	m := faultmodule.New(t, token.Module)
	token.Module = m.Path
	ring, _ := newRingOn(t, token, "sampled")
	ctx := t.Context()
	edeks, err := ring.Generate(ctx, alice, "k", 1)
	if err != nil {
		t.Fatal(err)
	}
	want, err := ring.Decrypt(ctx, alice, "k", true, edeks[0])
	if err != nil {
		t.Fatal(err)
	}
	m.Order(faultmodule.Encrypt, faultmodule.Order{Action: faultmodule.Flip, Times: faultmodule.Always, Permille: 300})
	served, refused := 0, 0
	for range 200 {
		got, err := ring.Decrypt(ctx, alice, "k", true, edeks[0])
		switch {
		case err == nil && !got.Equal(want):
			t.Fatal("a wrong DEK")
		case err == nil:
			served++
		case claviger.Is(err, claviger.Unavailable):
			refused++
		default:
			t.Error(err)
		}
	}
	if m.Done(faultmodule.Encrypt) == 0 || refused == 0 || served == 0 {
		t.Errorf("%d bits were flipped, %d decrypts refused, %d answered", m.Done(faultmodule.Encrypt), refused, served)
	}
	if err := ring.CheckResults(ctx); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("readiness: %v", err)
	}
}

// TestFlippedBits: the HSM flips a bit of some results and reports no error. With claviger.hsm.self.check set to
// twice, no re-encrypted EDEK is wrong, and readiness reports the mismatches.
func TestFlippedBits(t *testing.T) {
	token := softhsmtest.New(t)
	m := faultmodule.New(t, token.Module)
	token.Module = m.Path
	ring, _ := newRingOn(t, token, "twice")
	ctx := t.Context()
	old, err := ring.Generate(ctx, alice, "k", 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Roll(ctx, alice, "k", nil); err != nil {
		t.Fatal(err)
	}
	m.Order(faultmodule.Encrypt, faultmodule.Order{Action: faultmodule.Flip, Times: faultmodule.Always, Permille: 300})
	var batches [][]claviger.EDEK
	refused := 0
	for range 100 {
		fresh, err := ring.ReencryptBatch(ctx, alice, "k", old)
		switch {
		case err == nil:
			batches = append(batches, fresh)
		case claviger.Is(err, claviger.Unavailable):
			refused++
		default:
			t.Error(err)
		}
	}
	m.Heal()
	if m.Done(faultmodule.Encrypt) == 0 || refused == 0 || len(batches) == 0 {
		t.Fatalf("%d bits were flipped, %d batches refused, %d answered", m.Done(faultmodule.Encrypt), refused,
			len(batches))
	}
	if err := ring.CheckResults(ctx); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("readiness: %v", err)
	}
	first, err := ring.ReencryptBatch(ctx, alice, "k", old)
	if err != nil {
		t.Fatal(err)
	}
	for _, batch := range batches {
		for i := range batch {
			if string(batch[i].Material) != string(first[i].Material) {
				t.Fatalf("EDEK %d is wrong after a re-encryption", i)
			}
		}
	}
}
