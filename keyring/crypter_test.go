package keyring

import (
	"context"
	"errors"
	"slices"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// givenService is another KMS that answers a re-encryption as the test says.
type givenService struct {
	provider.EDEKService
	edeks []claviger.EDEK
	err   error
}

func (g givenService) Reencrypt(context.Context, string, []claviger.EDEK) ([]claviger.EDEK, error) {
	return g.edeks, g.err
}

// TestRemoteReencrypt: another KMS must return one EDEK for each EDEK that it got. They replace the old EDEKs at the
// same indexes.
func TestRemoteReencrypt(t *testing.T) {
	to := claviger.KeyVersion{Key: "k", Name: "k@1"}
	old := []claviger.EDEK{{Version: "k@0"}, {Version: "k@1", IV: []byte("current")}, {Version: "k@0"}}
	fresh := []claviger.EDEK{{Version: "k@1", IV: []byte("first")}, {Version: "k@1", IV: []byte("third")}}
	out, err := remote{service: givenService{edeks: fresh}}.Reencrypt(t.Context(), nil, to, old)
	var got []string
	for _, e := range out {
		got = append(got, string(e.IV))
	}
	if err != nil || !slices.Equal(got, []string{"first", "current", "third"}) {
		t.Errorf("%q, %v", got, err)
	}
	for _, edeks := range [][]claviger.EDEK{nil, fresh[:1], append(fresh, fresh...)} {
		out, err := remote{service: givenService{edeks: edeks}}.Reencrypt(t.Context(), nil, to, old)
		if !claviger.Is(err, claviger.Internal) || out != nil {
			t.Errorf("%d EDEKs for 2: %v, %v", len(edeks), out, err)
		}
	}
	out, err = remote{service: givenService{err: errInjected, edeks: fresh}}.Reencrypt(t.Context(), nil, to, old)
	if !errors.Is(err, errInjected) || out != nil {
		t.Errorf("%v, %v", out, err)
	}
}

// TestCheckOpened: a provider must return one DEK for each EDEK, of the same length as the EDEK's material.
func TestCheckOpened(t *testing.T) {
	edeks := []claviger.EDEK{{Version: "k@0", Material: make([]byte, 16)}, {Version: "k@0", Material: make([]byte, 32)}}
	for _, tt := range []struct {
		lengths []int
		ok      bool
	}{{[]int{16, 32}, true}, {[]int{16}, false}, {[]int{16, 32, 16}, false}, {nil, false}, {[]int{32, 16}, false}} {
		var deks []secret.Bytes
		for _, n := range tt.lengths {
			deks = append(deks, make(secret.Bytes, n))
		}
		if err := checkOpened(edeks, deks); (err == nil) != tt.ok || !tt.ok && !claviger.Is(err, claviger.Internal) {
			t.Errorf("DEKs of %v bytes: %v", tt.lengths, err)
		}
	}
}
