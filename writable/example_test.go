package writable_test

import (
	"fmt"

	"claviger/writable"
)

// A number and a text, in the format of Hadoop's WritableUtils.
func Example() {
	b := writable.AppendText(writable.AppendLong(nil, 1000), "hdfs")
	fmt.Printf("% x\n", b)
	r := writable.Reader{Rest: b}
	fmt.Println(r.Long(), r.Text(), r.Failed)
	// Output:
	// 8e 03 e8 04 68 64 66 73
	// 1000 hdfs false
}
