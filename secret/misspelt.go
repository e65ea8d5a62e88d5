package secret

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"claviger/typo"
)

// What follows looks for secrets in texts that no rule of value.go knows: misspelt URIs and
// misspelt names. Nothing tells there what was meant, so that what may be a password is not
// shown, and what stands beside it neither.

var (
	// schemeColons are the beginnings of URIs, also of those whose scheme is written with
	// blanks, or in letters that no scheme has, or that lack a slash.
	schemeColons = regexp.MustCompile(`(?:^|[\s,;="'(<])(?:jdbc:)?[^\s,;="'(<:/@\\]+\s*:\s*[/\\]`)
	// port is one of a URI, which may be left out; elsewhere a colon may have a port of a list
	// of hosts behind it, or permissions of ZooKeeper.
	port    = regexp.MustCompile(`^\d{0,5}(?:$|[/,;\s?#"')>])`)
	ofAList = regexp.MustCompile(`^(?:\d{1,5}(?:$|[/,;\s?#"')>][^\s,;@]*(?:$|[\s,;]))|[cdrwa]{1,5}(?:$|[\s,;]))`)
	// authorityEnd ends the part of a URI that has user and host.
	authorityEnd = regexp.MustCompile(`[/?#\s,;]`)
	address6     = regexp.MustCompile(`\[[0-9A-Fa-f:.%]*\]`)
	// variable stands for a port.
	variable    = regexp.MustCompile(`^(?:\$\{|\*)`)
	authToLocal = regexp.MustCompile(`^\s*(?:RULE:\[|DEFAULT\b)`)
	// cutShort is a password of which a part was found, for it has an '@' itself.
	cutShort    = regexp.MustCompile(`^` + Redacted + `@[^:@]*@`)
	userOfKnown = regexp.MustCompile(`^[^\s:@/\\]*:` + Redacted + `@`)
	pkcs11Path  = regexp.MustCompile(`^[a-z-]+=`)
	wordBefore  = regexp.MustCompile(`[^\s,;="'(<:]*$`)
)

// unclearPassword is the place of what may be the password of a URI that valueSecrets does
// not know as one: from the first colon that is neither a scheme's, nor a port's, nor one of
// the other things that are known to have one, to the last '@'; to the end of the text where
// the '@' was forgotten.
func unclearPassword(text []byte) [][2]int {
	if authToLocal.Match(text) {
		return nil
	}
	known := map[int]bool{} // the colons that say nothing
	var uris [][]int        // where URIs have their schemes
	for _, m := range schemeColons.FindAllIndex(text, -1) {
		// Within the authority of a URI another "://" is a part of the password.
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
		case bytes.IndexByte(text, ':') == c && userOfKnown.Match(rest): // a scheme without its slashes
		case otherScheme(before, rest):
		case last > c:
			return [][2]int{{c + 1, last}}
		case authority && !variable.Match(rest):
			return [][2]int{{c + 1, len(text)}}
		}
	}
	return nil
}

// inAuthority tells whether a URI has its user or host at the end of text.
func inAuthority(text []byte) bool {
	for _, open := range []string{"//", Redacted + "@"} {
		if at := bytes.LastIndex(text, []byte(open)); at >= 0 && !authorityEnd.Match(text[at+len(open):]) {
			return true
		}
	}
	return false
}

var (
	// name is that of a value, value what follows it, as inValue has them.
	name  = regexp.MustCompile(`(\p{L}[\p{L}\p{N}_.-]*)["']?\s*[=:]\s*`)
	value = regexp.MustCompile(`^(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.|\'\')*'?|\{[^}]*\}?|[^&\s]+)`)
	// parameter begins one of the query of a URI; '&' or the end ends it.
	parameter = regexp.MustCompile(`[?&;]([^=&?;]+)=`)
	// secretParameter are names of parameters that may hold a secret, plainParameter those of
	// them that name where it is.
	secretParameter = regexp.MustCompile(`(?i)pas|psw|pw|secr|cred|tok|key|auth|sig|sas|pin`)
	plainParameter  = regexp.MustCompile(`(?i)^(?:passfile|sslkey|pin-source|keyserver|require_auth)$`)
	// pin is a parameter that ';' ends, too (RFC 7512).
	pin = regexp.MustCompile(`(?i)^pin`)
	// shortNames are misspelt and shortened names that are too short to be compared.
	shortNames = regexp.MustCompile(`^(?:ps?swo?r?d?|pas?wo?rd|pass?w|pword|pwrd|passcode|pincode)$`)
	// longNames are those that others are compared with.
	longNames = []string{"password", "passwd", "passphrase", "secret", "credential", "credentials", "accesskey",
		"privatekey", "signature"}
)

// misspeltNames are the places of values whose names are like those of secrets.
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

// LikeSecret tells whether a name is perhaps a misspelt one of a secret: its last word is one edit
// away from one that has six letters, or two from a longer one.
func LikeSecret(name string) bool {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return strings.ContainsRune("._- ", r) })
	for _, word := range append(words[max(0, len(words)-1):], strings.Join(words, "")) {
		if shortNames.MatchString(word) {
			return true
		}
		for _, long := range longNames {
			forgiven := min(2, (len(long)-4)/2)
			if typo.Distance(word, long, forgiven+1) <= forgiven {
				return true
			}
		}
	}
	return false
}
