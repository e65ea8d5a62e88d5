package claviger

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Printable returns a name, or another text that users choose, as a table or a message can show it. A plain
// name stays as it is. A name that could be taken for another one is quoted, with Go's escapes: one that
// holds characters that mislead (see Escape), begins with a quote, begins or ends with a blank, or is empty.
func Printable(s string) string {
	plain := s != "" && s[0] != '"' && strings.TrimSpace(s) == s && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, Misleads)
	if plain {
		return s
	}
	return strconv.Quote(s)
}

// Misleads reports whether a reader of a line could miss r, or take the line for another one. Such are
// control characters and line ends, which move a terminal's cursor and make lines; characters that cannot
// be seen; and characters that turn the direction of writing. They are the characters that strconv.Quote
// escapes, so that a quoted text has none.
func Misleads(r rune) bool { return !unicode.IsPrint(r) }

// Escape returns s with each character that misleads written as JSON and Java write it: \n, \r, \t, or
// \uXXXX, twice for a character beyond U+FFFF. Characters in keep stay. Bytes that are not UTF-8 become
// U+FFFD. Escape adds no quotes, so Escape of JSON with its line ends kept is the same JSON.
func Escape(s, keep string) string {
	escaped := func(r rune) bool { return Misleads(r) && !strings.ContainsRune(keep, r) }
	if utf8.ValidString(s) && !strings.ContainsFunc(s, escaped) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case !escaped(r):
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				b.WriteString(`\u` + hex4(unit))
			}
		}
	}
	return b.String()
}

// hex4 writes 16 bits as four hexadecimal digits.
func hex4(n uint16) string {
	s := strconv.FormatUint(uint64(n), 16)
	return strings.Repeat("0", 4-len(s)) + s
}
