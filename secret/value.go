package secret

import (
	"regexp"
	"strings"
)

// Redacted is what Hadoop's ConfigRedactor shows in a value's place.
const Redacted = "<redacted>"

// inValue finds secrets within a value that is otherwise fit to be seen:
// parameters of URIs, connection strings, JAAS and JSON. A bare value ends at a
// blank or '&' alone: a password may hold ';' and ','. Only a pin-value (RFC 7512)
// may not.
var inValue = regexp.MustCompile(`(?i)((?:passw(?:or)?d|passphrase|pass|pwd|secret|access_?key|account_?key|private_?key|api_?key|access_?token|auth_?token|delegation|sig|signature)["']?\s*[=:]\s*)` +
	`("(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.|'')*'?|\{[^}]*\}?|[^&\s]+)` +
	`|(pin-value\s*=\s*|\bbearer\s+)([^&;?\s]+)`)

// withoutSlashes is a URI whose // was forgotten, with a password.
var withoutSlashes = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*:[^/\s:@\[]*:)[^/\s]\S*@`)

// uriStart is where the authority of a URI begins.
var uriStart = regexp.MustCompile(`(?:[A-Za-z][A-Za-z0-9+.-]*:|^|[\s,;="'(<])//`)

// withoutURIPasswords takes out what stands between the first ':' and the last '@'
// of each URI: a password that should have been escaped may hold '@', '/', '?', '#'
// and blanks, so the end of the authority cannot be trusted. An '@' before the ':'
// ends a user or a nested scheme (kms://https@host:9600/kms, jceks://file@/path).
func withoutURIPasswords(value string) string {
	starts := uriStart.FindAllStringIndex(value, -1)
	if starts == nil {
		return value
	}
	var b strings.Builder
	done := 0
	for i, at := range starts {
		end := len(value)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		uri := value[at[1]:end]
		last := strings.LastIndexByte(uri, '@')
		colon := strings.IndexByte(uri, ':')
		if colon < 0 || last < colon {
			continue
		}
		b.WriteString(value[done:at[1]+colon+1] + Redacted)
		done = at[1] + last
	}
	return b.String() + value[done:]
}

// Value is a configuration's value, or a URI, as it may be shown: without the passwords
// and other secrets that it holds.
func Value(value string) string {
	value = withoutSlashes.ReplaceAllString(withoutURIPasswords(value), "${1}"+Redacted+"@")
	return inValue.ReplaceAllString(value, "${1}${3}"+Redacted)
}
