package secret_test

import (
	"fmt"

	"claviger/secret"
)

// Secret bytes print redacted under every verb.
func ExampleBytes() {
	pin := secret.Bytes("1234")
	fmt.Printf("%s %v %x\n", pin, pin, pin)
	pin.Wipe()
	fmt.Println(pin.Equal(make(secret.Bytes, len(pin))))
	// Output:
	// [redacted] [redacted] [redacted]
	// true
}
