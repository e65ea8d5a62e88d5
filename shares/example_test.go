package shares_test

import (
	"fmt"

	"claviger/shares"
)

// One caller gets half of what is there, and a second one half of the rest.
func ExampleShares_Try() {
	places := shares.New(8, false)
	for _, caller := range []string{"alice", "bob"} {
		n := 0
		for granted, _ := places.Try(caller, 1); granted > 0; granted, _ = places.Try(caller, 1) {
			n++
		}
		fmt.Println(caller, n)
	}
	// Output:
	// alice 4
	// bob 2
}
