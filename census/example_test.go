package census_test

import (
	"bytes"
	"context"
	"fmt"

	"claviger/census"
	"claviger/fsimage"
	"claviger/internal/imagetest"
)

// A version may go when neither a live file nor a snapshot needs it.
func ExampleCount() {
	tree := &imagetest.Tree{Nodes: []imagetest.Node{
		{ID: imagetest.Root, Folder: true, Children: []uint64{16386}},
		{ID: 16386, Name: "orders", Folder: true, Zone: "orders", Children: []uint64{16387}},
		{ID: 16387, Name: "2026.csv", EDEK: "orders@1"},
	}}
	file, _ := tree.Bytes()
	image, err := fsimage.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		fmt.Println(err)
		return
	}
	counted, err := census.Count(context.Background(), image, census.Config{Workers: 2, Paths: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, v := range counted.Report().Versions {
		fmt.Println(v.Version, v.Live, v.SnapshotOnly, v.Retirable, v.Paths)
	}
	// Output:
	// orders@0 0 0 true []
	// orders@1 1 0 false [/orders/2026.csv]
}
