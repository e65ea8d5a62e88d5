package memory_test

import (
	"context"
	"fmt"
	"log"

	"claviger/provider"
	"claviger/provider/memory"
)

// The example makes and rolls a key. A sealed provider returns no material, as an HSM.
func ExampleNew() {
	ctx := context.Background()
	keys := memory.New(memory.Config{Sealed: true})
	spec := provider.Spec{Name: "finance", Cipher: "AES/CTR/NoPadding", BitLength: 256}
	if _, err := keys.Create(ctx, spec); err != nil {
		log.Fatal(err)
	}
	v, err := keys.Roll(ctx, "finance", nil)
	fmt.Println(v.Name, v.Material == nil, err)
	// Output: finance@1 true <nil>
}
