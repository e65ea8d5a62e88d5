package terminal_test

import (
	"fmt"

	"claviger/terminal"
)

// Characters that move the cursor or change the direction of writing are escaped.
func ExampleSafe() {
	fmt.Println(terminal.Safe("key \x1b[2J\u202e"))
	// Output: key \u001b[2J\u202e
}

func ExampleWrap() {
	fmt.Println(terminal.Wrap("Take over the key metadata of another KMS.", 24, "  "))
	// Output:
	// Take over the key
	//   metadata of another
	//   KMS.
}
