package durable_test

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"

	"claviger/durable"
)

// Create never overwrites a file; Replace does. Both sync the file and its folder.
func Example() {
	dir, err := os.MkdirTemp("", "durable")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "settings")
	fmt.Println(durable.Create(path, []byte("a = 1\n"), 0o600))
	fmt.Println(errors.Is(durable.Create(path, []byte("a = 2\n"), 0o600), fs.ErrExist))
	fmt.Println(durable.Replace(path, []byte("a = 3\n"), 0o600))
	text, err := os.ReadFile(path)
	fmt.Print(string(text), err, "\n")
	// Output:
	// <nil>
	// true
	// <nil>
	// a = 3
	// <nil>
}
