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

// ownPrefixes has the prefixes whose properties must all be in the table KMS.
var ownPrefixes = []string{"hadoop.kms.", "cloudera.hsmkp.", "claviger.", "hadoop.security.kms.encrypted.key.cache."}

// LoadKMS reads the files of a KMS's configuration folder in Hadoop's order: built-in defaults, core-site.xml,
// kms-site.xml. env is as in New. It returns an error if the folder does not exist or if the files hold no property.
func LoadKMS(dir string, env func(string) (string, bool)) (*Conf, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("configuration folder %s: %w", dir, err)
	}
	switch info, err := os.Stat(abs); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("configuration folder %s does not exist; name it with --conf", abs)
	case err == nil && !info.IsDir():
		return nil, fmt.Errorf("configuration folder %s is not a folder; name the folder of kms-site.xml with --conf",
			abs)
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
			fmt.Errorf("configuration folder %s has no property in core-site.xml or kms-site.xml; name the folder "+
				"with --conf, and set at least %s in its kms-site.xml", abs, ProviderURI)
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
	if err := c.checkOwn(); err != nil {
		return nil, err
	}
	if err := c.checkGuards(); err != nil {
		return nil, err
	}
	return c, nil
}

// checkOwn expands every property that this server may read, so that Get need not fail later. It warns of variables
// that are not set.
func (c *Conf) checkOwn() error {
	names := make(map[string]bool, len(KMS))
	for _, k := range KMS {
		names[k.Name] = true
	}
	for _, name := range c.Names() {
		if !names[name] && !hasOwnPrefix(name) {
			continue
		}
		p := c.props[name]
		v, err := c.expand(p)
		if err != nil {
			return err
		}
		if left := variable.FindString(v); left != "" && p.File != "" {
			c.warnings = append(c.warnings,
				fmt.Sprintf("%s: property %s: %s is not set, so the value is %s", p.Where(), name, left,
					redacted(name, v)))
		}
	}
	return nil
}

// environment applies the environment variables of Hadoop's KMS that have a meaning here. As in Hadoop, they override
// the files.
func (c *Conf) environment() {
	for _, e := range []struct{ env, name string }{
		{"KMS_HTTP_PORT", "hadoop.kms.http.port"},
		{"KMS_SSL_ENABLED", "hadoop.kms.ssl.enabled"},
		{"KMS_MAX_HTTP_HEADER_SIZE", "hadoop.http.max.request.header.size"},
	} {
		if v, _ := c.env(e.env); v != "" {
			c.warnings = append(c.warnings,
				fmt.Sprintf("environment variable %s overrides property %s with %q; set the property in "+
					"kms-site.xml instead", e.env, e.name, v))
			c.Override(e.name, v, "environment "+e.env)
		}
	}
}

// ServerTLSEnvironment applies the two environment variables for ssl-server.xml; c must be the configuration of that
// file. The warnings are for the log.
func (c *Conf) ServerTLSEnvironment() (warnings []string) {
	for _, e := range []struct{ env, name string }{
		{"KMS_SSL_KEYSTORE_FILE", "ssl.server.keystore.location"},
		{"KMS_SSL_KEYSTORE_PASS", "ssl.server.keystore.password"},
	} {
		if v, _ := c.env(e.env); v != "" {
			warnings = append(warnings,
				fmt.Sprintf("environment variable %s overrides property %s; set the property in "+
					"ssl-server.xml instead", e.env, e.name))
			c.Override(e.name, v, "environment "+e.env)
		}
	}
	return warnings
}

// lowWatermark accepts the spelling of LowWatermark in Cloudera's documentation. Hadoop's KMS reads only the spelling
// with dots, and ignores the other.
func (c *Conf) lowWatermark() {
	dash, ok := c.props[lowWatermarkDash]
	if !ok {
		return
	}
	if dot, both := c.props[LowWatermark]; both {
		c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s is ignored because %s sets %s",
			dash.Where(), dash.Name, dot.Where(), LowWatermark))
		return
	}
	c.warnings = append(c.warnings,
		fmt.Sprintf("%s: property %s is used as %s; Hadoop's own KMS reads only %s, and ignores this line",
			dash.Where(), dash.Name, LowWatermark, LowWatermark))
	c.props[LowWatermark] = dash // the property keeps its own name, so that an error names the line's text
}

