// Package hadoopconf reads *-site.xml files as Hadoop's Configuration does. Defaults come first, and each later file
// overrides the earlier ones, except for final properties. XIncludes are followed, and ${variables} are expanded when
// a value is read. It records the file and line of each property, so that an error can name them.
//
// The format is that of org.apache.hadoop.conf.Configuration in Hadoop 3.4.
package hadoopconf

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"claviger/secret"
)

// maxExpansions is the number of ${...} in one value at which Hadoop gives up (Configuration.MAX_SUBST). Nineteen
// expansions are allowed.
const maxExpansions = 20

// Property is one property and the place that sets it.
type Property struct {
	Name  string
	Value string // as written, variables not expanded
	Final bool
	File  string // "" for a built-in default
	Line  int    // 0 if File is not a file, but a flag or the environment
}

// Where returns file and line, for messages.
func (p Property) Where() string {
	switch {
	case p.File == "":
		return "built-in default"
	case p.Line == 0:
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// ValueError is the error for a property whose value cannot be used. It says what value would be right.
type ValueError struct {
	Property Property
	Value    string // expanded
	Want     string // the right value, in words
	Err      error  // the cause, or nil; Want contains its text
}

func (e *ValueError) Unwrap() error { return e.Err }

func (e *ValueError) Error() string {
	want := secret.WithoutSecrets(e.Want, e.Value) // an error quoted in Want may repeat the value
	if v := e.Value; v != "" && (sensitive.MatchString(e.Property.Name) || secret.LikeSecret(e.Property.Name)) {
		want = strings.ReplaceAll(want, v, notShown)
	}
	return fmt.Sprintf("%s: property %s has the value %s; %s", e.Property.Where(), e.Property.Name,
		redacted(e.Property.Name, e.Value), want)
}

// notShown replaces the value of a secret property in messages.
const notShown = "(not shown)"

// sensitive matches the names of properties whose values must not be shown. It follows Hadoop's
// hadoop.security.sensitive-config-keys. Names that Hadoop lacks hold a ZooKeeper login ("digest:user:password"),
// Ranger's master key, and shared access signatures.
var sensitive = regexp.MustCompile(`(?i)^fs\.azure\.sas\.|(zk.?auth|zookeeper.?auth|` +
	`master.?key|secret|password|passwd|passphrase|pass|pwd|credentials?|creds|token|pin|` +
	`secret.?key|access.?key|api.?key|private.?key)$`)

// redacted returns a property's value for messages, without secrets.
func redacted(name, value string) string {
	if sensitive.MatchString(name) || secret.LikeSecret(name) {
		return notShown
	}
	return strconv.Quote(secret.Value(value))
}

// Conf is a loaded configuration. It does not change once it is loaded.
type Conf struct {
	dir       string
	props     map[string]Property
	finals    map[string]Property // properties that later lines and files must not change
	system    map[string]string   // Java's system properties, such as user.home
	env       func(string) (string, bool)
	warnings  []string
	suggested map[string]string // for each unknown property, the known property that it most probably means
}

// New returns an empty configuration. Dir returns dir. env reads the environment for ${env.NAME}; nil is os.LookupEnv.
func New(dir string, env func(string) (string, bool)) *Conf {
	if env == nil {
		env = os.LookupEnv
	}
	c := &Conf{
		dir: dir, env: env, props: map[string]Property{}, finals: map[string]Property{}, suggested: map[string]string{},
		system: map[string]string{"java.io.tmpdir": os.TempDir(), "file.separator": "/", "path.separator": ":"},
	}
	// As in Java, user.home comes from the user database and not from HOME. su and sudo may keep the HOME of
	// another user, and then the same configuration would have two meanings.
	if u, err := user.Current(); err == nil {
		c.system["user.name"], c.system["user.home"] = u.Username, u.HomeDir
	}
	if wd, err := os.Getwd(); err == nil {
		c.system["user.dir"] = wd
	}
	return c
}

// Dir is the configuration folder.
func (c *Conf) Dir() string { return c.dir }

// SetDefault sets a property unless a file has set it.
func (c *Conf) SetDefault(name, value string) {
	if _, ok := c.props[name]; !ok {
		c.props[name] = Property{Name: name, Value: value}
	}
}

// Override sets a property, and overrides the files. where names the command-line flag or the environment variable
// that sets it.
func (c *Conf) Override(name, value, where string) {
	c.props[name] = Property{Name: name, Value: value, File: where}
}

// AddFile reads a file; its properties override those that c has. If optional is true, a file that does not exist is
// skipped. After an error c is unchanged.
func (c *Conf) AddFile(path string, optional bool) error {
	list, warnings, err := parseFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	inFile := map[string]Property{}
	for _, p := range list {
		first, twice := inFile[p.Name]
		inFile[p.Name] = p
		if !twice {
			continue
		}
		switch {
		case onlyOnce[p.Name] && first.Value != p.Value:
			return fmt.Errorf("%s: property %s is set twice, to %s (line %d) and to %s (line %d): these are "+
				"alternatives; keep the URI at which the source answers",
				p.File, p.Name, redacted(p.Name, first.Value), first.Line, redacted(p.Name, p.Value), p.Line)
		case !first.Final: // for a final property there is a warning below
			warnings = append(warnings,
				fmt.Sprintf("%s: property %s is set twice, to %s (%s) and to %s; the second value is used; remove one",
					p.Where(), p.Name, redacted(p.Name, first.Value), first.Where(), redacted(p.Name, p.Value)))
		}
	}
	c.warnings = append(c.warnings, warnings...)
	for _, p := range list {
		if kept, ok := c.finals[p.Name]; ok {
			if kept.Value != p.Value {
				c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s is ignored: its value %s in %s is final",
					p.Where(), p.Name, redacted(p.Name, kept.Value), kept.Where()))
			}
			continue
		}
		c.props[p.Name] = p
		if p.Final {
			c.finals[p.Name] = p
		}
	}
	return nil
}

