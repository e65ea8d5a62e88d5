package trustee_test

import (
	"fmt"
	"log"
	"time"

	"claviger/trustee"
)

// An identity seals a secret to itself. Nobody else can open it, the server included.
func ExampleIdentity_Seal() {
	now := time.Now()
	id, err := trustee.NewIdentity("kms1", "", "kms1@example.com", 2048, now)
	if err != nil {
		log.Fatal(err)
	}
	sealed, err := id.Seal([]byte("a key"), now)
	if err != nil {
		log.Fatal(err)
	}
	opened, err := id.Open(sealed, now)
	fmt.Println(string(opened), err)
	// Output: a key <nil>
}
