package filestamp_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"claviger/filestamp"
)

// Stamps differ after a file was written again, even at the same length.
func ExampleOf() {
	dir, err := os.MkdirTemp("", "stamp")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "rules")
	stamp := func(text string) filestamp.Stamp {
		if text != "" {
			if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
				log.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				log.Fatal(err)
			}
		}
		s, err := filestamp.Of(path)
		if err != nil {
			log.Fatal(err)
		}
		return s
	}
	first := stamp("one")
	fmt.Println(first.Exists(), first == stamp(""), first == stamp("two"))
	// Output: true true false
}
