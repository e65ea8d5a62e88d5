package provider_test

import (
	"fmt"
	"log"

	"claviger/provider"
)

// All hosts of a kms:// URI have the same port and path.
func ExampleParseKMS() {
	k, err := provider.ParseKMS("kms://https@kms1;kms2:9600/kms")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(k.BaseURLs())
	// Output: [https://kms1:9600/kms https://kms2:9600/kms]
}
