package hadoopconf

import (
	"fmt"
	"regexp"
	"strings"

	"claviger/secret"
)

// SensitiveKeys is the name of the property with regular expressions for the names of secret properties.
const SensitiveKeys = "hadoop.security.sensitive-config-keys"

// sensitiveDefault is the value of SensitiveKeys in core-default.xml (Hadoop 3.4.2), without some names that only file
// systems use.
var sensitiveDefault = []string{
	"secret$", "password$", "ssl.keystore.pass$", "fs.s3a.server-side-encryption.key",
	"fs.s3a.*.server-side-encryption.key", "fs.s3a.encryption.algorithm", "fs.s3a.encryption.key",
	"fs.s3a.secret.key", "fs.s3a.*.secret.key", "fs.s3a.session.key", "fs.s3a.*.session.key",
	"fs.s3a.session.token", "fs.s3a.*.session.token", "fs.azure.account.key.*", "fs.azure.oauth2.*", "fs.adl.oauth2.*",
	"fs.gs.encryption.*", "fs.gs.proxy.*", "fs.gs.auth.*", "credential$", "oauth.*secret", "oauth.*password",
	"oauth.*token", SensitiveKeys,
}

// Shown is a property without secrets, as any user of /conf may see it.
type Shown struct {
	Name    string
	Written string // variables not expanded
	Value   string // variables expanded
	Final   bool
	Source  string // a file's path, "" for a built-in default
}

// Public returns all properties by name, without secrets. It hides the values of names that match SensitiveKeys or our
// own rule, and secrets within URIs. If an expression of SensitiveKeys cannot be parsed, it returns an error and no
// property.
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
			s.Written, s.Value = secret.Redacted, secret.Redacted
		} else {
			s.Written, s.Value = secret.Value(s.Written), secret.Value(s.Value)
		}
		list = append(list, s)
	}
	return list, nil
}

// CheckPublic returns the error that Public would return, and takes less time.
func (c *Conf) CheckPublic() error {
	_, err := c.sensitiveKeys()
	return err
}

// sensitiveKeys returns a function that reports whether the value of a name must be hidden.
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
			return nil,
				fmt.Errorf("%s: property %s: the regular expression %q cannot be read (%w); correct it, or remove the "+
					"property to use Hadoop's default", p.Where(), SensitiveKeys, text, err)
		}
		patterns = append(patterns, re)
	}
	return func(name string) bool {
		for _, re := range patterns {
			if re.MatchString(name) {
				return true
			}
		}
		return secret.LikeSecret(name)
	}, nil
}

// clearSecret matches the names of properties whose values are secrets. Values of names that end with "token" or
// "credential" are mostly the places of secrets.
var clearSecret = regexp.MustCompile(`(?i)(secret|password|pass|secret.?key|access.?key)$`)

// ClearSecrets returns the files that contain a secret in clear text, each with the first property by name that has
// one.
func (c *Conf) ClearSecrets() map[string]string {
	files := map[string]string{}
	for _, name := range c.Names() {
		p := c.props[name]
		value := strings.TrimSpace(p.Value)
		if p.Line == 0 || value == "" || files[p.File] != "" {
			continue
		}
		if clearSecret.MatchString(name) || secret.ContainsSecret(value) {
			files[p.File] = name
		}
	}
	return files
}
