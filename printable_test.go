package claviger_test

import (
	"testing"

	"claviger"
)

// TestPrintable: a name that is shown as it is cannot be mistaken for another one.
func TestPrintable(t *testing.T) {
	for name, want := range map[string]string{
		"k1": "k1", "größe": "größe", "鍵": "鍵", "a b": "a b", `a"b`: `a"b`, "key@3": "key@3",
		"": `""`, " k": `" k"`, "k ": `"k "`, "\u00a0k": `"\u00a0k"`, "k\u3000": `"k\u3000"`, `"k"`: `"\"k\""`,
		"a\nb": `"a\nb"`, "a\rb": `"a\rb"`, "a\tb": `"a\tb"`, "a\x1b[2Jb": `"a\x1b[2Jb"`,
		"a\u202eb": `"a\u202eb"`, "a\u0085b": `"a\u0085b"`, "a\u2028b": `"a\u2028b"`, "a\u200bb": `"a\u200bb"`, "a\xffb": `"a\xffb"`,
	} {
		if got := claviger.Printable(name); got != want {
			t.Errorf("%q is shown as %s, want %s", name, got, want)
		}
	}
}
