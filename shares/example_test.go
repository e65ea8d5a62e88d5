package shares_test

import (
	"fmt"

	"claviger/shares"
)

// The first caller gets half of the units, and the second caller half of the rest.
func ExampleShares_Try() {
	units := shares.New(8, false)
	for _, caller := range []string{"alice", "bob"} {
		n := 0
		for granted, _ := units.Try(caller, 1); granted > 0; granted, _ = units.Try(caller, 1) {
			n++
		}
		fmt.Println(caller, n)
	}
	// Output:
	// alice 4
	// bob 2
}
