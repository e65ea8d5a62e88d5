package hadoopconf

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the errors into testdata/bad/*.golden")

// TestErrors compares the error for each file in testdata/bad.
func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.xml")
	if err != nil || len(files) < 25 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".xml"), func(t *testing.T) {
			got := firstError(file)
			if got == nil {
				t.Fatal("no error")
			}
			golden := strings.TrimSuffix(file, ".xml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got.Error()+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.Error()+"\n" != string(want) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// firstError returns the first error of reading a file and its properties.
func firstError(file string) error {
	c := New("testdata/bad", env(nil))
	if err := c.AddFile(file, false); err != nil {
		return err
	}
	if err := c.checkOwn(); err != nil {
		return errors.Join(err, alsoFound(err, c.Check()))
	}
	if err := c.Check(); err != nil {
		return err
	}
	_, e1 := c.Int("hadoop.kms.http.port", 0, 65535)
	_, e2 := c.Bool("hadoop.kms.ssl.enabled")
	_, e3 := c.Float(LowWatermark, 0, 1)
	_, e4 := c.Duration("claviger.source.timeout", time.Second)
	return errors.Join(e1, e2, e3, e4)
}

// alsoFound returns an error if Check found nothing. Check may report another property than checkOwn, because it
// checks all properties.
func alsoFound(own, all error) error {
	if all == nil {
		return errors.New("Check finds nothing, but checkOwn finds: " + own.Error())
	}
	return nil
}

// TestNotRegularFiles: only regular files of at most 8 MiB are read. A missing file is an error unless it is optional.
func TestNotRegularFiles(t *testing.T) {
	dir := t.TempDir()
	c := New(dir, env(nil))
	if err := c.AddFile(filepath.Join(dir, "none.xml"), true); err != nil {
		t.Errorf("a missing optional file: %v", err)
	}
	if err := c.AddFile(filepath.Join(dir, "none.xml"), false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if err := c.AddFile(dir, true); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	if err := c.AddFile("/dev/zero", true); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a device: %v", err)
	}
	big := filepath.Join(dir, "big.xml")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if err := c.AddFile(big, true); err == nil || !strings.Contains(err.Error(), "is larger than 8 MiB") {
		t.Errorf("a huge file: %v", err)
	}
	if names := c.Names(); len(names) != 0 {
		t.Errorf("properties %q", names)
	}
}

// TestLimits: the nesting of elements, and the number, the depth and the size of included files are limited.
func TestLimits(t *testing.T) {
	const include = `<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="%"/>`
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"nesting": {map[string]string{"a": strings.Repeat("<configuration>", 200)}, "nested more than 100 deep"},
		"circle": {map[string]string{
			"a": "<configuration>" + strings.Replace(include, "%", "b", 1) + "</configuration>",
			"b": "<configuration>" + strings.Replace(include, "%", "./a", 1) + "</configuration>",
		}, "/a: the file includes itself through /a, /b"},
		"number": {map[string]string{
			"a": "<configuration>" + strings.Repeat(strings.Replace(include, "%", "b", 1), 200) + "</configuration>",
			"b": "<configuration/>",
		}, "more than 100 files are included"},
		"size": {map[string]string{
			"a": "<configuration>" + strings.Repeat(strings.Replace(include, "%", "b", 1), 50) + "</configuration>",
			"b": "<configuration>" + strings.Repeat(" ", 1<<20) + "</configuration>",
		}, "is larger than 8 MiB"},
		"depth": {map[string]string{
			"a": "<configuration>" + strings.Replace(include, "%", "a/a", 1) + "</configuration>",
		}, "more than 10 deep"},
	} {
		p := &parser{read: func(path string) ([]byte, error) {
			text, ok := c.files[filepath.Base(path)]
			if !ok {
				return nil, os.ErrNotExist
			}
			return []byte(text), nil
		}}
		if err := p.file("/a"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoSecretInMessages: core-site.xml may contain passwords. Errors and warnings must not contain them.
func TestNoSecretInMessages(t *testing.T) {
	const secret = "hunter2"
	for _, name := range []string{
		"hadoop.security.group.mapping.ldap.bind.password", "fs.s3a.secret.key", "fs.s3a.access.key",
		"ssl.server.keystore.keypassword", "claviger.made.up.secret", "dfs.adls.oauth2.credential",
		"x.auth.token", "HADOOP.PASSWORD",
	} {
		dir := writeConf(t, map[string]string{
			"core-site.xml": `<property><name>` + name + `</name><value>` + secret +
				`</value><final>true</final></property>`,
			"kms-site.xml": prop(name, secret+"1") + prop("x", "1") + prop("x", "2"),
		})
		c := New(dir, env(nil))
		for _, f := range []string{"core-site.xml", "kms-site.xml", "core-site.xml"} {
			if err := c.AddFile(filepath.Join(dir, f), false); err != nil {
				t.Fatal(err)
			}
		}
		delete(c.finals, name)
		if err := c.AddFile(filepath.Join(dir, "kms-site.xml"), false); err != nil {
			t.Fatal(err)
		}
		_, err := c.Int(name, 0, 1)
		messages := strings.Join(c.Warnings(), "\n") + err.Error()
		if strings.Contains(messages, secret) || !strings.Contains(messages, name) {
			t.Errorf("%s: %s", name, messages)
		}
	}
}

// TestValues checks how numbers, durations, lists and paths are parsed, and which values are refused.
func TestValues(t *testing.T) {
	c := New("/etc/kms", env(nil))
	for name, value := range map[string]string{
		"int": " 42 ", "hex": "0x1F", "minus": "-1", "true": " TRUE ", "false": "false", "float": "1e-1", "nan": "NaN",
		"ms": "1500ms", "s": "10 S", "bare": "7", "d": "2d", "ns": "3ns", "us": "4us", "m": "5m", "h": "6h",
		"negative": "-1s", "list": " a, b ,,c ", "empty": "", "rel": "x/../y", "abs": "/z/./y",
	} {
		c.Override(name, value, "--flag")
	}
	for name, want := range map[string]int64{"int": 42, "hex": 31, "unset": 0} {
		if got, err := c.Int(name, -10, 100); got != want || err != nil {
			t.Errorf("Int %s: %d, %v", name, got, err)
		}
	}
	if got, err := c.Int("minus", -10, 100); got != -1 || err != nil {
		t.Errorf("Int minus: %d, %v", got, err)
	}
	for name, want := range map[string]bool{"true": true, "false": false, "unset": false} {
		if got, err := c.Bool(name); got != want || err != nil {
			t.Errorf("Bool %s: %v, %v", name, got, err)
		}
	}
	if got, err := c.Float("float", 0, 1); got != .1 || err != nil {
		t.Errorf("Float: %v, %v", got, err)
	}
	for name, want := range map[string]time.Duration{
		"ms": 1500 * time.Millisecond, "s": 10 * time.Second, "bare": 7 * time.Minute, "d": 48 * time.Hour, "ns": 3,
		"us": 4 * time.Microsecond, "m": 5 * time.Minute, "h": 6 * time.Hour, "unset": 0,
	} {
		if got, err := c.Duration(name, time.Minute); got != want || err != nil {
			t.Errorf("Duration %s: %v, %v", name, got, err)
		}
	}
	if got := strings.Join(c.Strings("list"), "|"); got != "a|b|c" || len(c.Strings("unset")) != 0 {
		t.Errorf("Strings: %s", got)
	}
	for name, want := range map[string]string{"rel": "/etc/kms/y", "abs": "/z/y", "unset": ""} {
		if got, _ := c.Path(name); got != want {
			t.Errorf("Path %s: %s", name, got)
		}
	}
	_, i := c.Int("empty", 0, 1)
	_, b := c.Bool("empty")
	_, f := c.Float("empty", 0, 1)
	_, d := c.Duration("empty", time.Second)
	_, n := c.Float("nan", 0, 1)
	_, neg := c.Duration("negative", time.Second)
	_, out := c.Float("int", 0, 1)
	_, most := c.Float("negative", 0, 1<<24)
	if most == nil || !strings.Contains(most.Error(), "a number between 0 and 16777216") {
		t.Errorf("a large bound: %v", most)
	}
	for what, err := range map[string]error{"int": i, "bool": b, "float": f, "duration": d, "NaN": n, "negative": neg,
		"range": out} {
		var bad *ValueError
		if !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), "--flag: property ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestTimesHaveUnits: a time in a property that Hadoop does not have must have a unit. Hadoop's own properties are read
// as in Hadoop.
func TestTimesHaveUnits(t *testing.T) {
	c := New("", nil)
	for name, value := range map[string]string{
		"claviger.purge.min.unused": "7", "claviger.source.timeout": "0", "claviger.metastore.lease": "7d",
		"hadoop.kms.current.key.cache.timeout.ms": "7",
	} {
		c.Override(name, value, "--flag")
	}
	if _, err := c.Duration("claviger.purge.min.unused", time.Second); err == nil ||
		!strings.Contains(err.Error(), `"7"`) || !strings.Contains(err.Error(), "7s, 7m, 7h or 7d") {
		t.Errorf("without a unit: %v", err)
	}
	for name, want := range map[string]time.Duration{
		"claviger.source.timeout": 0, "claviger.metastore.lease": 7 * 24 * time.Hour,
		"hadoop.kms.current.key.cache.timeout.ms": 7 * time.Millisecond,
	} {
		if d, err := c.Duration(name, time.Millisecond); err != nil || d != want {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
}