// onlyOnce has the properties that a file must not set to two different values. The values are alternatives, and this
// package must not choose one.
var onlyOnce = map[string]bool{SourceURI: true}

// Lookup returns the property as written.
func (c *Conf) Lookup(name string) (Property, bool) {
	p, ok := c.props[name]
	return p, ok
}

// Get returns a property's value, trimmed and with variables expanded. The second result is false if the property is
// not set or empty. If the variables cannot be expanded, Get returns the value as written; LoadKMS refuses such
// values in the properties of this server.
func (c *Conf) Get(name string) (string, bool) {
	p, ok := c.props[name]
	if !ok {
		return "", false
	}
	v, err := c.expand(p)
	if err != nil {
		v = p.Value
	}
	v = trim(v)
	return v, v != ""
}

// String returns the value that Get returns, "" if the property is not set.
func (c *Conf) String(name string) string {
	v, _ := c.Get(name)
	return v
}

// WithPrefix returns the properties whose names begin with prefix, by the rest of their names. Variables are expanded,
// and the values are not trimmed.
func (c *Conf) WithPrefix(prefix string) map[string]string {
	out := map[string]string{}
	for name, value := range c.All() {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			out[rest] = value
		}
	}
	return out
}

// All iterates over all properties, sorted by name. Variables are expanded. The values are not trimmed, since a leading
// blank has a meaning in an ACL.
func (c *Conf) All() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		// A value that cannot be expanded is returned as written, see Check.
		for _, name := range c.Names() {
			p := c.props[name]
			v, err := c.expand(p)
			if err != nil {
				v = p.Value
			}
			if !yield(name, v) {
				return
			}
		}
	}
}

// Names returns the names of all properties, sorted.
func (c *Conf) Names() []string {
	names := make([]string, 0, len(c.props))
	for n := range c.props {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Warnings returns warnings about properties that are probably not meant as they are written.
func (c *Conf) Warnings() []string { return append([]string(nil), c.warnings...) }

// Check expands every property, and returns an error for the first (by name) that cannot be expanded. All and
// WithPrefix return such a value as written. Check is for files in which each property counts, such as kms-acls.xml.
func (c *Conf) Check() error {
	for _, name := range c.Names() {
		if _, err := c.expand(c.props[name]); err != nil {
			return err
		}
	}
	return nil
}

// Path returns a property as an absolute path. A relative path is relative to the configuration folder.
func (c *Conf) Path(name string) (string, bool) {
	v, ok := c.Get(name)
	if !ok {
		return "", false
	}
	if !filepath.IsAbs(v) {
		v = filepath.Join(c.dir, v)
	}
	return filepath.Clean(v), true
}

// variable matches an innermost ${name}, as Configuration.findSubVariable does: without '}', '$' or blank inside.
var variable = regexp.MustCompile(`\$\{[^}$ ]+\}`)

// expand replaces each ${...} by its value: env.NAME, a system property of Java, or another property. env.NAME may have
// the shell's defaults: -x if NAME is not set, and :-x if NAME is not set or empty. As in Hadoop, expand stops at the
// first unknown name, and returns a value that contains its own variable as written.
func (c *Conf) expand(p Property) (string, error) {
	v := p.Value
	for range maxExpansions {
		loc := variable.FindStringIndex(v)
		if loc == nil {
			return v, nil
		}
		start, end := loc[0], loc[1]
		val, ok := c.variable(v[start+2 : end-1])
		if !ok {
			return v, nil
		}
		if strings.Contains(val, v[start:end]) {
			return p.Value, nil
		}
		if v = v[:start] + val + v[end:]; len(v) > maxValue {
			return "",
				&ValueError{Property: p, Value: p.Value, Want: fmt.Sprintf("its ${...} make it longer than %d bytes; "+
					"write it without variables", maxValue)}
		}
	}
	return "",
		&ValueError{Property: p, Value: p.Value,
			Want: fmt.Sprintf("it needs %d expansions of ${...} or more, which Hadoop refuses too; break the "+
				"circle, or write it without variables", maxExpansions)}
}

// maxValue is the largest length of an expanded value, in bytes. Each expansion can double the length.
const maxValue = 1 << 20

func (c *Conf) variable(name string) (string, bool) {
	env, isEnv := strings.CutPrefix(name, "env.")
	if isEnv && env != "" {
		for i := range len(env) {
			switch {
			case strings.HasPrefix(env[i:], ":-"):
				if v, _ := c.env(env[:i]); v != "" {
					return v, true
				}
				return env[i+2:], true
			case env[i] == '-':
				if v, ok := c.env(env[:i]); ok {
					return v, true
				}
				return env[i+1:], true
			}
		}
		if v, ok := c.env(env); ok {
			return v, true
		}
	} else if v, ok := c.system[name]; ok {
		return v, true
	}
	p, ok := c.props[name]
	return p.Value, ok
}
