package eek_test

import (
	"context"
	"fmt"
	"log"

	"claviger/eek"
	"claviger/provider"
	"claviger/provider/memory"
)

// The example makes two EDEKs and opens them, each time with one call of the provider.
func Example() {
	ctx := context.Background()
	keys := memory.New(memory.Config{})
	v, err := keys.Create(ctx, provider.Spec{Name: "finance", Cipher: "AES/CTR/NoPadding", BitLength: 256})
	if err != nil {
		log.Fatal(err)
	}
	edeks, err := eek.Generate(ctx, keys, v.Name, 32, 2, nil)
	if err != nil {
		log.Fatal(err)
	}
	deks, err := eek.Unwrap(ctx, keys, edeks)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(edeks[0].Version, len(edeks[0].Material), deks[0].Equal(deks[1]))
	for _, dek := range deks {
		dek.Wipe()
	}
	// Output: finance@0 32 false
}
