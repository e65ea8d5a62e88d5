package secret

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"claviger/typo"
)

// This file finds secrets that the rules of value.go do not find: in misspelt URIs, and behind misspelt names. There it
// is not certain what the author meant, so everything that may be a password is hidden, with the text next to it.

var (
	// schemeColons matches the beginnings of URIs, also of misspelt ones: with blanks around the scheme, with letters
	// that no scheme has, or with one slash only.
	schemeColons = regexp.MustCompile(`(?:^|[\s,;="'(<])(?:jdbc:)?[^\s,;="'(<:/@\\]+\s*:\s*[/\\]`)
	// port matches the port of a URI, which may be empty. ofAList matches what else may be behind a colon: a port in a
	// list of hosts, or permissions of ZooKeeper.
	port    = regexp.MustCompile(`^\d{0,5}(?:$|[/,;\s?#"')>])`)
	ofAList = regexp.MustCompile(`^(?:\d{1,5}(?:$|[/,;\s?#"')>][^\s,;@]*(?:$|[\s,;]))|[cdrwa]{1,5}(?:$|[\s,;]))`)
	// authorityEnd matches the end of the part of a URI that has user and host.
	authorityEnd = regexp.MustCompile(`[/?#\s,;]`)
	address6     = regexp.MustCompile(`\[[0-9A-Fa-f:.%]*\]`)
	// variable matches a variable or "*" in place of a port.
	variable    = regexp.MustCompile(`^(?:\$\{|\*)`)
	authToLocal = regexp.MustCompile(`^\s*(?:RULE:\[|DEFAULT\b)`)
	// cutShort matches a password that was hidden only in part, because it contains an '@'.
	cutShort = regexp.MustCompile(`^` + Redacted + `@[^:@]*@`)
	// userOfKnown matches a user whose password is hidden already.
	userOfKnown = regexp.MustCompile(`^[^\s:@/\\]*:` + Redacted + `@`)
	pkcs11Path  = regexp.MustCompile(`^[a-z-]+=`)
	wordBefore  = regexp.MustCompile(`[^\s,;="'(<:]*$`)
)

