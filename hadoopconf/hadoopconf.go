// Package hadoopconf reads *-site.xml files as Hadoop's Configuration does:
// defaults first, each later file over the earlier ones, final properties kept,
// XInclude followed, ${variables} expanded when a value is asked for. It keeps
// where each property came from, so that a complaint can name file and line.
//
// The format is that of org.apache.hadoop.conf.Configuration in Hadoop 3.4.
package hadoopconf

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// maxExpansions is how many ${...} Hadoop substitutes in one value before it
// gives up (Configuration.MAX_SUBST).
const maxExpansions = 20

// Property is one property with where it was set.
type Property struct {
	Name  string
	Value string // as written, variables not expanded
	Final bool
	File  string // "" for a built-in default
	Line  int
}

// Where names file and line for a person.
func (p Property) Where() string {
	if p.File == "" {
		return "built-in default"
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// ValueError says that a property's value can't be used, and how to mend it.
type ValueError struct {
	Property Property
	Value    string // expanded
	Want     string // what would be right
}

func (e *ValueError) Error() string {
	return fmt.Sprintf("%s: property %s has the value %q; %s", e.Property.Where(), e.Property.Name, e.Value, e.Want)
}

// Conf is a loaded configuration. It does not change once it is loaded.
type Conf struct {
	dir      string
	props    map[string]Property
	system   map[string]string // what Java calls system properties: user.home and such
	getenv   func(string) string
	warnings []string
}

// New returns an empty configuration. dir is what Dir returns; getenv reads the
// environment for ${env.NAME} (nil: os.Getenv).
func New(dir string, getenv func(string) string) *Conf {
	if getenv == nil {
		getenv = os.Getenv
	}
	c := &Conf{dir: dir, props: map[string]Property{}, getenv: getenv, system: map[string]string{"java.io.tmpdir": os.TempDir()}}
	if u, err := user.Current(); err == nil {
		c.system["user.name"], c.system["user.home"] = u.Username, u.HomeDir
	}
	if h := getenv("HOME"); h != "" {
		c.system["user.home"] = h
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
// skipped where optional is true.
func (c *Conf) AddFile(path string, optional bool) error {
	list, warnings, err := parseFile(path)
	if optional && os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	c.warnings = append(c.warnings, warnings...)
	inFile := map[string]Property{}
	for _, p := range list {
		if first, twice := inFile[p.Name]; twice && first.Value != p.Value {
			if onlyOnce[p.Name] {
				return fmt.Errorf("%s: property %s is set twice, to %q (line %d) and to %q (line %d): these are alternatives; keep the one that the source answers to",
					p.File, p.Name, first.Value, first.Line, p.Value, p.Line)
			}
			c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s is set twice; the value of line %d, %q, is used", p.File, p.Name, p.Line, p.Value))
		}
		inFile[p.Name] = p
		if old, ok := c.props[p.Name]; ok && old.Final && old.File != p.File {
			if old.Value != p.Value {
				c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s is ignored: %s says that its value %q is final", p.Where(), p.Name, old.Where(), old.Value))
			}
			continue
		}
		c.props[p.Name] = p
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
// back as written; Check finds those.
func (c *Conf) Get(name string) (string, bool) {
	p, ok := c.props[name]
	if !ok {
		return "", false
	}
	v, err := c.expand(p)
	if err != nil {
		v = p.Value
	}
	v = strings.TrimSpace(v)
	return v, v != ""
}

// String is Get without the flag.
func (c *Conf) String(name string) string {
	v, _ := c.Get(name)
	return v
}

// Under returns the properties whose names begin with prefix, expanded, by the
// rest of their names. Empty values are kept: an empty ACL means nobody.
func (c *Conf) Under(prefix string) map[string]string {
	out := map[string]string{}
	for name, p := range c.props {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			v, err := c.expand(p)
			if err != nil {
				v = p.Value
			}
			out[rest] = v
		}
	}
	return out
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

// Check expands the named values once and reports the first that can't be.
func (c *Conf) Check(names ...string) error {
	for _, name := range names {
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

// expand substitutes ${...}: env.NAME (with the shell's defaults -x and :-x),
// then Java's system properties, then other properties. What is not known stays
// as it is.
func (c *Conf) expand(p Property) (string, error) {
	v := p.Value
	from := 0
	for n := 0; ; n++ {
		loc := variable.FindStringIndex(v[from:])
		if loc == nil {
			return v, nil
		}
		if n == maxExpansions {
			return "", &ValueError{Property: p, Value: p.Value, Want: fmt.Sprintf("its ${...} were expanded %d times and there is still one left; break the circle", maxExpansions)}
		}
		start, end := from+loc[0], from+loc[1]
		name := v[start+2 : end-1]
		val, ok := c.variable(name)
		if !ok {
			from = end // stays as written
			continue
		}
		v, from = v[:start]+val+v[end:], 0
	}
}

func (c *Conf) variable(name string) (string, bool) {
	if env, ok := strings.CutPrefix(name, "env."); ok {
		for i := 0; i < len(env); i++ {
			switch {
			case strings.HasPrefix(env[i:], ":-"):
				if v := c.getenv(env[:i]); v != "" {
					return v, true
				}
				return env[i+2:], true
			case env[i] == '-':
				if v := c.getenv(env[:i]); v != "" {
					return v, true
				}
				return env[i+1:], true
			}
		}
		v := c.getenv(env)
		return v, v != ""
	}
	if v, ok := c.system[name]; ok {
		return v, true
	}
	p, ok := c.props[name]
	return p.Value, ok
}
