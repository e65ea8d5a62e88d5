package hadoopconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"claviger/typo"
)

// ours are the families in which every property must be in the table.
var ours = []string{"hadoop.kms.", "cloudera.hsmkp.", "claviger.", "hadoop.security.kms.encrypted.key.cache."}

// LoadKMS reads the files of a KMS's configuration folder in Hadoop's order:
// built-in defaults, core-site.xml, kms-site.xml. env as in New. A folder that is
// not there, or that holds neither file, is an error.
func LoadKMS(dir string, env func(string) (string, bool)) (*Conf, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("configuration folder %s: %w", dir, err)
	}
	switch info, err := os.Stat(abs); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("configuration folder %s is not there; name it with --conf", abs)
	case err == nil && !info.IsDir():
		return nil, fmt.Errorf("configuration folder %s is not a folder; name the folder of kms-site.xml with --conf", abs)
	}
	c := New(abs, env)
	if err := c.AddFile(filepath.Join(abs, "core-site.xml"), true); err != nil {
		return nil, err
	}
	site := filepath.Join(abs, "kms-site.xml")
	if err := c.AddFile(site, true); err != nil {
		return nil, err
	}
	if len(c.props) == 0 {
		return nil,
			fmt.Errorf("configuration folder %s holds no property in core-site.xml or kms-site.xml; name the folder with --conf, and set at least %s in its kms-site.xml", abs, ProviderURI)
	}
	c.environment()
	c.lowWatermark()
	c.warnUnknown()
	c.warnIdle()
	c.warnings = append(c.warnings, c.MisplacedRules()...)
	for _, k := range KMS {
		if k.Default != "" {
			c.SetDefault(k.Name, k.Default)
		}
	}
	if err := c.checkOurs(); err != nil {
		return nil, err
	}
	if err := c.checkGuards(); err != nil {
		return nil, err
	}
	return c, nil
}

// checkOurs expands every property that we may ask for, so that Get need not
// fail later, and warns of variables that stay as they stand.
func (c *Conf) checkOurs() error {
	names := make(map[string]bool, len(KMS))
	for _, k := range KMS {
		names[k.Name] = true
	}
	for _, name := range c.Names() {
		if !names[name] && !inFamily(name) {
			continue
		}
		p := c.props[name]
		v, err := c.expand(p)
		if err != nil {
			return err
		}
		if left := variable.FindString(v); left != "" && p.File != "" {
			c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s: %s is not set, so that the value is %s", p.Where(),
				name, left, shown(name, v)))
		}
	}
	return nil
}

// environment applies the settings that Hadoop's KMS still takes from the
// environment and that mean something here. They go over the files, as there.
func (c *Conf) environment() {
	for _, e := range []struct{ env, name string }{
		{"KMS_HTTP_PORT", "hadoop.kms.http.port"},
		{"KMS_SSL_ENABLED", "hadoop.kms.ssl.enabled"},
		{"KMS_MAX_HTTP_HEADER_SIZE", "hadoop.http.max.request.header.size"},
	} {
		if v, _ := c.env(e.env); v != "" {
			c.warnings = append(c.warnings,
				fmt.Sprintf("environment variable %s overrides property %s with %q; set the property in kms-site.xml instead",
					e.env, e.name, v))
			c.Override(e.name, v, "environment "+e.env)
		}
	}
}

// ServerTLSEnvironment does the same with the two settings that belong to
// ssl-server.xml, which c is. What it returns is for the log.
func (c *Conf) ServerTLSEnvironment() (warnings []string) {
	for _, e := range []struct{ env, name string }{
		{"KMS_SSL_KEYSTORE_FILE", "ssl.server.keystore.location"},
		{"KMS_SSL_KEYSTORE_PASS", "ssl.server.keystore.password"},
	} {
		if v, _ := c.env(e.env); v != "" {
			warnings = append(warnings,
				fmt.Sprintf("environment variable %s overrides property %s; set the property in ssl-server.xml instead", e.env,
					e.name))
			c.Override(e.name, v, "environment "+e.env)
		}
	}
	return warnings
}

// lowWatermark takes the spelling that Cloudera's page prints. Hadoop's KMS
// reads only the one with dots, so there the advice had no effect.
func (c *Conf) lowWatermark() {
	dash, ok := c.props[lowWatermarkDash]
	if !ok {
		return
	}
	if dot, both := c.props[LowWatermark]; both {
		c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s is ignored, since %s sets %s", dash.Where(), dash.Name,
			dot.Where(), LowWatermark))
		return
	}
	c.warnings = append(c.warnings,
		fmt.Sprintf("%s: property %s is taken for %s; Hadoop's own KMS reads only the latter and would ignore this line",
			dash.Where(), dash.Name, LowWatermark))
	c.props[LowWatermark] = dash // under its own name, by which a complaint finds the line
}

