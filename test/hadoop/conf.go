package hadoop

import (
	"encoding/xml"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Conf is the content of a *-site.xml.
type Conf map[string]string

// With returns a copy of c with the properties of others, which replace those of c.
func (c Conf) With(others ...Conf) Conf {
	all := maps.Clone(c)
	if all == nil {
		all = Conf{}
	}
	for _, o := range others {
		maps.Copy(all, o)
	}
	return all
}

// Write writes c as a Hadoop configuration file.
func (c Conf) Write(t testing.TB, file string) {
	t.Helper()
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\"?>\n<configuration>\n")
	for _, name := range slices.Sorted(maps.Keys(c)) {
		b.WriteString("  <property><name>")
		_ = xml.EscapeText(&b, []byte(name)) // a strings.Builder never fails
		b.WriteString("</name><value>")
		_ = xml.EscapeText(&b, []byte(c[name]))
		b.WriteString("</value></property>\n")
	}
	b.WriteString("</configuration>\n")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeSites writes c as core-site.xml and also as hdfs-site.xml, because a dfs.* property of hdfs-default.xml
// replaces the one in core-site.xml.
func (c Conf) writeSites(t testing.TB, dir string) {
	t.Helper()
	c.Write(t, filepath.Join(dir, "core-site.xml"))
	c.Write(t, filepath.Join(dir, "hdfs-site.xml"))
}

// log4j writes to standard error, which Start keeps in the process's log.
const log4j = `log4j.rootLogger=LEVEL,console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{1} - %m%n
# Jersey 1 fills the log with messages about the KMS's classes.
log4j.logger.com.sun.jersey=OFF
log4j.logger.org.glassfish.jersey=OFF
`

// writeLog4j writes a log4j.properties with a root level into a conf folder. The Java KMS needs one to start.
func writeLog4j(t testing.TB, dir, level string) {
	t.Helper()
	text := strings.Replace(log4j, "LEVEL", level, 1)
	if err := os.WriteFile(filepath.Join(dir, "log4j.properties"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// noGroups stops Hadoop from running `id` for each user of a test. The machine has no such users.
var noGroups = Conf{"hadoop.security.group.mapping": "org.apache.hadoop.security.NullGroupsMapping"}
