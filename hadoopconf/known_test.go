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

func TestLoadKMS(t *testing.T) {
	dir := writeConf(t, map[string]string{
		"core-site.xml": prop("hadoop.kms.http.port", "1") + prop("x.base", "/srv"),
		"kms-site.xml":  prop("hadoop.kms.http.port", " 9700 ") + prop(ProviderURI, "jceks://file@${x.base}/${env.WHO:-kms}.keystore") + prop("claviger.source.timeout", "1500ms"),
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
	if got, _ := c.Get(MetastoreURI); got != "sqlite:///home/kms/claviger.db" {
		t.Errorf("metastore %q", got)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
}

func TestWarnings(t *testing.T) {
	dir := writeConf(t, map[string]string{"kms-site.xml": prop("hadoop.kms.key.provider.url", "jceks://file@/x") +
		prop("hadoop.security.kms.encrypted.key.cache.low-watermark", ".05") + prop("fs.defaultFS", "hdfs://x")})
	c, err := LoadKMS(dir, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	w := strings.Join(c.Warnings(), "\n")
	for _, want := range []string{"kms-site.xml:2: property hadoop.kms.key.provider.url is not known and has no effect; did you mean hadoop.kms.key.provider.uri?",
		"kms-site.xml:3: property hadoop.security.kms.encrypted.key.cache.low-watermark is taken for"} {
		if !strings.Contains(w, want) {
			t.Errorf("no %q in:\n%s", want, w)
		}
	}
	if strings.Contains(w, "fs.defaultFS") {
		t.Errorf("a property of another family is warned of:\n%s", w)
	}
	if f, err := c.Float(LowWatermark, 0, 1); err != nil || f != .05 {
		t.Errorf("low watermark %v, %v", f, err)
	}
}

func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct{ site, want string }{
		"source twice": {prop(SourceURI, "kms://https@a:16000/kms") + prop(SourceURI, "kms://http@a:16000/kms"), "is set twice"},
		"no root":      {"</configuration><x>", "the outermost element is <x>"},
		"unclosed":     {"<property>", "kms-site.xml:1: malformed XML"},
		"circle":       {prop(ProviderURI, "${a}") + prop("a", "${b}") + prop("b", "${a}"), "break the circle"},
		"include gone": {`<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="gone.xml"/>`, "gone.xml is not there"},
		"self include": {`<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="kms-site.xml"/>`, "includes itself"},
		"entity":       {prop("a", "&boom;"), "malformed XML"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadKMS(writeConf(t, map[string]string{"kms-site.xml": tc.site}), env(nil))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "kms-site.xml") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := LoadKMS(t.TempDir(), env(nil)); err == nil {
		t.Error("an empty folder was taken")
	}
}

func TestFinalAndInclude(t *testing.T) {
	dir := writeConf(t, map[string]string{
		"core-site.xml": `<property><name>hadoop.kms.http.port</name><value>1</value><final>true</final></property>`,
		"kms-site.xml":  prop("hadoop.kms.http.port", "2") + `<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="more.xml"><xi:fallback/></xi:include>` + `<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="gone.xml"><xi:fallback>` + prop("b", "2") + `</xi:fallback></xi:include>`,
		"more.xml":      prop("a", "1"),
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
