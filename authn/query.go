package authn

import (
	"strconv"
	"strings"
)

// queryValue returns the form-decoded value of the first parameter whose name match accepts. It reads a query as
// Hadoop's parser does (Apache's URLEncodedUtils): parameters are separated by ';' or '&', a broken escape stays as
// it is, and ok is false if the first such parameter has no '='.
func queryValue(raw string, match func(name string) bool) (value string, ok bool) {
	for raw != "" {
		part := raw
		if i := strings.IndexAny(raw, "&;"); i >= 0 {
			part, raw = raw[:i], raw[i+1:]
		} else {
			raw = ""
		}
		if part == "" {
			continue
		}
		name, value, hasValue := strings.Cut(part, "=")
		if match(formDecode(name)) {
			return formDecode(value), hasValue
		}
	}
	return "", false
}

// NamesUser reports whether a query names a user, or has a credential: user.name, delegation or doAs.
func NamesUser(rawQuery string) bool {
	found := false
	queryValue(rawQuery, func(name string) bool {
		found = found || name == "user.name" || name == "delegation" || strings.EqualFold(name, "doAs")
		return found
	})
	return found
}

// formDecode replaces '+' by a blank, and decodes all complete escapes.
func formDecode(s string) string {
	if !strings.ContainsAny(s, "+%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '+' {
			c = ' '
		}
		if c == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				c = byte(v)
				i += 2
			}
		}
		b = append(b, c)
	}
	return string(b)
}
