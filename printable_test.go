package claviger_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"claviger"
)

// TestPrintable: a name that stays as it is cannot be confused with another name.
func TestPrintable(t *testing.T) {
	for name, want := range map[string]string{
		"k1": "k1", "größe": "größe", "鍵": "鍵", "a b": "a b", `a"b`: `a"b`, "key@3": "key@3",
		"": `""`, " k": `" k"`, "k ": `"k "`, "\u00a0k": `"\u00a0k"`, "k\u3000": `"k\u3000"`, `"k"`: `"\"k\""`,
		"a\nb": `"a\nb"`, "a\rb": `"a\rb"`, "a\tb": `"a\tb"`, "a\x1b[2Jb": `"a\x1b[2Jb"`,
		"a\u202eb": `"a\u202eb"`, "a\u0085b": `"a\u0085b"`, "a\u2028b": `"a\u2028b"`,
		"a\u200bb": `"a\u200bb"`, "a\xffb": `"a\xffb"`,
	} {
		if got := claviger.Printable(name); got != want {
			t.Errorf("%q is shown as %s, want %s", name, got, want)
		}
	}
}

// TestEscape: only the misleading characters that are not kept change.
func TestEscape(t *testing.T) {
	for _, c := range []struct{ text, keep, want string }{
		{"a key", "", "a key"}, {"", "", ""}, {"größe 鍵", "", "größe 鍵"},
		{"a\nb\tc\rd", "", `a\nb\tc\rd`}, {"a\nb\tc\rd", "\n\t", "a\nb\tc" + `\rd`},
		{"a\x1b[2Jb", "\n\t", `a\u001b[2Jb`}, {"a\u0085b\u2028c\u202ed\u200be", "", `a\u0085b\u2028c\u202ed\u200be`},
		{"a\x9bb", "", "a\ufffdb"}, {"\U000e0041", "", `\udb40\udc41`},
	} {
		if got := claviger.Escape(c.text, c.keep); got != c.want {
			t.Errorf("%q without %q is escaped as %q, want %q", c.text, c.keep, got, c.want)
		}
	}
}

// TestEscapeKeepsJSON: escaped JSON has the same meaning, and no misleading characters.
func TestEscapeKeepsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		b, err := json.MarshalIndent([]string{text}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		escaped := claviger.Escape(string(b), "\n")
		var back []string
		if err := json.Unmarshal([]byte(escaped), &back); err != nil {
			t.Fatalf("%s: %v", escaped, err)
		}
		if back[0] != text || !utf8.ValidString(escaped) ||
			strings.ContainsFunc(strings.ReplaceAll(escaped, "\n", ""), claviger.Misleads) {
			t.Fatalf("%q became %q", text, escaped)
		}
	})
}

// TestQuoteLeavesNothing: a quoted text, as %q makes it, has no misleading characters.
func TestQuoteLeavesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		if strings.ContainsFunc(strconv.Quote(text), claviger.Misleads) {
			t.Fatalf("%q", text)
		}
	})
}

// TestFirstNames: the names beyond the limit are counted.
func TestFirstNames(t *testing.T) {
	for want, names := range map[string][]string{"": nil, "a": {"a"}, "a, b": {"a", "b"},
		"a, b and 1 more": {"a", "b", "c"}, "a, b and 2 more": {"a", "b", "c", "d"}} {
		if got := claviger.FirstNames(names, 2); got != want {
			t.Errorf("%q: %q, want %q", names, got, want)
		}
	}
}
