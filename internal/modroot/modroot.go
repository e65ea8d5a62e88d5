// Package modroot finds the folder of go.mod, for tests that read files of the project.
package modroot

import (
	"os"
	"path/filepath"
)

// Path returns the nearest folder, from the working directory upwards, with a go.mod. The working directory of a test
// is the folder of its package.
func Path() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			panic("no go.mod above the working directory")
		}
		dir = up
	}
}