// misnamed are names that documents print and nothing ever read.
var misnamed = map[string]string{
	"hadoop.kms.aggregation.delay.ms": "hadoop.kms.audit.aggregation.window.ms", // Hadoop's own KMS guide
}

// guards are properties without which the server would go on with less than its operator
// meant: other keys, another store of them, anybody for a user, no TLS, no record. Where
// one is not set, a property that is most probably a misspelling of it is refused.
var guards = []string{
	ProviderURI, SourceURI, InitiateMigration, MetastoreURI,
	"hadoop.kms.authentication.type", "hadoop.kms.ssl.enabled", "hadoop.security.authorization",
	AuthorizationManager, HDFSSuperusers, "claviger.audit.json.file", "claviger.audit.must",
}

// checkGuards refuses the first property (by name) that is not known and means a guard
// which is not set.
func (c *Conf) checkGuards() error {
	for _, name := range c.Names() {
		meant, ok := c.meant[name]
		if !ok || !slices.Contains(guards, meant) {
			continue
		}
		if p, set := c.props[meant]; set && p.File != "" {
			continue
		}
		return fmt.Errorf("%s: property %s is not known, and %s is not set; did you mean that? It decides on keys, on who "+
			"may use them, or on what is recorded, so it is not left to its default: correct the name, or take the line out",
			c.props[name].Where(), name, meant)
	}
	return nil
}

// warnUnknown names properties of our families that mean nothing, with the
// nearest one that does.
func (c *Conf) warnUnknown() {
	exact := map[string]bool{}
	for _, k := range KMS {
		exact[k.Name] = true
	}
	for _, name := range c.Names() {
		if strings.HasPrefix(name, GroupProviderPrefix) {
			c.warnUnknownProvider(name, exact)
			continue
		}
		if exact[name] || matchesPattern(name) || IsRule(name) {
			continue
		}
		if !inFamily(name) {
			c.warnMisspelt(name)
			continue
		}
		w := fmt.Sprintf("%s: property %s is not known and has no effect", c.props[name].Where(), name)
		if meant, ok := misnamed[name]; ok {
			w += "; the property is called " + meant
		} else if near, ok := typo.Nearest(name, candidates(name)); ok {
			w += "; did you mean " + near + "?"
			c.meant[name] = near
		}
		c.warnings = append(c.warnings, w)
	}
}

// notUsed begins the line of a property that is taken and does nothing; the
// reason follows.
const notUsed = "taken and not used"

// warnIdle names properties that somebody has set to other than the default and
// that do nothing here, with the reason.
func (c *Conf) warnIdle() {
	for _, k := range KMS {
		why, idle := strings.CutPrefix(k.Doc, notUsed)
		if !idle {
			continue
		}
		for _, name := range c.Names() {
			p := c.props[name]
			if name != k.Name && !k.covers(name) || strings.TrimSpace(p.Value) == k.Default {
				continue
			}
			c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s has no effect here%s", p.Where(), name, why))
		}
	}
}

// candidates are the names that name may be a misspelling of. Where a known
// name has a '*' between dots, what name has in that place stands in for it.
func candidates(name string) []string {
	parts := strings.Split(name, ".")
	var out []string
	for _, k := range KMS {
		if !strings.Contains(k.Name, "*") {
			out = append(out, k.Name)
			continue
		}
		pattern := strings.Split(k.Name, ".")
		if len(pattern) != len(parts) {
			continue
		}
		for i := range pattern {
			if pattern[i] == "*" {
				pattern[i] = parts[i]
			}
		}
		out = append(out, strings.Join(pattern, "."))
	}
	return out
}

func inFamily(name string) bool {
	for _, f := range ours {
		if strings.HasPrefix(name, f) {
			return true
		}
	}
	return false
}

// matchesPattern knows names with one '*', which stands for one character or
// more.
func matchesPattern(name string) bool {
	return slices.ContainsFunc(KMS, func(k Known) bool { return k.covers(name) })
}

// covers tells whether the property's name is a pattern that name has.
func (k Known) covers(name string) bool {
	before, after, ok := strings.Cut(k.Name, "*")
	return ok && len(name) > len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after)
}
