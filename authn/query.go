package authn

import (
	"net/url"
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

func formDecode(s string) string {
	d, err := url.QueryUnescape(s)
	if err != nil {
		return s
	}
	return d
}
