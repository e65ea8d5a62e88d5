package secret

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// Redacted replaces a secret, as in Hadoop's ConfigRedactor.
const Redacted = "<redacted>"

// inValue matches secrets inside a value: in parameters of URIs, connection strings, JAAS and JSON. A value without
// quotes ends only at a blank or '&', because a password may contain ';' and ','. A pin-value (RFC 7512) cannot contain
// these. A login to ZooKeeper is "digest:USER:PASSWORD", and a list of logins is separated by commas.
var inValue = regexp.MustCompile(`(?i)(?:(?:passw(?:or)?d|passphrase|pass|pwd|\bpw|secret|credentials?|access_?key|` +
	`account_?key|private_?key|api_?key|access_?token|auth_?token|delegation|sig|signature)["']?\s*[=:]\s*)` +
	`("(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.|\'\')*'?|\{[^}]*\}?|[^&\s]+)` +
	`|(?:\bpin(?:[-_]?value)?\s*[=:]\s*|\bbearer\s+)([^&;?\s]+)` +
	`|(?:^|[\s,;="'])digest:[^:\s,]+:([^,]+)`)

// inQuery matches a URI up to its '?'. Behind that, a blank does not end a value.
var inQuery = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:[^?]*\?`)

// uriStart matches the beginning of a URI up to its authority.
var uriStart = regexp.MustCompile(`(?:[A-Za-z][A-Za-z0-9+.-]*:|^|[\s,;="'(<])//`)

// Spellings of a URI that lacks a part of its "scheme://", each with a password.
var (
	// wrongStart matches a URI that lacks the ':' or a '/', or has a backslash. At the beginning of a text the password
	// may contain blanks; elsewhere a blank ends it.
	wrongStart       = regexp.MustCompile(`(?s)^\s*[A-Za-z][A-Za-z0-9+.-]*(?:/{2,}|:/|:\\+)(?:[^:/][^:]*)?:(.*)@`)
	wrongStartInside = regexp.MustCompile(`(?:^|[\s,;="'(<])(?:[A-Za-z][A-Za-z0-9+.-]*(?:/+|:/|` +
		`:\\+)|/)(?:[^:/\s][^:\s]*)?:(\S*)@`)
	// withoutSlashes matches a URI that lacks the "//".
	withoutSlashes = regexp.MustCompile(`(?s)^\s*([A-Za-z][A-Za-z0-9+.-]*):[^/\s:@\[]*:([^/\s].*)@`)
	// withoutScheme matches a URI that lacks the whole "scheme://". It also matches other texts: an ACL of ZooKeeper
	// ("sasl:kms@EXAMPLE:cdrwa"), a port, and a URI without slashes and password ("kms:https@host/kms").
	withoutScheme       = regexp.MustCompile(`(?s)^\s*([A-Za-z0-9._%+-]+):([^\[/\s].*)@`)
	withoutSchemeInside = regexp.MustCompile(`(?:^|[\s,;])([A-Za-z0-9._%+-]+):([^\[/\s,;][^\s,;]*)@`)

	zooKeeperACL = regexp.MustCompile(`^(?:sasl|x509|digest|auth|ip|world)$`)
	noPassword   = regexp.MustCompile(`^(?i:(?:https?|file|hdfs)(?:@|$)|\d{1,5}(?:[,;\s]|$))`)
)

// uriPasswords returns the ranges between the first ':' and the last '@' of each URI. A password that was not escaped
// may contain '@', '/', '?', '#' and blanks, so the range may go beyond the authority. An '@' before the ':' ends a
// user or a nested scheme (kms://https@host:9600/kms, jceks://file@/path).
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

// misspeltPasswords returns the ranges of passwords in misspelt URIs, which only a person would recognise as URIs.
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

// otherScheme reports whether a text is a URI whose scheme has no "//" behind it: PKCS#11, where a label may contain an
// '@', or JDBC, where another URI follows.
func otherScheme(scheme, rest []byte) bool {
	return strings.EqualFold(string(scheme), "pkcs11") && pkcs11Path.Match(rest) ||
		strings.EqualFold(string(scheme), "jdbc") && uriStart.Match(rest)
}

// valueSecrets returns the ranges of secrets in text that are not percent-encoded.
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

// ContainsSecret reports whether a value certainly contains a secret. Value also hides text that may be a secret.
func ContainsSecret(value string) bool {
	return len(decodedPlaces(value, valueSecrets))+len(decodedPlaces(value, misspeltNames)) > 0
}

// maxUnclear is the number of possible passwords in a value above which Value hides all of it.
const maxUnclear = 8

// Value returns a configuration's value, or a URI, with its passwords and other secrets replaced, even if they are
// percent-encoded once or several times. If a URI or a name is misspelt, Value may replace more than the secret.
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

// shortestSecret is the smallest length of a secret that WithoutSecrets replaces.
const shortestSecret = 3

// WithoutSecrets returns a text with the secrets of a configuration's value replaced. The text may quote the whole
// value, or parts of it.
func WithoutSecrets(text, value string) string {
	all := func(text []byte) [][2]int {
		return slices.Concat(valueSecrets(text), misspeltNames(text), unclearPassword(text))
	}
	for _, p := range decodedPlaces(value, all) {
		if secret := value[p[0]:p[1]]; len(secret) >= shortestSecret {
			text = strings.ReplaceAll(text, secret, Redacted)
		}
	}
	return text
}
