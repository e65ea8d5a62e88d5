package authn

import (
	"strconv"
	"strings"
)

// queryValue returns the first value of the parameter that match accepts, form
// decoded. Like the parser that Hadoop uses here (Apache's URLEncodedUtils) it
// parts parameters at ';' as well as '&', takes a broken escape as it stands,
// and a parameter without '=' as absent: the first one of that name decides.
func queryValue(raw string, match func(name string) bool) (value string, ok bool) {
	for _, part := range strings.FieldsFunc(raw, func(r rune) bool { return r == '&' || r == ';' }) {
		name, value, hasValue := strings.Cut(part, "=")
		if match(formDecode(name)) {
			return formDecode(value), hasValue
		}
	}
	return "", false
}

// formDecode takes '+' for a blank and decodes the escapes that are whole.
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
