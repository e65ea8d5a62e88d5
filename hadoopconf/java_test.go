package hadoopconf

import (
	"os"
	"strings"
	"testing"
)

// TestAsJava reads the files of testdata/java as Configuration of Hadoop 3.4.2 does. The golden files have a line
// name=[value] for each property, with the result of Configuration.get; the environment had SET=v and EMPTY=, but not
// UNSET. If get threw an exception, the line is name=!.
func TestAsJava(t *testing.T) {
	for golden, files := range map[string][]string{"layers": {"first", "second"}, "odd": {"odd"}} {
		c := New("testdata/java", env(map[string]string{"SET": "v", "EMPTY": ""}))
		for _, f := range files {
			if err := c.AddFile("testdata/java/"+f+".xml", false); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile("testdata/java/" + golden + ".golden")
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, name := range c.Names() {
			p, _ := c.Lookup(name)
			v, err := c.expand(p)
			line := name + "=[" + strings.ReplaceAll(v, "\n", `\n`) + "]\n"
			if err != nil {
				line = name + "=!\n"
			}
			got.WriteString(line)
		}
		if got.String() != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", golden, got.String(), want)
		}
	}
}
