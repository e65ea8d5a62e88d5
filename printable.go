package claviger

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Printable returns a name, or another text that users choose, in a form for tables and messages. A plain name stays as
// it is. A name that a reader could confuse with another name is quoted, with Go's escapes: a name that has misleading
// characters (see Misleads), begins with a quote, begins or ends with a blank, or is empty.
func Printable(s string) string {
	plain := s != "" && s[0] != '"' && strings.TrimSpace(s) == s && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, Misleads)
	if plain {
		return s
	}
	return strconv.Quote(s)
}

// FirstNames joins the first names of a list, as many as most, and counts the others: "a, b and 7 more".
func FirstNames(names []string, most int) string {
	text := strings.Join(names[:min(most, len(names))], ", ")
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// Misleads reports whether r can mislead a reader. Control characters and line ends move a terminal's cursor and make
// lines; other characters are invisible, or change the direction of writing. These are the characters that
// strconv.Quote escapes, so a quoted text has none.
func Misleads(r rune) bool { return !unicode.IsPrint(r) }

// Escape returns s with each misleading character written as in JSON and Java: \n, \r, \t, or \uXXXX, twice for a
// character above U+FFFF. Characters in keep stay. Bytes that are not UTF-8 become U+FFFD. Escape adds no quotes: if it
// keeps the line ends of JSON, the result is the same JSON.
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
