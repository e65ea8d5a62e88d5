package claviger

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// FoldName returns the spelling of a key's name in stores that keep names in lower case. It is Java's
// String.toLowerCase for English, which Java's keystores (JCEKS, and so Hadoop's Java KMS) and Ranger's store use. It
// is not strings.ToLower: U+0130 becomes two characters, and a capital sigma depends on its place in a word. Two names
// mean one key in such a store if, and only if, FoldName returns the same for both.
func FoldName(name string) string {
	for i := range len(name) {
		if name[i] >= utf8.RuneSelf {
			return foldUnicode(name)
		}
	}
	return strings.ToLower(name)
}

const (
	dottedI    = '\u0130' // capital I with a dot above
	bigSigma   = '\u03a3'
	smallSigma = '\u03c3'
	finalSigma = '\u03c2'
)

func foldUnicode(name string) string {
	var b strings.Builder
	for i, r := range name {
		switch {
		case r == utf8.RuneError:
			_, n := utf8.DecodeRuneInString(name[i:])
			b.WriteString(name[i : i+n]) // unchanged, so that two different malformed names stay different
		case r == dottedI:
			b.WriteString("i\u0307")
		case r == bigSigma && endsWord(name, i):
			b.WriteRune(finalSigma)
		case r == bigSigma:
			b.WriteRune(smallSigma)
		default:
			b.WriteRune(unicode.ToLower(r))
		}
	}
	return b.String()
}

// javaWord matches one word of Java's BreakIterator: words and numbers with nothing between them, and the punctuation
// that may be inside a word or a number.
var javaWord = func() *regexp.Regexp {
	const (
		ignored = `[\p{Mn}\p{Me}\p{Cf}]*`
		letters = `(?:\p{L}` + ignored + `)+`
		digits  = `(?:[\p{Nd}\p{No}]` + ignored + `)+`
		word    = `(?:` + letters + `(?:[\p{Pd}\p{Pc}\x{2027}"'.]` + letters + `)*)`
		number  = `(?:` + digits + `(?:["',.\x{066b}]` + digits + `)*)`
	)
	re := regexp.MustCompile(`^` + word + `?(?:` + number + word + `)*` + number + `?`)
	re.Longest()
	return re
}()

// endsWord reports whether the letter at i is the last cased letter of its word, and not the only cased letter.
func endsWord(name string, i int) bool {
	for start := 0; start <= i; {
		n := len(javaWord.FindString(name[start:]))
		if n == 0 {
			_, n = utf8.DecodeRuneInString(name[start:])
		}
		if end := start + n; i < end {
			after := i + utf8.RuneLen(bigSigma)
			return strings.ContainsFunc(name[start:i], cased) && !strings.ContainsFunc(name[after:max(after, end)],
				cased)
		}
		start += n
	}
	return false
}

// cased is Java's isCased.
func cased(r rune) bool {
	return unicode.In(r, unicode.Lu, unicode.Ll, unicode.Lt) ||
		r >= 0x2b0 && r <= 0x2b8 || r == 0x2c0 || r == 0x2c1 || r >= 0x2e0 && r <= 0x2e4 || r == 0x345 || r == 0x37a ||
		r >= 0x1d2c && r <= 0x1d61 || r >= 0x2160 && r <= 0x217f || r >= 0x24b6 && r <= 0x24e9
}
