package keystore_test

import (
	"fmt"
	"log"
	"time"

	"claviger/keystore"
	"claviger/secret"
)

// The example writes a key into a Java keystore of type JCEKS, and reads it.
func ExampleJCEKS() {
	password := secret.Bytes("none")
	store := keystore.NewJCEKS()
	err := store.SetKey("finance@0", "AES", secret.Bytes("0123456789abcdef"), password, time.UnixMilli(0))
	if err != nil {
		log.Fatal(err)
	}
	file, err := store.Marshal(password)
	if err != nil {
		log.Fatal(err)
	}
	again, err := keystore.ParseJCEKS(file, password)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(keystore.Sniff(file), again.Aliases())
	// Output: jceks [finance@0]
}
