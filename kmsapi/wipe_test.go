package kmsapi_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/provider/memory"
	"claviger/secret"
)

// keeper is a provider that keeps the slices that it gets, not copies.
type keeper struct {
	*memory.Provider
	given []secret.Bytes
}

func (k *keeper) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	k.given = append(k.given, spec.Material)
	return k.Provider.Create(ctx, spec)
}

func (k *keeper) RollIf(ctx context.Context, key string, material secret.Bytes, may func(*claviger.Metadata) error) (
	claviger.KeyVersion, error) {
	k.given = append(k.given, material)
	return k.Provider.RollIf(ctx, key, material, may)
}

// TestGivenMaterialIsWiped: material that a client sends is overwritten after it is stored, and
// the stored material is right.
func TestGivenMaterialIsWiped(t *testing.T) {
	k := &keeper{Provider: memory.New(memory.Config{SequentialIDs: true})}
	addr := start(t, stack{Primary: k})
	for i, target := range []string{"/kms/v1/keys", "/kms/v1/key/k"} {
		material := base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{byte(i + 1)}, 16))
		a := send(t, addr, "POST", target, `{"name":"k","length":128,"material":"`+material+`"}`)
		if a.status/100 != 2 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if !k.given[i].Equal(make(secret.Bytes, 16)) {
			t.Errorf("%s leaves the material in memory", target)
		}
		// After each answer the server wipes the material that it sent. The second answer shows that this was a copy.
		for range 2 {
			if a := send(t, addr, "GET", "/kms/v1/key/k/_currentversion", ""); a.status != http.StatusOK ||
				!bytes.Contains(a.body, []byte(`"`+material+`"`)) {
				t.Errorf("%d %s, want material %s", a.status, a.body, material)
			}
		}
	}
}
