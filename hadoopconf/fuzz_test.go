package hadoopconf

import (
	"encoding/xml"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
)

// FuzzParse: any file is either refused or gives properties with a name and a place. Written to a new file and read
// again, the properties are the same.
func FuzzParse(f *testing.F) {
	if seeds, err := os.ReadDir("testdata/fuzz/FuzzParse"); err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p := &parser{read: func(path string) ([]byte, error) {
			if path == "/a.xml" {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		}}
		if err := p.file("/a.xml"); err != nil {
			if !strings.HasPrefix(err.Error(), "/a.xml") {
				t.Errorf("an error that does not name the file: %v", err)
			}
			return
		}
		c := New("/", env(nil))
		var b strings.Builder
		b.WriteString("<configuration>")
		for _, prop := range p.props {
			if prop.Name == "" || prop.File != "/a.xml" || prop.Line < 1 {
				t.Errorf("property %+v", prop)
			}
			c.props[prop.Name] = prop
			writeProperty(&b, prop)
		}
		b.WriteString("</configuration>")
		for range c.All() { // must end for any variables
		}
		again := &parser{read: func(string) ([]byte, error) { return []byte(b.String()), nil }}
		if err := again.file("/b.xml"); err != nil {
			t.Fatalf("%v in %q", err, b.String())
		}
		same := func(x, y Property) bool { return x.Name == y.Name && x.Value == y.Value && x.Final == y.Final }
		if !slices.EqualFunc(p.props, again.props, same) {
			t.Errorf("%+v\nbecomes\n%+v", p.props, again.props)
		}
	})
}

// writeProperty writes a property with attributes, because an element without text is ignored.
func writeProperty(b *strings.Builder, p Property) {
	attr := func(name, value string) {
		b.WriteString(" " + name + `="`)
		_ = xml.EscapeText(b, []byte(value)) // a Builder returns no error
		b.WriteString(`"`)
	}
	b.WriteString("<property")
	attr("name", p.Name)
	attr("value", p.Value)
	if p.Final {
		attr("final", "true")
	}
	b.WriteString("/>")
}
