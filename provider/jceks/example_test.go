package jceks_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"claviger/provider"
	"claviger/provider/jceks"
)

// The example makes a key in a keystore file that Hadoop's own KMS can read.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "jceks")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	env := provider.Env{
		Get:    func(string) (string, bool) { return "", false },
		Getenv: func(string) string { return "" }, // no password is set, so Hadoop's default "none" is used
	}
	keys, err := jceks.Open(ctx, "jceks://file@"+filepath.Join(dir, "kms.keystore"), env)
	if err != nil {
		log.Fatal(err)
	}
	v, err := keys.Create(ctx, provider.Spec{Name: "finance", Cipher: "AES/CTR/NoPadding", BitLength: 128})
	fmt.Println(v.Name, err)
	fmt.Println(keys.Close())
	// Output:
	// finance@0 <nil>
	// <nil>
}
