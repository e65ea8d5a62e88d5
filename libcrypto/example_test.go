package libcrypto_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"claviger/libcrypto"
)

// The key of a server signs by the library, or by itself if the library is not installed.
func Example() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		fmt.Println(err)
		return
	}
	var signs crypto.Signer = key
	if s, err := libcrypto.NewSigner(key, func(error) {}); err == nil {
		signs = s
	}
	fmt.Println(signs.Public().(*rsa.PublicKey).Size())
	// Output: 256
}