// misnamed has wrong names from documents, which no KMS has ever read, and the right names.
var misnamed = map[string]string{
	"hadoop.kms.aggregation.delay.ms": "hadoop.kms.audit.aggregation.window.ms", // Hadoop's own KMS guide
}

// guards has properties whose loss would weaken the server without a sign: it would use other keys, another key store,
// unchecked user names, no TLS, or no audit records. If a guard is not set, a property whose name is most probably a
// misspelling of it is refused.
var guards = []string{
	ProviderURI, SourceURI, InitiateMigration, MetastoreURI,
	"hadoop.kms.authentication.type", "hadoop.kms.ssl.enabled", "hadoop.security.authorization",
	AuthorizationManager, HDFSSuperusers, "claviger.audit.json.file", "claviger.audit.must",
}

// checkGuards returns an error for the first unknown property (by name) that most probably means a guard, if that
// guard is not set.
func (c *Conf) checkGuards() error {
	for _, name := range c.Names() {
		meant, ok := c.suggested[name]
		if !ok || !slices.Contains(guards, meant) {
			continue
		}
		if p, set := c.props[meant]; set && p.File != "" {
			continue
		}
		return fmt.Errorf("%s: property %s is not known, and %s is not set; did you mean %s? This property affects "+
			"keys, rights or records, so its default is not used here: correct the name, or remove the line",
			c.props[name].Where(), name, meant, meant)
	}
	return nil
}

// warnUnknown warns of properties with our prefixes that have no effect, and names the most similar known property.
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
		if !hasOwnPrefix(name) {
			c.warnMisspelt(name)
			continue
		}
		w := fmt.Sprintf("%s: property %s is not known and has no effect", c.props[name].Where(), name)
		if meant, ok := misnamed[name]; ok {
			w += "; the property is called " + meant
		} else if nearest, ok := typo.Nearest(name, candidates(name)); ok {
			w += "; did you mean " + nearest + "?"
			c.suggested[name] = nearest
		}
		c.warnings = append(c.warnings, w)
	}
}

// notUsed is the start of Known.Doc for a property that is accepted and has no effect. The reason follows it.
const notUsed = "accepted and not used"

// warnIdle warns of properties that have no effect here and are set to a value other than the default. It also warns of
// claviger.hsm.generate.lease, which has no effect unless claviger.hsm.generate is "implied". The warning names the
// reason.
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
	const lease, generate, implied = "claviger.hsm.generate.lease", "claviger.hsm.generate", "implied"
	if _, ok := c.Get(lease); ok && c.String(generate) != implied {
		c.warnings = append(c.warnings, fmt.Sprintf("%s: property %s has no effect, because %s is not %s; set %s "+
			"to %s, or remove %s", c.props[lease].Where(), lease, generate, implied, generate, implied, lease))
	}
}

// candidates returns the names that name may be a misspelling of. A '*' between dots in a known name is replaced by
// the word that name has in that place.
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

// hasOwnPrefix reports whether a name begins with one of ownPrefixes.
func hasOwnPrefix(name string) bool {
	for _, f := range ownPrefixes {
		if strings.HasPrefix(name, f) {
			return true
		}
	}
	return false
}

// matchesPattern reports whether a known name with a '*' matches name. The '*' matches one character or more.
func matchesPattern(name string) bool {
	return slices.ContainsFunc(KMS, func(k Known) bool { return k.covers(name) })
}

// covers reports whether k.Name is a pattern that matches name.
func (k Known) covers(name string) bool {
	before, after, ok := strings.Cut(k.Name, "*")
	return ok && len(name) > len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after)
}
