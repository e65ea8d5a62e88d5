package sqlite_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"claviger/metastore/sqlite"
)

// A value that was set is still there after the store is opened again.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "sqlite")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, path := context.Background(), filepath.Join(dir, "claviger.db")
	store, err := sqlite.Open(ctx, path)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(store.SetSetting(ctx, "example", "1"), store.Close())

	store, err = sqlite.Open(ctx, path)
	if err != nil {
		log.Fatal(err)
	}
	value, ok, err := store.Setting(ctx, "example")
	fmt.Println(value, ok, err)
	fmt.Println(store.Close())
	// Output:
	// <nil> <nil>
	// 1 true <nil>
	// <nil>
}
