package secret

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// masked replaces a credential.
const masked = "***"

// shortest is the smallest length of a text that Mask searches for a delegation token or a cookie. A token with names
// of one letter is longer than 70 characters.
const shortest = 40

// Mask returns the text without the credentials of a request: Hadoop's delegation tokens, hadoop.auth cookies, and the
// token behind "Negotiate" in a header. It finds them by their form, anywhere in the text, even if they are
// percent-encoded several times. So any text of a client may be logged. Mask returns a text without credentials
// unchanged.
func Mask(s string) string {
	if len(s) < shortest {
		return s
	}
	found := decodedPlaces(s, places)
	for i := range found {
		found[i] = wholeWord(s, found[i])
	}
	return replace(s, found, masked)
}

// replace returns s with by in place of each found range.
func replace(s string, found [][2]int, by string) string {
	if len(found) == 0 {
		return s
	}
	slices.SortFunc(found, func(a, b [2]int) int { return a[0] - b[0] })
	var b strings.Builder
	end := 0
	for _, f := range found {
		if f[0] >= end {
			b.WriteString(s[end:f[0]] + by)
		}
		end = max(end, f[1])
	}
	return b.String() + s[end:]
}

// maxDecoded is how often a text is percent-decoded. A text that is encoded more often is an attempt to deceive, and is
// masked completely.
const maxDecoded = 6

// decodedPlaces returns the ranges of s that find finds in s itself, or in s percent-decoded once or several times.
func decodedPlaces(s string, find func([]byte) [][2]int) (found [][2]int) {
	text := []byte(s)
	var at []int // position in s of each byte of text, and of its end; nil if text is s
	for range maxDecoded {
		for _, p := range find(text) {
			if at != nil {
				p = [2]int{at[p[0]], at[p[1]]}
			}
			found = append(found, p)
		}
		var changed bool
		if text, at, changed = percentDecode(text, at); !changed {
			return found
		}
	}
	return [][2]int{{0, len(s)}}
}

// wholeWord extends a range to the whole word. Before or behind it there may be an incomplete escape, or an escape that
// contains the first characters of the credential.
func wholeWord(s string, p [2]int) [2]int {
	part := func(c byte) bool { return c == '%' || sextet(c) >= 0 }
	for p[0] > 0 && part(s[p[0]-1]) {
		p[0]--
	}
	for p[1] < len(s) && part(s[p[1]]) {
		p[1]++
	}
	return p
}

// percentDecode decodes the complete escapes of text once. at has the positions of the bytes of text, see
// decodedPlaces. percentDecode also returns the positions of the bytes of the result.
func percentDecode(text []byte, at []int) (_ []byte, _ []int, changed bool) {
	if bytes.IndexByte(text, '%') < 0 {
		return text, at, false
	}
	out, places := make([]byte, 0, len(text)), make([]int, 0, len(text)+1)
	place := func(i int) int {
		if at == nil {
			return i
		}
		return at[i]
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		places = append(places, place(i))
		if c == '%' && i+2 < len(text) {
			if n, err := strconv.ParseUint(string(text[i+1:i+3]), 16, 8); err == nil {
				c, changed = byte(n), true
				i += 2
			}
		}
		out = append(out, c)
	}
	return out, append(places, place(len(text))), changed
}

var (
	// signature matches the end of a hadoop.auth cookie: the expiry, and the signature.
	signature = regexp.MustCompile(`&e=-?\d+&s=([A-Za-z0-9+/_=-]+)`)
	// ticket matches the credential of an Authorization header.
	ticket = regexp.MustCompile(`(?i)\b(?:negotiate|bearer)\s+([A-Za-z0-9+/_=.-]{20,})`)
)

// places returns the ranges of text with a credential that is not percent-encoded.
func places(text []byte) (found [][2]int) {
	if bytes.Contains(text, []byte("&s=")) {
		found = groups(found, signature, text)
	}
	if bytes.ContainsAny(text, " \t") {
		found = groups(found, ticket, text)
	}
	for i := 0; i < len(text); i++ {
		if sextet(text[i]) < 0 {
			continue
		}
		begin := i
		for i < len(text) && (sextet(text[i]) >= 0 || text[i] == '\r' || text[i] == '\n') {
			i++
		}
		if i-begin >= shortest && isToken(text[begin:i]) {
			found = append(found, [2]int{begin, i})
		}
	}
	return found
}

func groups(found [][2]int, re *regexp.Regexp, text []byte) [][2]int {
	for _, m := range re.FindAllSubmatchIndex(text, -1) {
		found = append(found, [2]int{m[2], m[3]})
	}
	return found
}

// sextet returns the value of a character of either base64 alphabet, and -1 for other characters.
func sextet(c byte) int8 { return sextets[c] }

var sextets = func() (t [256]int8) {
	for i := range t {
		t[i] = -1
	}
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	for i := range digits {
		t[digits[i]] = int8(i)
	}
	t['+'], t['-'], t['/'], t['_'] = 62, 62, 63, 63
	return t
}()

// isToken reports whether a run of base64 characters contains a delegation token. Text before the token may be of the
// same alphabet, so isToken tries all four alignments.
func isToken(run []byte) bool {
	plain := make([]byte, 0, len(run))
	for _, c := range run {
		switch c {
		case '\r', '\n':
			continue
		case '+':
			c = '-'
		case '/':
			c = '_'
		}
		plain = append(plain, c)
	}
	decoded := make([]byte, len(plain))
	for skip := range min(4, len(plain)) {
		part := plain[skip:]
		if len(part)%4 == 1 { // the last character has no complete byte
			part = part[:len(part)-1]
		}
		n, _ := base64.RawURLEncoding.Decode(decoded, part) // no error: part has only characters of the alphabet
		if hasDates(decoded[:n]) {
			return true
		}
	}
	return false
}

// hasDates reports whether b contains two consecutive dates, as each delegation token of Hadoop does: the times of its
// issue and of the end of its life. WritableUtils writes each as 0x8a and six bytes. For times between 2004 and 2074,
// the first of these bytes is 1 or 2. The password of the token comes after the dates, so a token that was cut is found
// if it still has a part of the password.
func hasDates(b []byte) bool {
	const long, size = 0x8a, 7
	date := func(b []byte) bool { return b[0] == long && (b[1] == 1 || b[1] == 2) }
	for i := 0; i+size+1 < len(b); i++ {
		if date(b[i:]) && date(b[i+size:]) {
			return true
		}
	}
	return false
}
