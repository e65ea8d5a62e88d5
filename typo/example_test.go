package typo_test

import (
	"fmt"

	"claviger/typo"
)

// Nearest finds the word for a misspelt one, and nothing for a word that is far from all others.
func ExampleNearest() {
	known := []string{"DECRYPT_EEK", "GENERATE_EEK", "ROLLOVER"}
	for _, word := range []string{"DECRYPT_EKK", "PURGE"} {
		nearest, ok := typo.Nearest(word, known)
		fmt.Printf("%q %v\n", nearest, ok)
	}
	// Output:
	// "DECRYPT_EEK" true
	// "" false
}
