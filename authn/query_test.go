package authn

import (
	"strings"
	"testing"
)

// TestQueryValue: a query is cut at each '&' and ';', empty parts are left out, and the first parameter of a name
// counts, in all queries of up to four of these parts.
func TestQueryValue(t *testing.T) {
	parts := []string{"", "op=x", "op=a%20b+c", "o%70=y", "op", "op=", "op=%zz", "=op", "x=op=y", "%zz=1"}
	is := func(name string) bool { return name == "op" }
	first := func(query string) (string, bool) {
		for _, part := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
			if name, value, ok := strings.Cut(part, "="); is(formDecode(name)) {
				return formDecode(value), ok
			}
		}
		return "", false
	}
	var try func(query string, more int)
	try = func(query string, more int) {
		got, ok := queryValue(query, is)
		if want, wantOK := first(query); got != want || ok != wantOK {
			t.Fatalf("%q: %q, %v, want %q, %v", query, got, ok, want, wantOK)
		}
		for _, p := range parts {
			if more > 0 {
				try(query+"&"+p, more-1)
				try(query+";"+p, more-1)
			}
		}
	}
	for _, p := range parts {
		try(p, 3)
	}
}

// TestNamesUser: user.name, delegation and doAs are found wherever Authenticate finds them, and nothing else is.
func TestNamesUser(t *testing.T) {
	for query, want := range map[string]bool{
		"": false, "user.name=a": true, "x=1;user%2Ename=a": true, "user.name": true, "a=b&delegation=t": true,
		"dOaS=b": true, "key=user.name": false, "user=a&op=doas": false, "Delegation=t": false,
	} {
		if NamesUser(query) != want {
			t.Errorf("%q: %t", query, !want)
		}
	}
}
