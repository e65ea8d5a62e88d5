package fsimage_test

import (
	"bytes"
	"context"
	"fmt"

	"claviger/fsimage"
)

// An image that has no attribute of this name has no encryption zone.
func ExampleOpen() {
	file, _ := sample().Bytes()
	image, err := fsimage.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		fmt.Println(err)
		return
	}
	names, err := image.ReadNames(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	_, zones := names.Attr(fsimage.RawSpace, fsimage.ZoneAttr)
	fmt.Println(image.LayoutVersion(), zones)
	// Output: -67 true
}
