package eek

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"claviger"
	"claviger/secret"
)

var errBroken = errors.New("broken")

// bufferKeeper keeps the buffers that it is given to fill and to encrypt, and fails after a number of calls.
type bufferKeeper struct {
	mu                      sync.Mutex
	kept                    [][]byte
	goodReads, goodEncrypts int // the number of calls that succeed; later ones fail
	reads, encrypts         int // the number of calls until now
}

func (l *bufferKeeper) Read(p []byte) (int, error) {
	l.kept = append(l.kept, p)
	if l.reads++; l.reads > l.goodReads {
		copy(p, bytes.Repeat([]byte{0xab}, len(p)/2))
		return len(p) / 2, errBroken
	}
	copy(p, bytes.Repeat([]byte{0xab}, len(p)))
	return len(p), nil
}

func (l *bufferKeeper) EncryptBlocks(_ context.Context, _ string, blocks []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = append(l.kept, blocks)
	if l.encrypts++; l.encrypts > l.goodEncrypts {
		copy(blocks, bytes.Repeat([]byte{0xcd}, len(blocks)/2))
		return errBroken
	}
	copy(blocks, bytes.Repeat([]byte{0xcd}, len(blocks)))
	return nil
}

// wantWiped fails the test unless all kept buffers have only zeros.
func (l *bufferKeeper) wantWiped(t *testing.T, when string) {
	t.Helper()
	if len(l.kept) == 0 {
		t.Errorf("%s: no buffer was kept", when)
	}
	for i, b := range l.kept {
		if len(bytes.Trim(b, "\x00")) > 0 {
			t.Errorf("%s: buffer %d was not wiped: %x", when, i, b)
		}
	}
}

// TestBuffersAreWiped checks that a failed operation wipes DEKs and keystream, and a successful one wipes keystream.
func TestBuffersAreWiped(t *testing.T) {
	ctx := t.Context()
	iv := bytes.Repeat([]byte{1}, claviger.IVSize)
	edeks := func() []claviger.EDEK {
		return []claviger.EDEK{{Version: "k@0", IV: iv, Material: make([]byte, 32)},
			{Version: "k@1", IV: iv, Material: make([]byte, 32)}}
	}
	unwrap := func(l *bufferKeeper) error { _, err := Unwrap(ctx, l, edeks()); return err }
	for when, c := range map[string]struct {
		reads, encrypts int
		fails           bool
		do              func(l *bufferKeeper) error
	}{
		"random numbers fail": {0, 0, true, func(l *bufferKeeper) error {
			_, err := Generate(ctx, l, "k@0", 32, 3, l)
			return err
		}},
		"generate fails": {1, 0, true, func(l *bufferKeeper) error {
			_, err := Generate(ctx, l, "k@0", 32, 3, l)
			return err
		}},
		"unwrap fails":         {0, 0, true, unwrap},
		"half an unwrap fails": {0, 1, true, unwrap},
		"unwrap":               {0, 2, false, unwrap},
		"re-encryption's first half fails": {0, 1, true, func(l *bufferKeeper) error {
			_, err := Reencrypt(ctx, l, l, "k@2", edeks())
			return err
		}},
		"re-encryption's second half fails": {0, 2, true, func(l *bufferKeeper) error {
			_, err := Reencrypt(ctx, l, l, "k@2", edeks())
			return err
		}},
		"re-encryption": {0, 3, false, func(l *bufferKeeper) error {
			_, err := Reencrypt(ctx, l, l, "k@2", edeks())
			return err
		}},
		"wrap fails": {0, 0, true, func(l *bufferKeeper) error {
			_, err := Wrap(ctx, l, "k@0", [][]byte{iv}, []secret.Bytes{make([]byte, 32)})
			return err
		}},
	} {
		l := &bufferKeeper{goodReads: c.reads, goodEncrypts: c.encrypts}
		if err := c.do(l); (err != nil) != c.fails {
			t.Errorf("%s: %v", when, err)
		}
		l.wantWiped(t, when)
	}
	// After a successful Generate, the buffer of random bytes has the IVs and no DEK, and the keystream is wiped.
	l := &bufferKeeper{goodReads: 1, goodEncrypts: 1}
	made, err := Generate(ctx, l, "k@0", 32, 2, l)
	if err != nil || len(l.kept) != 2 {
		t.Fatalf("%v, %d buffers", err, len(l.kept))
	}
	l.kept = l.kept[1:]
	l.wantWiped(t, "generate")
	for _, e := range made {
		if bytes.Equal(e.Material, bytes.Repeat([]byte{0xab}, 32)) {
			t.Error("the EDEK equals its DEK")
		}
	}
}

// TestSmallestQueue checks that a queue of one EDEK works, and that a Take of none makes no EDEK.
func TestSmallestQueue(t *testing.T) {
	q, calls := countedQueue(t, 1)
	for _, n := range []int{0, -1} {
		if got, err := q.Take(t.Context(), "k", n); err != nil || got == nil || len(got) != 0 {
			t.Errorf("taking %d: %v, %v", n, got, err)
		}
	}
	if *calls != 0 || q.Keys() != 0 {
		t.Errorf("%d calls for no EDEKs, %d keys", *calls, q.Keys())
	}
}
