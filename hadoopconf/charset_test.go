package hadoopconf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCharsets reads files in other encodings, and in XML 1.1, as Configuration of Hadoop 3.4.2 does.
// testdata/java/Charsets.java wrote the golden file.
func TestCharsets(t *testing.T) {
	want, err := os.ReadFile("testdata/java/charsets.golden")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/java/charset-*.xml")
	if err != nil || len(files) < 11 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	var got strings.Builder
	for _, f := range files {
		c := New("testdata/java", env(nil))
		if err := c.AddFile(f, false); err != nil {
			t.Error(err)
		}
		fmt.Fprintf(&got, "%s=[%s]\n", filepath.Base(f), c.String("a.value"))
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}
