package eek

import (
	"bytes"
	"context"
	"crypto/aes"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"claviger"
	"claviger/secret"
)

// flipping encrypts, and flips one bit of the results of some calls.
type flipping struct {
	mu             sync.Mutex
	calls, flipped int
	blocks         int
	every          int // flips a bit in each such call; 0: never
}

func (f *flipping) EncryptBlocks(_ context.Context, version string, blocks []byte) error {
	c, err := aes.NewCipher(bytes.Repeat([]byte(version[:1]+version[2:]), 8))
	if err != nil {
		return err
	}
	for b := blocks; len(b) > 0; b = b[aes.BlockSize:] {
		c.Encrypt(b, b)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocks += len(blocks) / aes.BlockSize
	if f.calls++; f.every > 0 && f.calls%f.every == 0 {
		blocks[rand.IntN(len(blocks))] ^= 1 << rand.IntN(8)
		f.flipped++
	}
	return nil
}

// batchOf returns n EDEKs of version k@0.
func batchOf(n int) []claviger.EDEK {
	edeks := make([]claviger.EDEK, n)
	for i := range edeks {
		edeks[i] = claviger.EDEK{Version: "k@0", IV: bytes.Repeat([]byte{byte(i), byte(i >> 8)}, claviger.IVSize/2),
			Material: bytes.Repeat([]byte{byte(i)}, 32)}
	}
	return edeks
}

func sameEDEKs(a, b []claviger.EDEK) bool {
	for i := range b {
		if len(a) != len(b) || !bytes.Equal(a[i].Material, b[i].Material) || a[i].Version != b[i].Version {
			return false
		}
	}
	return true
}

// TestSelfCheckTwice: a re-encryption that is computed twice returns no wrong EDEK, whichever bit is flipped, and with
// sound results it returns the same as without a check, by as many calls.
func TestSelfCheckTwice(t *testing.T) {
	old, current := claviger.KeyVersion{Name: "k@0"}, claviger.KeyVersion{Name: "k@1"}
	from := []claviger.KeyVersion{old}
	for _, n := range []int{1, 7, 100} {
		edeks := batchOf(n)
		want, err := NewService(&flipping{}).Reencrypt(t.Context(), from, current, edeks)
		if err != nil {
			t.Fatal(err)
		}
		for check, blocks := range map[SelfCheck]int{CheckNone: 4 * n, CheckTwice: 8 * n,
			CheckSampled: 4*n + 2*min(2*n, sampledBlocks)} {
			f := &flipping{}
			got, err := NewService(f).Check(check).Reencrypt(t.Context(), from, current, edeks)
			if err != nil || !sameEDEKs(got, want) || f.calls != 2 || f.blocks != blocks {
				t.Errorf("%s of %d EDEKs: %d calls, %d blocks, want %d; %v", check, n, f.calls, f.blocks, blocks, err)
			}
		}
		f := &flipping{every: 3}
		refused := 0
		for range 300 {
			got, err := NewService(f).Check(CheckTwice).Reencrypt(t.Context(), from, current, edeks)
			switch {
			case err == nil && !sameEDEKs(got, want):
				t.Fatalf("a wrong EDEK of %d", n)
			case err != nil && !claviger.Is(err, claviger.Unavailable):
				t.Fatal(err)
			case err != nil:
				refused++
			}
		}
		if refused != f.flipped {
			t.Errorf("%d of %d wrong results are refused", refused, f.flipped)
		}
	}
	f := &flipping{every: 1}
	ivs, deks := [][]byte{make([]byte, claviger.IVSize)}, []secret.Bytes{make([]byte, 32)}
	if got, err := NewService(f).Check(CheckTwice).Wrap(t.Context(), current, ivs, deks); err == nil {
		t.Errorf("a DEK was wrapped by a wrong result: %v", got)
	}
	s := NewService(f).Check(CheckTwice)
	if got, err := s.Unwrap(t.Context(), old, "", batchOf(3)); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("a DEK was opened by a wrong result: %v, %v", got, err)
	}
	if m := s.Mismatch(); m.Count != 1 || m.Version != "k@0" || time.Since(m.At) > time.Minute {
		t.Errorf("%+v", m)
	}
	f.every = 0
	got, err := s.Unwrap(t.Context(), old, "", batchOf(3))
	want, werr := NewService(f).Unwrap(t.Context(), old, "", batchOf(3))
	if err != nil || werr != nil || !slices.EqualFunc(got, want, func(a, b secret.Bytes) bool {
		return bytes.Equal(a, b)
	}) {
		t.Errorf("%v, %v", err, werr)
	}
}

// TestSelfCheckSampled: an HSM whose results are often wrong is noticed.
func TestSelfCheckSampled(t *testing.T) {
	f := &flipping{every: 1}
	refused := 0
	for range 400 { // each finds 2 of 2*100 blocks with a probability of about 8 %, so all miss with one of 1e-14
		_, err := NewService(f).Check(CheckSampled).Reencrypt(t.Context(), []claviger.KeyVersion{{Name: "k@0"}},
			claviger.KeyVersion{Name: "k@1"}, batchOf(100))
		if err != nil {
			refused++
		}
	}
	if refused == 0 || refused > 300 {
		t.Errorf("%d of 400 batches are refused", refused)
	}
}

// TestSelfCheckOfFailedCall: if a call fails and leaves the blocks as they were, both results of a block are equal, and
// still nothing is opened. The copies of the blocks are wiped, after a success too.
func TestSelfCheckOfFailedCall(t *testing.T) {
	v := claviger.KeyVersion{Name: "k@0"}
	for _, check := range []SelfCheck{CheckNone, CheckSampled, CheckTwice} {
		l := &blockKeeper{err: errBroken}
		s := NewService(l).Check(check)
		if got, err := s.Unwrap(t.Context(), v, "", batchOf(3)); got != nil || !errors.Is(err, errBroken) {
			t.Errorf("%s: a failed call opens %d EDEKs, %v", check, len(got), err)
		}
		l.err = nil
		if _, err := s.Unwrap(t.Context(), v, "", batchOf(3)); err != nil || len(l.kept) != 2 {
			t.Errorf("%s: %v after %d calls", check, err, len(l.kept))
		}
		l.wantWiped(t, string(check))
	}
}

// blockKeeper keeps the blocks that it is given, and leaves them as they are.
type blockKeeper struct {
	bufferKeeper
	err error
}

func (l *blockKeeper) EncryptBlocks(_ context.Context, _ string, blocks []byte) error {
	l.kept = append(l.kept, blocks)
	return l.err
}
