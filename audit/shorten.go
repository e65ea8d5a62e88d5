package audit

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"unicode/utf8"

	"claviger"
)

// long is how many bytes the texts take that may be long, before they are escaped.
func (r *Record) long() int {
	n := len(r.Key) + len(r.Version) + len(r.URL) + len(r.Message) + len(r.Provider)
	for _, v := range r.From {
		n += len(v)
	}
	return n
}

// shorten leaves of each text, as JSON writes it, that many bytes, and so many of the
// names of versions together. Cut names the members that have lost something: a name
// that only looks shortened is so told from one that was.
func (r *Record) shorten(text, from int) {
	counted := slices.Contains(r.Cut, "from") // its last entry may say how many are left out
	r.Cut = nil
	op := string(r.Op)
	for _, m := range []struct {
		name string
		of   *string
	}{
		{"op", &op}, {"key", &r.Key}, {"version", &r.Version}, {"user", &r.User}, {"short", &r.Short},
		{"realUser", &r.RealUser},
		{"address", &r.Address}, {"request", &r.Request}, {"method", &r.Method}, {"url", &r.URL},
		{"provider", &r.Provider}, {"message", &r.Message},
	} {
		if s := shortened(*m.of, text); s != *m.of {
			*m.of, r.Cut = s, append(r.Cut, m.name)
		}
	}
	r.Op = Op(op)
	r.shortenFrom(text, from, counted)
}

func (r *Record) shortenFrom(text, most int, counted bool) {
	whole, left := r.From, 0
	if n := len(whole); counted && n > 0 {
		if _, err := fmt.Sscanf(whole[n-1], moreForm, &left); err == nil && more(left) == whole[n-1] {
			whole = whole[:n-1]
		} else {
			left = 0
		}
	}
	cut := counted
	r.From = nil // it is the event's
	used := 0
	for i, v := range whole {
		s := shortened(v, text)
		if used += escapedLen(s); used > most {
			left += len(whole) - i
			break
		}
		r.From, cut = append(r.From, s), cut || s != v
	}
	if left > 0 {
		r.From, cut = append(r.From, more(left)), true
	}
	if cut {
		r.Cut = append(r.Cut, "from")
	}
}

const moreForm = "and %d more"

func more(n int) string { return fmt.Sprintf(moreForm, n) }

// shortened is a text that takes at most so many bytes in JSON: its beginning, its length
// and SHA-256, and its end, which is the number in the name of a version.
func shortened(s string, most int) string {
	if len(s) <= most && escapedLen(s) <= most {
		return s
	}
	const keep = 12 // bytes of the end
	end := len(s) - keep
	for end < len(s) && !utf8.RuneStart(s[end]) {
		end++
	}
	note := fmt.Sprintf("...(%d bytes, SHA-256 %x)...", len(s), sha256.Sum256([]byte(s)))
	room := most - len(note) - escapedLen(s[end:])
	begin := 0
	for i, r := range s[:end] {
		if room -= escapedRune(s[i:], r); room < 0 {
			break
		}
		begin = i + runeLen(s[i:])
	}
	return s[:begin] + note + s[end:]
}

// escapedLen is how many bytes a text takes in JSON, at most.
func escapedLen(s string) (n int) {
	for i, r := range s {
		n += escapedRune(s[i:], r)
	}
	return n
}

// escapedRune is the same of r, with which s begins.
func escapedRune(s string, r rune) int {
	switch n := runeLen(s); {
	case r == '"' || r == '\\':
		return 2
	case r > 0xffff && claviger.Misleads(r):
		return 2 * len(`\u0000`)
	case claviger.Misleads(r) || r == utf8.RuneError && n == 1:
		return len(`\u0000`)
	default:
		return n
	}
}

func runeLen(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	return n
}
