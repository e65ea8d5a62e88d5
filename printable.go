package claviger

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable is a name, or another text that users choose, as a line of a table or a
// message may show it: as it is, or in quotes with Go's escapes where it could be taken for
// something else. Such are control characters and line ends, which would make lines and
// move a terminal's cursor; characters that are not seen or that turn the direction of
// writing; blanks at its ends; and nothing at all.
func Printable(s string) string {
	plain := s != "" && utf8.ValidString(s) && s[0] != '"' && strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
	if plain {
		return s
	}
	return strconv.Quote(s)
}
