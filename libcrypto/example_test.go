package libcrypto_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"claviger/libcrypto"
)

// OpenSSL's library signs with a server's private key. If the library is not installed, Go's own code signs.
func Example() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		fmt.Println(err)
		return
	}
	var signer crypto.Signer = key
	if s, err := libcrypto.NewSigner(key, func(error) {}); err == nil {
		signer = s
	}
	fmt.Println(signer.Public().(*rsa.PublicKey).Size())
	// Output: 256
}
