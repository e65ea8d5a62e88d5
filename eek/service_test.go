package eek

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"claviger"
	"claviger/secret"
)

// keystreams is a provider whose keystream depends on a version's creation time. It finds versions by their names, or
// uses the versions that were read.
type keystreams struct {
	mu    sync.Mutex
	names []string // of the versions of all calls; guarded by mu
	err   error
	works string // the version under which calls succeed despite err
}

func (k *keystreams) EncryptBlocks(ctx context.Context, version string, blocks []byte) error {
	return k.EncryptBlocksOf(ctx, claviger.KeyVersion{Name: version}, blocks)
}

func (k *keystreams) EncryptBlocksOf(_ context.Context, v claviger.KeyVersion, blocks []byte) error {
	k.mu.Lock()
	k.names = append(k.names, v.Name)
	k.mu.Unlock()
	for i := range blocks {
		blocks[i] = byte(v.BitLength)
	}
	if v.Name == k.works {
		return nil
	}
	return k.err
}

// TestService checks that each operation encrypts under the given versions. A pinned Service must encrypt only under
// the versions that were read.
func TestService(t *testing.T) {
	ctx := t.Context()
	old := claviger.KeyVersion{Name: "k@0", BitLength: 128}
	current := claviger.KeyVersion{Name: "k@1", BitLength: 64}
	for name, pinned := range map[string]bool{"by name": false, "pinned": true} {
		k := &keystreams{}
		s := NewService(k)
		if pinned {
			s = NewPinnedService(k)
		}
		stream := func(v claviger.KeyVersion) byte {
			if !pinned {
				return 0
			}
			return byte(v.BitLength)
		}
		iv := bytes.Repeat([]byte{7}, claviger.IVSize)
		dek := secret.Bytes(bytes.Repeat([]byte{1}, 16))
		wrapped, err := s.Wrap(ctx, old, [][]byte{iv}, []secret.Bytes{dek})
		if err != nil || len(wrapped) != 1 || wrapped[0].Material[0] != 1^stream(old) {
			t.Fatalf("%s: wrap: %+v, %v", name, wrapped, err)
		}
		if deks, err := s.Unwrap(ctx, old, "", wrapped); err != nil || !deks[0].Equal(dek) {
			t.Errorf("%s: unwrap: %v, %v", name, deks, err)
		}
		fresh, err := s.Reencrypt(ctx, []claviger.KeyVersion{current, old}, current, wrapped)
		if err != nil || fresh[0].Version != "k@1" || fresh[0].Material[0] != 1^stream(current) {
			t.Errorf("%s: re-encryption: %+v, %v", name, fresh, err)
		}
		if made, err := s.Generate(ctx, current, 2); err != nil || len(made) != 2 || len(made[0].Material) != 8 {
			t.Errorf("%s: generate: %+v, %v", name, made, err)
		}
	}
}

// TestPinnedService checks that a version that was not read is not used, and that the error of a version that was
// deleted after it was read is ErrReplaced. Other errors must not change.
func TestPinnedService(t *testing.T) {
	ctx := t.Context()
	v := claviger.KeyVersion{Name: "k@0", BitLength: 128}
	other := []claviger.EDEK{{Version: "k@5", IV: make([]byte, claviger.IVSize), Material: make([]byte, 16)}}
	k := &keystreams{}
	s := NewPinnedService(k)
	if _, err := s.Unwrap(ctx, v, "", other); !claviger.Is(err, claviger.Internal) {
		t.Errorf("an EDEK of another version: %v", err)
	}
	if _, err := s.Reencrypt(ctx, []claviger.KeyVersion{v}, v, other); !claviger.Is(err, claviger.Internal) {
		t.Errorf("re-encryption of a version that was not read: %v", err)
	}
	if slices.Contains(k.names, "k@5") {
		t.Errorf("the provider encrypted under %q", k.names)
	}
	k.err = claviger.E("test", claviger.VersionNotFound, "k@0", nil)
	if _, err := s.Generate(ctx, v, 1); !errors.Is(err, ErrReplaced) || !claviger.Is(err, claviger.VersionNotFound) {
		t.Errorf("a version that was deleted: %v", err)
	}
	k.err = claviger.E("test", claviger.Unavailable, "k@0", nil)
	if _, err := s.Generate(ctx, v, 1); errors.Is(err, ErrReplaced) || !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("an HSM that does not answer: %v", err)
	}
	k.works = "k@1"
	old := []claviger.EDEK{{Version: "k@0", IV: make([]byte, claviger.IVSize), Material: make([]byte, 16)}}
	to := claviger.KeyVersion{Name: "k@1", BitLength: 128}
	if got, err := s.Reencrypt(ctx, []claviger.KeyVersion{v}, to, old); !claviger.Is(err, claviger.Unavailable) {
		t.Errorf("re-encryption under an old version that cannot be used: %v, %v", got, err)
	}
}

// countedQueue returns a queue, which is closed after the test, and its number of fills.
func countedQueue(t *testing.T, size int) (q *Queue, fills *int) {
	t.Helper()
	fills = new(int)
	q, err := NewQueue(QueueConfig{Size: size, LowWatermark: 1, Expiry: 1, Workers: 1, FillTimeout: 1,
		Fill: func(_ context.Context, _ string, n int) ([]claviger.EDEK, error) {
			*fills++
			return make([]claviger.EDEK, n), nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q, fills
}

// TestEndedContext checks that a Take with an ended context makes no EDEK.
func TestEndedContext(t *testing.T) {
	q, calls := countedQueue(t, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := q.Take(ctx, "k", 1); !claviger.Is(err, claviger.Unavailable) || *calls != 0 {
		t.Errorf("%v, %v, %d calls", got, err, *calls)
	}
}
