package owner_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"claviger/owner"
)

// A claim lasts until it is released, or until the process ends.
func ExampleClaim() {
	dir, err := os.MkdirTemp("", "owner")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	lock := filepath.Join(dir, "store.lock")
	release, err := owner.Claim(lock, "the store", owner.Self("claviger kms", "/etc/claviger"))
	if err != nil {
		log.Fatal(err)
	}
	o, ok, err := owner.Of(lock)
	fmt.Println(o.What, ok, err)
	release()
	_, ok, err = owner.Of(lock)
	fmt.Println(ok, err)
	// Output:
	// claviger kms true <nil>
	// false <nil>
}
