package hadoopconf

import (
	"fmt"
	"regexp"
	"strings"
)

// SensitiveKeys names the property whose regular expressions say which
// properties' values are not shown.
const SensitiveKeys = "hadoop.security.sensitive-config-keys"

// sensitiveDefault is core-default.xml's value of SensitiveKeys (Hadoop 3.4.2),
// without what concerns file systems alone.
var sensitiveDefault = []string{
	"secret$", "password$", "ssl.keystore.pass$", "fs.s3a.server-side-encryption.key", "fs.s3a.*.server-side-encryption.key",
	"fs.s3a.encryption.algorithm", "fs.s3a.encryption.key", "fs.s3a.secret.key", "fs.s3a.*.secret.key", "fs.s3a.session.key", "fs.s3a.*.session.key",
	"fs.s3a.session.token", "fs.s3a.*.session.token", "fs.azure.account.key.*", "fs.azure.oauth2.*", "fs.adl.oauth2.*",
	"fs.gs.encryption.*", "fs.gs.proxy.*", "fs.gs.auth.*", "credential$", "oauth.*secret", "oauth.*password", "oauth.*token", SensitiveKeys,
}

// redacted is what Hadoop's ConfigRedactor shows in a value's place.
const redacted = "<redacted>"

// inValue finds secrets within a value that is otherwise fit to be seen:
// parameters of URIs, connection strings, JAAS and JSON. A bare value ends at a
// blank or '&' alone: a password may hold ';' and ','. Only a pin-value (RFC 7512)
// may not.
var inValue = regexp.MustCompile(`(?i)((?:passw(?:or)?d|passphrase|pass|pwd|secret|access_?key|account_?key|api_?key|access_?token|auth_?token|delegation)["']?\s*[=:]\s*)` +
	`("(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.|'')*'?|\{[^}]*\}?|[^&\s]+)` +
	`|(pin-value\s*=\s*)([^&;?\s]+)`)

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
		b.WriteString(value[done:at[1]+colon+1] + redacted)
		done = at[1] + last
	}
	return b.String() + value[done:]
}

// Shown is a property as others than its owner may see it.
type Shown struct {
	Name    string
	Written string // variables not expanded
	Value   string // variables expanded
	Final   bool
	Source  string // a file's path, "" for a built-in default
}

// Public returns all properties by name, with what is secret taken out: what
// SensitiveKeys says, what our own rule says, and secrets within URIs. It fails
// where SensitiveKeys has an expression that cannot be read: nothing must be
// shown then.
func (c *Conf) Public() ([]Shown, error) {
	hide, err := c.sensitiveKeys()
	if err != nil {
		return nil, err
	}
	var list []Shown
	for name, value := range c.All() {
		p := c.props[name]
		s := Shown{Name: name, Written: p.Value, Value: value, Final: p.Final, Source: p.File}
		if hide(name) {
			s.Written, s.Value = redacted, redacted
		} else {
			s.Written, s.Value = withoutSecrets(s.Written), withoutSecrets(s.Value)
		}
		list = append(list, s)
	}
	return list, nil
}

// withoutSecrets is a value as it may be shown.
func withoutSecrets(value string) string {
	return inValue.ReplaceAllString(withoutURIPasswords(value), "${1}${3}"+redacted)
}

// sensitiveKeys returns the rule by which a name's value is hidden.
func (c *Conf) sensitiveKeys() (func(name string) bool, error) {
	texts := sensitiveDefault
	if v, ok := c.Get(SensitiveKeys); ok {
		texts = strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == '\n' })
	}
	patterns := []*regexp.Regexp{sensitive}
	for _, text := range texts {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		re, err := regexp.Compile(text)
		if err != nil {
			p := c.props[SensitiveKeys]
			return nil, fmt.Errorf("%s: property %s: the regular expression %q cannot be read (%w); mend it, or take the property out for Hadoop's default", p.Where(), SensitiveKeys, text, err)
		}
		patterns = append(patterns, re)
	}
	return func(name string) bool {
		for _, re := range patterns {
			if re.MatchString(name) {
				return true
			}
		}
		return false
	}, nil
}

// clearSecret are the names of properties whose values are secrets. Names that end in
// "token" or "credential" mostly say where one is.
var clearSecret = regexp.MustCompile(`(?i)(secret|password|pass|secret.?key|access.?key)$`)

// ClearSecrets returns the files in which a secret stands in clear, each with the first
// property by name that holds one.
func (c *Conf) ClearSecrets() map[string]string {
	files := map[string]string{}
	for _, name := range c.Names() {
		p := c.props[name]
		value := strings.TrimSpace(p.Value)
		if p.Line == 0 || value == "" || files[p.File] != "" {
			continue
		}
		if clearSecret.MatchString(name) || withoutSecrets(value) != value {
			files[p.File] = name
		}
	}
	return files
}
