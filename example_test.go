package claviger_test

import (
	"fmt"

	"claviger"
)

// A key version's name has the key's name before the last '@'.
func ExampleParseVersion() {
	v := claviger.ParseVersion("finance@eu@3")
	n, ok := v.Number()
	fmt.Println(v.Key, n, ok)
	// Output: finance@eu 3 true
}

// A kind tells a caller what to do about an error. It survives wrapping.
func ExampleKindOf() {
	err := fmt.Errorf("reading: %w", claviger.E("provider.Current", claviger.KeyNotFound, "finance", nil))
	fmt.Println(claviger.KindOf(err) == claviger.KeyNotFound)
	// Output: true
}