// unclearPassword returns the range of a possible password that valueSecrets does not find. It begins at the first
// colon that does not belong to a scheme, a port or another known form. It ends at the last '@', or at the end of the
// text if the '@' is missing.
func unclearPassword(text []byte) [][2]int {
	if authToLocal.Match(text) {
		return nil
	}
	known := map[int]bool{} // colons that do not begin a password
	var uris [][]int        // ranges of the URIs' schemes
	for _, m := range schemeColons.FindAllIndex(text, -1) {
		// Another "://" inside the authority of a URI is a part of the password.
		if open := bytes.LastIndex(text[:m[0]], []byte("//")); open >= 0 && !authorityEnd.Match(text[open+2:m[0]+1]) {
			continue
		}
		for i := m[0]; i < m[1]; i++ {
			known[i] = true
		}
		uris = append(uris, m)
	}
	for _, m := range address6.FindAllIndex(text, -1) {
		for i := m[0]; i < m[1]; i++ {
			known[i] = true
		}
	}
	last := bytes.LastIndexByte(text, '@')
	for c, b := range text {
		rest := text[c+1:]
		if b != ':' || known[c] {
			continue
		}
		if bytes.HasPrefix(rest, []byte(Redacted)) {
			if m := cutShort.FindIndex(rest); m != nil {
				return [][2]int{{c + 1, c + m[1]}}
			}
			continue
		}
		authority, at := inAuthority(text[:c]), bytes.IndexByte(rest, '@')
		ofURI := authority || slices.ContainsFunc(uris, func(m []int) bool {
			return m[1] <= c && !authorityEnd.Match(bytes.TrimLeft(text[m[1]:c], `/\`))
		})
		otherNext := slices.ContainsFunc(uris, func(m []int) bool { return c < m[0] && m[0] < c+at })
		if ofURI && port.Match(rest) && (at < 0 || otherNext) || !ofURI && ofAList.Match(rest) {
			continue
		}
		before := wordBefore.Find(text[:c])
		switch {
		case zooKeeperACL.Match(before), noPassword.Match(bytes.TrimLeft(rest, "/")) &&
			!bytes.ContainsRune(before, '/'):
		case bytes.IndexByte(text, ':') == c && userOfKnown.Match(rest): // a scheme without slashes
		case otherScheme(before, rest):
		case last > c:
			return [][2]int{{c + 1, last}}
		case authority && !variable.Match(rest):
			return [][2]int{{c + 1, len(text)}}
		}
	}
	return nil
}

// inAuthority reports whether the end of text is inside the authority of a URI.
func inAuthority(text []byte) bool {
	for _, open := range []string{"//", Redacted + "@"} {
		if at := bytes.LastIndex(text, []byte(open)); at >= 0 && !authorityEnd.Match(text[at+len(open):]) {
			return true
		}
	}
	return false
}

var (
	// name matches the name of a value, and value the value behind it, as in inValue.
	name  = regexp.MustCompile(`(\p{L}[\p{L}\p{N}_.-]*)["']?\s*[=:]\s*`)
	value = regexp.MustCompile(`^(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.|\'\')*'?|\{[^}]*\}?|[^&\s]+)`)
	// parameter matches the beginning of a parameter in the query of a URI. It ends at '&' or at the end.
	parameter = regexp.MustCompile(`[?&;]([^=&?;]+)=`)
	// secretParameter matches names of parameters that may have a secret as their value. plainParameter matches the
	// exceptions, whose values only say where the secret is.
	secretParameter = regexp.MustCompile(`(?i)pas|psw|pw|secr|cred|tok|key|auth|sig|sas|pin`)
	plainParameter  = regexp.MustCompile(`(?i)^(?:passfile|sslkey|pin-source|keyserver|require_auth)$`)
	// pin matches parameters that also end at ';' (RFC 7512).
	pin = regexp.MustCompile(`(?i)^pin`)
	// shortNames matches misspelt and shortened names that are too short for a comparison with longNames.
	shortNames = regexp.MustCompile(`^(?:ps?swo?r?d?|pas?wo?rd|pass?w|pword|pwrd|passcode|pincode)$`)
	// longNames are the names of secrets with which other names are compared.
	longNames = []string{"password", "passwd", "passphrase", "secret", "credential", "credentials", "accesskey",
		"privatekey", "signature"}
)

// misspeltNames returns the ranges of values whose names are similar to those of secrets.
func misspeltNames(text []byte) (found [][2]int) {
	for _, m := range name.FindAllSubmatchIndex(text, -1) {
		v := value.FindIndex(text[m[1]:])
		if v != nil && !bytes.HasPrefix(text[m[1]:], []byte(Redacted)) && LikeSecret(string(text[m[2]:m[3]])) {
			found = append(found, [2]int{m[1], m[1] + v[1]})
		}
	}
	query := bytes.IndexByte(text, '?')
	if query < 0 {
		return found
	}
	for _, m := range parameter.FindAllSubmatchIndex(text[query:], -1) {
		from, to := query+m[1], len(text)
		if next := bytes.IndexByte(text[from:], '&'); next >= 0 {
			to = from + next
		}
		n := text[query+m[2] : query+m[3]]
		if rest, done := bytes.CutPrefix(text[from:to], []byte(Redacted)); done && (len(rest) == 0 ||
			rest[0] == ';' && pin.Match(n)) {
			continue
		}
		if secretParameter.Match(n) && !plainParameter.Match(n) || LikeSecret(string(n)) {
			found = append(found, [2]int{from, to})
		}
	}
	return found
}

// LikeSecret reports whether a name may be the misspelt name of a secret: whether its last word, or all its words
// together, differ from such a name in one letter, or in two letters if the name is longer than seven letters.
func LikeSecret(name string) bool {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return strings.ContainsRune("._- ", r) })
	for _, word := range append(words[max(0, len(words)-1):], strings.Join(words, "")) {
		if shortNames.MatchString(word) {
			return true
		}
		for _, long := range longNames {
			allowed := min(2, (len(long)-4)/2) // edits
			if typo.Distance(word, long, allowed+1) <= allowed {
				return true
			}
		}
	}
	return false
}
