package terminal_test

import (
	"fmt"

	"claviger/terminal"
)

// What moves the cursor, or turns the direction of writing, is shown as an escape.
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
