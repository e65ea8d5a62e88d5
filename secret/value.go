package secret

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// Redacted is what Hadoop's ConfigRedactor shows in a value's place.
const Redacted = "<redacted>"

// inValue finds secrets within a value that is otherwise fit to be seen:
// parameters of URIs, connection strings, JAAS and JSON. A bare value ends at a
// blank or '&' alone: a password may hold ';' and ','. Only a pin-value (RFC 7512)
// may not. A login to ZooKeeper is "digest:USER:PASSWORD", and a list of them has commas.
var inValue = regexp.MustCompile(`(?i)(?:(?:passw(?:or)?d|passphrase|pass|pwd|\bpw|secret|credentials?|access_?key|` +
	`account_?key|private_?key|api_?key|access_?token|auth_?token|delegation|sig|signature)["']?\s*[=:]\s*)` +
	`("(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.|\'\')*'?|\{[^}]*\}?|[^&\s]+)` +
	`|(?:\bpin(?:[-_]?value)?\s*[=:]\s*|\bbearer\s+)([^&;?\s]+)` +
	`|(?:^|[\s,;="'])digest:[^:\s,]+:([^,]+)`)

// inQuery is the same for what follows the '?' of a URI, where a blank ends nothing.
var inQuery = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:[^?]*\?`)

// uriStart is where the authority of a URI begins.
var uriStart = regexp.MustCompile(`(?:[A-Za-z][A-Za-z0-9+.-]*:|^|[\s,;="'(<])//`)

// Spellings of a URI that lacks a part of its "scheme://", each with a password.
var (
	// wrongStart lacks the ':' or a '/', or has them turned round. At the beginning of a
	// text all that follows may be the password, elsewhere a blank ends it.
	wrongStart       = regexp.MustCompile(`(?s)^\s*[A-Za-z][A-Za-z0-9+.-]*(?:/{2,}|:/|:\\+)(?:[^:/][^:]*)?:(.*)@`)
	wrongStartInside = regexp.MustCompile(`(?:^|[\s,;="'(<])(?:[A-Za-z][A-Za-z0-9+.-]*(?:/+|:/|` +
		`:\\+)|/)(?:[^:/\s][^:\s]*)?:(\S*)@`)
	// withoutSlashes lacks the "//".
	withoutSlashes = regexp.MustCompile(`(?s)^\s*([A-Za-z][A-Za-z0-9+.-]*):[^/\s:@\[]*:([^/\s].*)@`)
	// withoutScheme lacks all of it. What begins like that and is none is an ACL of
	// ZooKeeper ("sasl:kms@EXAMPLE:cdrwa"), a port, or lacks but its slashes
	// ("kms:https@host/kms").
	withoutScheme       = regexp.MustCompile(`(?s)^\s*([A-Za-z0-9._%+-]+):([^\[/\s].*)@`)
	withoutSchemeInside = regexp.MustCompile(`(?:^|[\s,;])([A-Za-z0-9._%+-]+):([^\[/\s,;][^\s,;]*)@`)

	zooKeeperACL = regexp.MustCompile(`^(?:sasl|x509|digest|auth|ip|world)$`)
	noPassword   = regexp.MustCompile(`^(?i:(?:https?|file|hdfs)(?:@|$)|\d{1,5}(?:[,;\s]|$))`)
)

// uriPasswords are the places between the first ':' and the last '@' of each URI: a
// password that should have been escaped may hold '@', '/', '?', '#' and blanks, so the
// end of the authority cannot be trusted. An '@' before the ':' ends a user or a nested
// scheme (kms://https@host:9600/kms, jceks://file@/path).
func uriPasswords(text []byte) (found [][2]int) {
	starts := uriStart.FindAllIndex(text, -1)
	for i, at := range starts {
		end := len(text)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		uri := text[at[1]:end]
		last, colon := bytes.LastIndexByte(uri, '@'), bytes.IndexByte(uri, ':')
		if colon >= 0 && last > colon {
			found = append(found, [2]int{at[1] + colon + 1, at[1] + last})
		}
	}
	if len(found) > 0 {
		text = text[:starts[0][0]]
	}
	return append(found, misspeltPasswords(text)...)
}

// misspeltPasswords are those of URIs that nothing but a person would take for one.
func misspeltPasswords(text []byte) (found [][2]int) {
	if m := wrongStart.FindSubmatchIndex(text); m != nil {
		return append(found, [2]int{m[2], m[3]})
	}
	for _, re := range []*regexp.Regexp{withoutSlashes, withoutScheme} {
		m := re.FindSubmatchIndex(text)
		if m != nil && !zooKeeperACL.Match(text[m[2]:m[3]]) && !otherScheme(text[m[2]:m[3]], text[m[3]+1:]) &&
			!noPassword.Match(text[m[4]:m[5]]) {
			return append(found, [2]int{m[4], m[5]})
		}
	}
	for _, m := range wrongStartInside.FindAllSubmatchIndex(text, -1) {
		found = append(found, [2]int{m[2], m[3]})
	}
	for _, m := range withoutSchemeInside.FindAllSubmatchIndex(text, -1) {
		if !zooKeeperACL.Match(text[m[2]:m[3]]) && !otherScheme(text[m[2]:m[3]], text[m[3]+1:]) &&
			!noPassword.Match(text[m[4]:m[5]]) {
			found = append(found, [2]int{m[4], m[5]})
		}
	}
	return found
}

// otherScheme tells a scheme that has no "//" behind it, by what follows: PKCS#11, in which
// an '@' may stand in a label, and JDBC, which has another URI there.
func otherScheme(scheme, rest []byte) bool {
	return strings.EqualFold(string(scheme), "pkcs11") && pkcs11Path.Match(rest) ||
		strings.EqualFold(string(scheme), "jdbc") && uriStart.Match(rest)
}

// valueSecrets are the places of text that hold a secret in plain.
func valueSecrets(text []byte) [][2]int {
	found := uriPasswords(text)
	query := len(text)
	if m := inQuery.FindIndex(text); m != nil {
		query = m[1]
	}
	for _, m := range inValue.FindAllSubmatchIndex(text, -1) {
		p := [2]int{m[2], m[3]}
		switch {
		case m[4] >= 0:
			p = [2]int{m[4], m[5]}
		case m[6] >= 0:
			p = [2]int{m[6], m[7]}
		}
		if p[0] >= query {
			for p[1] < len(text) && text[p[1]] != '&' && (m[2] >= 0 || text[p[1]] != ';') {
				p[1]++
			}
		}
		found = append(found, p)
	}
	return found
}

// Holds tells whether a value certainly holds a secret. Of what Value does not show, some is
// not shown since it may be one.
func Holds(value string) bool {
	return len(decodedPlaces(value, valueSecrets))+len(decodedPlaces(value, misspeltNames)) > 0
}

// maxUnclear is how many passwords that must be guessed a value may hold and be shown.
const maxUnclear = 8

// Value is a configuration's value, or a URI, as it may be shown: without the passwords
// and other secrets that it holds, also where it is percent-encoded, once or several times.
// Where a URI or a name is misspelt, more may be left out than the secret.
func Value(value string) string {
	value = replace(value, decodedPlaces(value, valueSecrets), Redacted)
	value = replace(value, decodedPlaces(value, misspeltNames), Redacted)
	for range maxUnclear {
		was := value
		if value = replace(value, decodedPlaces(value, unclearPassword), Redacted); value == was {
			return value
		}
	}
	return Redacted
}

// shortestSecret is how long a secret must be to be looked for in other texts.
const shortestSecret = 3

// Without is a text that may quote a configuration's value or parts of it, as it may be
// shown: without the secrets of the value, also where they stand by themselves.
func Without(text, value string) string {
	all := func(text []byte) [][2]int {
		return slices.Concat(valueSecrets(text), misspeltNames(text), unclearPassword(text))
	}
	for _, p := range decodedPlaces(value, all) {
		if found := value[p[0]:p[1]]; len(found) >= shortestSecret {
			text = strings.ReplaceAll(text, found, Redacted)
		}
	}
	return text
}
