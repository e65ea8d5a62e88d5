package audit

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"unicode/utf8"

	"claviger"
)

// textLen returns the length in bytes of all texts that may be long, before they are escaped.
func (r *Record) textLen() int {
	n := len(r.Key) + len(r.Version) + len(r.URL) + len(r.Message) + len(r.Provider)
	for _, v := range r.From {
		n += len(v)
	}
	return n
}

// shorten limits each text to text bytes, as JSON writes it, and all names of versions together to from bytes. Cut
// gets the members that were shortened, because a name may only look as if it were shortened.
func (r *Record) shorten(text, from int) {
	counted := slices.Contains(r.Cut, "from") // the last entry of From may be a number of omitted entries
	r.Cut = nil
	op := string(r.Op)
	for _, m := range []struct {
		name  string
		value *string
	}{
		{"op", &op}, {"key", &r.Key}, {"version", &r.Version}, {"user", &r.User}, {"short", &r.Short},
		{"realUser", &r.RealUser}, {"address", &r.Address}, {"request", &r.Request}, {"method", &r.Method},
		{"url", &r.URL}, {"provider", &r.Provider}, {"message", &r.Message},
	} {
		if s := shortened(*m.value, text); s != *m.value {
			*m.value, r.Cut = s, append(r.Cut, m.name)
		}
	}
	r.Op = Op(op)
	r.shortenFrom(text, from, counted)
}

// shortenFrom limits each name in From to text bytes, and all of them to limit bytes. If counted is true, the last
// entry may be the number of names that were omitted before.
func (r *Record) shortenFrom(text, limit int, counted bool) {
	names, omitted := r.From, 0
	if n := len(names); counted && n > 0 {
		if _, err := fmt.Sscanf(names[n-1], moreForm, &omitted); err == nil && more(omitted) == names[n-1] {
			names = names[:n-1]
		} else {
			omitted = 0
		}
	}
	cut := counted
	r.From = nil // the slice belongs to the event
	used := 0
	for i, v := range names {
		s := shortened(v, text)
		if used += escapedLen(s); used > limit {
			omitted += len(names) - i
			break
		}
		r.From, cut = append(r.From, s), cut || s != v
	}
	if omitted > 0 {
		r.From, cut = append(r.From, more(omitted)), true
	}
	if cut {
		r.Cut = append(r.Cut, "from")
	}
}

const moreForm = "and %d more"

func more(n int) string { return fmt.Sprintf(moreForm, n) }

// shortened returns s if it has at most limit bytes in JSON. Otherwise it returns the beginning of s, its length and
// SHA-256, and its end. The end is kept because the name of a version ends with a number.
func shortened(s string, limit int) string {
	if len(s) <= limit && escapedLen(s) <= limit {
		return s
	}
	const keep = 12 // bytes of the end
	end := len(s) - keep
	for end < len(s) && !utf8.RuneStart(s[end]) {
		end++
	}
	digest := fmt.Sprintf("...(%d bytes, SHA-256 %x)...", len(s), sha256.Sum256([]byte(s)))
	room := limit - len(digest) - escapedLen(s[end:])
	begin := 0
	for i, r := range s[:end] {
		if room -= escapedRune(s[i:], r); room < 0 {
			break
		}
		begin = i + runeLen(s[i:])
	}
	return s[:begin] + digest + s[end:]
}

// escapedLen returns the maximum length in bytes of a text in JSON.
func escapedLen(s string) (n int) {
	for i, r := range s {
		n += escapedRune(s[i:], r)
	}
	return n
}

// escapedRune returns the maximum length in bytes of r in JSON. s begins with r.
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
