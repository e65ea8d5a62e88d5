package keyring

import (
	"fmt"
	"strings"
	"testing"

	"claviger"
	"claviger/provider"
)

// attributesOf returns attributes that together have that many bytes, in names and values.
func attributesOf(bytes int) map[string]string {
	all := map[string]string{}
	for i := 0; bytes > 0; i++ {
		name := fmt.Sprintf("%02d", i)
		n := min(bytes-len(name), maxAttributeValue)
		all[name] = strings.Repeat("v", n)
		bytes -= len(name) + n
	}
	return all
}

// manyAttributes returns n attributes.
func manyAttributes(n int) map[string]string {
	all := map[string]string{}
	for i := range n {
		all[fmt.Sprint("a", i)] = "v"
	}
	return all
}

// one returns a single attribute.
func one(name, value string) map[string]string { return map[string]string{name: value} }

// TestCreateChecksMetadata: metadata at its limit makes a key. Metadata beyond it
// makes no key, and the error names the part.
func TestCreateChecksMetadata(t *testing.T) {
	long := func(n int) *string { s := strings.Repeat("d", n); return &s }
	nul := "a\x00b"
	cipher := func(n int) string { return claviger.DefaultCipher + strings.Repeat(" ", n-len(claviger.DefaultCipher)) }
	for _, c := range []struct {
		name string
		spec provider.Spec
		text string // "": the key is made
	}{
		{"name", provider.Spec{Name: strings.Repeat("n", claviger.MaxName+1)}, "the name of the key is longer than "},
		{"NUL in the name", provider.Spec{Name: nul}, "the name of the key holds a NUL"},
		{"cipher", provider.Spec{Cipher: cipher(maxCipher + 1)}, "the cipher has 129 bytes, and may have at most 128"},
		{"description at the limit", provider.Spec{Description: long(maxDescription)}, ""},
		{"description", provider.Spec{Description: long(maxDescription + 1)},
			"the description has 8193 bytes, and may have at most 8192"},
		{"NUL in the description", provider.Spec{Description: &nul}, "the description holds a NUL"},
		{"attributes at the limit", provider.Spec{Attributes: manyAttributes(maxAttributes)}, ""},
		{"attributes", provider.Spec{Attributes: manyAttributes(maxAttributes + 1)},
			"the key has 65 attributes, and may have at most 64"},
		{"attribute's name at the limit", provider.Spec{Attributes: one(*long(maxAttributeName), "")}, ""},
		{"attribute's name", provider.Spec{Attributes: one(*long(maxAttributeName + 1), "")},
			"the name of an attribute has 257 bytes, and may have at most 256"},
		{"attribute's value", provider.Spec{Attributes: one("a", *long(maxAttributeValue + 1))},
			"the value of an attribute has 4097 bytes, and may have at most 4096"},
		{"NUL in an attribute's name", provider.Spec{Attributes: one(nul, "v")}, "an attribute holds a NUL"},
		{"NUL in an attribute's value", provider.Spec{Attributes: one("a", nul)}, "an attribute holds a NUL"},
		{"all attributes at the limit", provider.Spec{Attributes: attributesOf(maxAllAttributes)}, ""},
		{"all attributes", provider.Spec{Attributes: attributesOf(maxAllAttributes + 1)},
			"the sum of all attributes has 32769 bytes, and may have at most 32768"},
		{"ACL name", provider.Spec{Attributes: one(claviger.ACLNameAttribute, "\xff")}, "the attribute " +
			claviger.ACLNameAttribute + " is not UTF-8"},
		{"ACL name of a key", provider.Spec{Attributes: one(claviger.ACLNameAttribute, "guard")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newTestRing(t, nil)
			if c.spec.Name == "" {
				c.spec.Name = "k"
			}
			_, err := l.Create(t.Context(), caller("u"), c.spec)
			names, _ := l.primary.Keys(t.Context())
			switch {
			case c.text == "" && (err != nil || len(names) != 1):
				t.Errorf("%q, %v", names, err)
			case c.text != "" && (!claviger.Is(err, claviger.Invalid) || len(names) > 0 ||
				!strings.Contains(text(t, err), c.text)):
				t.Errorf("%q, %v", names, err)
			}
		})
	}
}
