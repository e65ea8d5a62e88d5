// Package hadoopconf reads *-site.xml files as Hadoop's Configuration does:
// defaults first, each later file over the earlier ones, final properties kept,
// XInclude followed, ${variables} expanded when a value is asked for. It keeps
// where each property came from, so that a complaint can name file and line.
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

// maxExpansions is how many ${...} Hadoop substitutes in one value before it
// gives up (Configuration.MAX_SUBST): the twentieth is one too many.
const maxExpansions = 20

// Property is one property with where it was set.
type Property struct {
	Name  string
	Value string // as written, variables not expanded
	Final bool
	File  string // "" for a built-in default
	Line  int    // 0 where File is not a file: a flag, the environment
}

// Where names file and line for a person.
func (p Property) Where() string {
	switch {
	case p.File == "":
		return "built-in default"
	case p.Line == 0:
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// ValueError says that a property's value can't be used, and how to mend it.
type ValueError struct {
	Property Property
	Value    string // expanded
	Want     string // what would be right
	Err      error  // what showed it, if an error did; Want says it too
}

func (e *ValueError) Unwrap() error { return e.Err }

func (e *ValueError) Error() string {
	want := secret.Without(e.Want, e.Value) // an error that is quoted there may repeat the value
	if v := e.Value; v != "" && (sensitive.MatchString(e.Property.Name) || secret.LikeSecret(e.Property.Name)) {
		want = strings.ReplaceAll(want, v, notShown)
	}
	return fmt.Sprintf("%s: property %s has the value %s; %s", e.Property.Where(), e.Property.Name,
		shown(e.Property.Name, e.Value), want)
}

// notShown stands in the place of the value of a property that is a secret.
const notShown = "(not shown)"

// sensitive are names whose values must not be told, after Hadoop's
// hadoop.security.sensitive-config-keys. Those that Hadoop lacks hold a ZooKeeper login
// ("digest:user:password"), Ranger's master key, and shared access signatures.
var sensitive = regexp.MustCompile(`(?i)^fs\.azure\.sas\.|(zk.?auth|zookeeper.?auth|` +
	`master.?key|secret|password|passwd|passphrase|pass|pwd|credentials?|creds|token|pin|` +
	`secret.?key|access.?key|api.?key|private.?key)$`)

// shown is a value for a person to read.
func shown(name, value string) string {
	if sensitive.MatchString(name) || secret.LikeSecret(name) {
		return notShown
	}
	return strconv.Quote(secret.Value(value))
}

// Conf is a loaded configuration. It does not change once it is loaded.
type Conf struct {
	dir      string
	props    map[string]Property
	finals   map[string]Property // the ones that later files, and later lines, must not change
	system   map[string]string   // what Java calls system properties: user.home and such
	env      func(string) (string, bool)
	warnings []string
	meant    map[string]string // of properties that nobody knows, the one that each most probably means
}

// New returns an empty configuration. dir is what Dir returns; env reads the
// environment for ${env.NAME} (nil: os.LookupEnv).
func New(dir string, env func(string) (string, bool)) *Conf {
	if env == nil {
		env = os.LookupEnv
	}
	c := &Conf{
		dir: dir, env: env, props: map[string]Property{}, finals: map[string]Property{}, meant: map[string]string{},
		system: map[string]string{"java.io.tmpdir": os.TempDir(), "file.separator": "/", "path.separator": ":"},
	}
	// Java, too, asks the user data base and not HOME, which su and sudo leave as it
	// was: one user's configuration must not mean two things.
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

// Override sets a property over whatever the files say: a command-line flag or
// an environment setting, which where names.
func (c *Conf) Override(name, value, where string) {
	c.props[name] = Property{Name: name, Value: value, File: where}
}

// AddFile reads a file over what is there. A file that does not exist is
// skipped where optional is true. After an error the configuration is as it was.
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
			return fmt.Errorf("%s: property %s is set twice, to %s (line %d) and to %s (line %d): these are alternatives; keep the one that the source answers to",
				p.File, p.Name, shown(p.Name, first.Value), first.Line, shown(p.Name, p.Value), p.Line)
		case !first.Final: // else it is said below
			warnings = append(warnings,
				fmt.Sprintf("%s: property %s is set twice, to %s (%s) and to %s, which is used; take one out",
					p.Where(), p.Name, shown(p.Name, first.Value), first.Where(), shown(p.Name, p.Value)))
		}
	}
	c.warnings = append(c.warnings, warnings...)
	for _, p := range list {
		if kept, ok := c.finals[p.Name]; ok {
			if kept.Value != p.Value {
				c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s is ignored: %s says that its value %s is final",
					p.Where(), p.Name, kept.Where(), shown(p.Name, kept.Value)))
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

// onlyOnce are properties whose two values in one file are two different
// wishes, of which none may be picked silently.
var onlyOnce = map[string]bool{SourceURI: true}

// Lookup returns the property as written.
func (c *Conf) Lookup(name string) (Property, bool) {
	p, ok := c.props[name]
	return p, ok
}

// Get returns a property's value, trimmed and with variables expanded; false
// where it is not set or empty. A value whose variables can't be expanded comes
// back as written; LoadKMS has refused those that matter.
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

// String is Get without the flag.
func (c *Conf) String(name string) string {
	v, _ := c.Get(name)
	return v
}

// Under returns the properties whose names begin with prefix, variables expanded
// but not trimmed, by the rest of their names.
func (c *Conf) Under(prefix string) map[string]string {
	out := map[string]string{}
	for name, value := range c.All() {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			out[rest] = value
		}
	}
	return out
}

// All goes through all properties by name; the values have their variables
// expanded and are not trimmed, since a leading blank means something in an ACL.
func (c *Conf) All() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		// A value that cannot be expanded comes as it is written, see Check.
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

// Warnings says what was read but is probably not what its writer meant.
func (c *Conf) Warnings() []string { return append([]string(nil), c.warnings...) }

// Check expands every property and reports the first (by name) that cannot be;
// All and Under leave it as written. It is for files in which each property
// counts, such as kms-acls.xml.
func (c *Conf) Check() error {
	for _, name := range c.Names() {
		if _, err := c.expand(c.props[name]); err != nil {
			return err
		}
	}
	return nil
}

// Path returns a property as an absolute path: a relative one is taken from the
// configuration folder.
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

// variable matches the innermost ${name}, as Configuration.findSubVariable does:
// no '}', '$' or blank inside.
var variable = regexp.MustCompile(`\$\{[^}$ ]+\}`)

// expand substitutes ${...}: env.NAME (with the shell's defaults, -x where NAME is
// not set and :-x where it is empty too), then Java's system properties, then
// other properties. The first that is not known ends it, and a value that leads
// to itself at once is left alone, as in Hadoop.
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
				&ValueError{Property: p, Value: p.Value, Want: fmt.Sprintf("its ${...} make it longer than %d bytes; write it out",
					maxValue)}
		}
	}
	return "",
		&ValueError{Property: p, Value: p.Value,
			Want: fmt.Sprintf("it takes %d expansions of ${...} or more, which Hadoop refuses, too; break the circle, or write it out", maxExpansions)}
}

// maxValue in bytes of an expanded value: twenty expansions can double it each.
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
