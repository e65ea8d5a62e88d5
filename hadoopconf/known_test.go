package hadoopconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func writeConf(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, props := range files {
		text := "<configuration>" + props + "</configuration>"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func prop(name, value string) string {
	return "\n<property><name>" + name + "</name><value>" + value + "</value></property>"
}

func env(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

// TestLoadKMS: kms-site.xml overrides core-site.xml, variables are expanded, and a correct configuration causes no
// warning.
func TestLoadKMS(t *testing.T) {
	dir := writeConf(t, map[string]string{
		"core-site.xml": prop("hadoop.kms.http.port", "1") + prop("x.base", "/srv"),
		"kms-site.xml": prop("hadoop.kms.http.port", " 9700 ") +
			prop(ProviderURI, "jceks://file@${x.base}/${env.WHO:-kms}.keystore") +
			prop("claviger.source.timeout", "1500ms"),
	})
	c, err := LoadKMS(dir, env(map[string]string{"HOME": "/home/kms"}))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := c.Get(ProviderURI); got != "jceks://file@/srv/kms.keystore" {
		t.Errorf("provider URI %q", got)
	}
	if got, err := c.Int("hadoop.kms.http.port", 0, 65535); err != nil || got != 9700 {
		t.Errorf("port %d, %v", got, err)
	}
	if got, err := c.Duration("claviger.source.timeout", time.Second); err != nil || got != 1500*time.Millisecond {
		t.Errorf("timeout %v, %v", got, err)
	}
	if got, set := c.Get(MetastoreURI); set {
		t.Errorf("the metastore's URI is not set in a file, but is %q", got)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
}

// TestWarnings: warnings name file and line. Properties of other programs cause none.
func TestWarnings(t *testing.T) {
	dir := writeConf(t, map[string]string{"kms-site.xml": prop("hadoop.kms.key.provider.url", "jceks://file@/x") +
		prop(ProviderURI, "jceks://file@/y") + prop("hadoop.security.kms.encrypted.key.cache.low-watermark", ".05") +
		prop("fs.defaultFS", "hdfs://x")})
	c, err := LoadKMS(dir, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	w := strings.Join(c.Warnings(), "\n")
	for _, want := range []string{"kms-site.xml:2: property hadoop.kms.key.provider.url is not known and has no " +
		"effect; did you mean hadoop.kms.key.provider.uri?",
		"kms-site.xml:4: property hadoop.security.kms.encrypted.key.cache.low-watermark is used as"} {
		if !strings.Contains(w, want) {
			t.Errorf("no %q in:\n%s", want, w)
		}
	}
	if strings.Contains(w, "fs.defaultFS") {
		t.Errorf("a warning about a property of another program:\n%s", w)
	}
	if f, err := c.Float(LowWatermark, 0, 1); err != nil || f != .05 {
		t.Errorf("low watermark %v, %v", f, err)
	}
}

// TestRefused: files that LoadKMS refuses. The error names the file.
func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct{ site, want string }{
		"source twice": {prop(SourceURI, "kms://https@a:16000/kms") + prop(SourceURI, "kms://http@a:16000/kms"),
			"is set twice"},
		"no root":  {"</configuration><x>", "the outermost element is <x>"},
		"unclosed": {"<property>", "kms-site.xml:1: malformed XML"},
		"circle":   {prop(ProviderURI, "${a}") + prop("a", "${b}") + prop("b", "${a}"), "break the circle"},
		"include gone": {`<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="gone.xml"/>`,
			"gone.xml does not exist"},
		"self include": {`<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="kms-site.xml"/>`,
			"includes itself"},
		"entity": {prop("a", "&boom;"), "malformed XML"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadKMS(writeConf(t, map[string]string{"kms-site.xml": tc.site}), env(nil))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "kms-site.xml") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := LoadKMS(t.TempDir(), env(nil)); err == nil {
		t.Error("an empty folder was accepted")
	}
}

// TestGuards: a misspelt name of a guard is refused if the guard is not set. Otherwise it causes a warning.
func TestGuards(t *testing.T) {
	known := map[string]bool{}
	for _, k := range KMS {
		known[k.Name] = true
	}
	for _, guard := range guards {
		if !known[guard] {
			t.Errorf("%s is not in the table", guard)
		}
		for _, wrong := range []string{guard + "s", guard[:len(guard)-1], strings.ToUpper(guard)} {
			site := prop("fs.defaultFS", "x") + prop(wrong, "x")
			_, err := LoadKMS(writeConf(t, map[string]string{"kms-site.xml": site}), env(nil))
			want := "kms-site.xml:3: property " + wrong + " is not known, and " + guard +
				" is not set; did you mean " + guard + "?"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", wrong, err, want)
			}
			conf, err := LoadKMS(writeConf(t, map[string]string{"kms-site.xml": site + prop(guard, "y")}), env(nil))
			if err != nil || !strings.Contains(strings.Join(conf.Warnings(), "\n"), "did you mean "+guard+"?") {
				t.Errorf("%s beside %s: %v", wrong, guard, err)
			}
		}
	}
	if conf, err := LoadKMS(writeConf(t, map[string]string{"kms-site.xml": prop("a", "b")}), env(nil)); err != nil {
		t.Error(err)
	} else if uri, set := conf.Get(ProviderURI); set {
		t.Errorf("the provider's URI is not set, but is %s", uri)
	}
}

// TestFinalAndInclude: a final property is not overridden, and XInclude works with fallbacks.
func TestFinalAndInclude(t *testing.T) {
	dir := writeConf(t, map[string]string{
		"core-site.xml": `<property><name>hadoop.kms.http.port</name><value>1</value><final>true</final></property>`,
		"kms-site.xml": prop("hadoop.kms.http.port", "2") +
			`<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="more.xml"><xi:fallback/></xi:include>` +
			`<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="gone.xml"><xi:fallback>` + prop("b", "2") +
			`</xi:fallback></xi:include>`,
		"more.xml": prop("a", "1"),
	})
	c, err := LoadKMS(dir, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	if c.String("hadoop.kms.http.port") != "1" || c.String("a") != "1" || c.String("b") != "2" {
		t.Errorf("port %q a %q b %q", c.String("hadoop.kms.http.port"), c.String("a"), c.String("b"))
	}
	if w := strings.Join(c.Warnings(), "\n"); !strings.Contains(w, "is final") {
		t.Errorf("warnings %q", w)
	}
}

// TestDefaults compares the table with the names and values in the kms-default.xml of Hadoop 3.4.2. Here, the
// provider's URI has no default.
func TestDefaults(t *testing.T) {
	data, err := os.ReadFile("testdata/kms-default.txt")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]Known{}
	for _, k := range KMS {
		if _, twice := table[k.Name]; twice || k.Doc == "" || k.Name == "" {
			t.Errorf("%q is in the table twice, or has no documentation", k.Name)
		}
		table[k.Name] = k
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if name == ProviderURI {
			value = ""
		}
		if k, ok := table[name]; !ok || k.Default != value {
			t.Errorf("%s: %q, want %q", name, k.Default, value)
		}
		n++
	}
	if n < 25 {
		t.Errorf("only %d defaults compared", n)
	}
}

// TestEnvironment: a variable of Hadoop's KMS overrides the file, with a warning, and errors name the variable.
func TestEnvironment(t *testing.T) {
	dir := writeConf(t, map[string]string{"kms-site.xml": prop("hadoop.kms.http.port", "9600")})
	c, err := LoadKMS(dir, env(map[string]string{"KMS_HTTP_PORT": "97oo", "KMS_SSL_ENABLED": ""}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Int("hadoop.kms.http.port", 0, 65535)
	if err == nil ||
		err.Error() != `environment KMS_HTTP_PORT: property hadoop.kms.http.port has the value "97oo"; it must be a `+
			`whole number from 0 to 65535` {
		t.Errorf("error %v", err)
	}
	if c.String("hadoop.kms.ssl.enabled") != "false" {
		t.Error("an empty variable overrides")
	}
	if w := strings.Join(c.Warnings(), "\n"); !strings.Contains(w,
		"environment variable KMS_HTTP_PORT overrides property hadoop.kms.http.port") {
		t.Errorf("warnings %q", w)
	}
}

// TestEachWarning: the warning for each kind of doubtful property.
func TestEachWarning(t *testing.T) {
	for _, c := range []struct{ site, want string }{ // want "": no warning
		{prop("hadoop.kms.aggregation.delay.ms", "1"), "the property is called hadoop.kms.audit.aggregation.window.ms"},
		{prop("hadoop.kms.http.prot", "1"), "did you mean hadoop.kms.http.port?"},
		{prop("hadoop.kms.proxyuser.oozie.host", "*"), "did you mean hadoop.kms.proxyuser.oozie.hosts?"},
		{prop("hadoop.kms.proxyusers.oozie.hosts", "*"), "did you mean hadoop.kms.proxyuser.oozie.hosts?"},
		{prop("hadoop.kms.proxyuser.oozie.hosts", "*"), ""},
		{prop("claviger.audit.files", "x"), "did you mean claviger.audit.file?"},
		{prop("hadoop.kms.acl.CREATE", "alice"), "has no effect here: rules are read from "},
		{prop("claviger.colour", "red"), "property claviger.colour is not known and has no effect"},
		{prop("hadoop.security.kms.client.timeout", "60"), ""}, // a property of clients
		{prop("hadoop.kms.authentication.zk-dt-secret-manager.enable", "true"), ""},
		{prop("claviger.audit.file", "/var/log/${nowhere}/x"),
			`${nowhere} is not set, so the value is "/var/log/${nowhere}/x"`},
		{prop("x", "${nowhere}"), ""}, // not a property of this server
		{prop("x", "1") + prop("x", "1"), "property x is set twice"},
		{prop(SourceURI, "kms://http@h/kms") + prop(SourceURI, "kms://http@h/kms"), "is set twice"},
		{prop("x", ""), "property x has an empty <value> and is ignored"},
		{prop("x", "1") + "<property><name>y</name></property>", "property y has no <value>"},
		{prop("x", "1") + "<property><value>y</value></property>", "a property without a name"},
		{"<property><name>x</name><value>1</value><final> true</final></property>", "does not mean true"},
		{"<property><name>x</name><value>1</value><finale>true</finale></property>", "element <finale> in a property"},
		{"<properties>" + prop("x", "1") + "</properties>", "element <properties> is not known"},
		{prop("claviger.hsm.generate.lease", "60s"),
			"claviger.hsm.generate.lease has no effect, because claviger.hsm.generate is not implied"},
		{prop("claviger.hsm.generate.lease", "60s") + prop("claviger.hsm.generate", "encrypted"), "has no effect"},
		{prop("claviger.hsm.generate.lease", "60s") + prop("claviger.hsm.generate", "implied"), ""},
		{prop(LowWatermark, ".1"), ""},
		{prop(LowWatermark, ".1") + prop(lowWatermarkDash, ".2"), "low-watermark is ignored"},
	} {
		dir := writeConf(t, map[string]string{"core-site.xml": prop("fs.defaultFS", "hdfs://nn"),
			"kms-site.xml": c.site})
		conf, err := LoadKMS(dir, env(nil))
		if err != nil {
			t.Errorf("%s: %v", c.site, err)
			continue
		}
		w := conf.Warnings()
		if c.want == "" && len(w) != 0 || c.want != "" && (len(w) != 1 || !strings.Contains(w[0], c.want) ||
			!strings.Contains(w[0], "kms-site.xml:")) {
			t.Errorf("%s: warnings %q, want %q", c.site, w, c.want)
		}
	}
}

// TestWithPrefix: WithPrefix returns the expanded properties below a prefix. All lists names in order.
func TestWithPrefix(t *testing.T) {
	dir := writeConf(t, map[string]string{"a.xml": prop("p.one", " ${base} ") + prop("p.two", " ") + prop("base", "x") +
		prop("pp", "y")})
	c := New(dir, env(nil))
	if err := c.AddFile(filepath.Join(dir, "a.xml"), false); err != nil {
		t.Fatal(err)
	}
	if got := c.WithPrefix("p."); len(got) != 2 || got["one"] != " x " || got["two"] != " " {
		t.Errorf("%q", got)
	}
	var names []string
	for name := range c.All() {
		if names = append(names, name); name == "p.one" {
			break
		}
	}
	if strings.Join(names, " ") != "base p.one" {
		t.Errorf("All gave %q", names)
	}
}
