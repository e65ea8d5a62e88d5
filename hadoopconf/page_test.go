package hadoopconf

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

const settingsHead = `# Properties

All properties of ` + "`core-site.xml` and `kms-site.xml` that `claviger kms` and commands with `--conf` read." + `

An unknown property with one of their prefixes causes a warning at the start. The warning names the property
that was probably meant. If that property affects keys, users, TLS or records, and is not set, the server does not start
([hadoop-divergences/rights.md](hadoop-divergences/rights.md)).

Other files have their own pages: ` + "`kms-acls.xml` [acls.md](acls.md), `ssl-server.xml` and `ssl-client.xml`" + `
[tls.md](tls.md), ` + "`kts-site.xml` [kt-kms.md](kt-kms.md), `application.properties` [keyhsm.md](keyhsm.md)" + `.

The brackets contain the type, the limits, the unit of a value without a unit, and the default. A property without a
type is text. A time must have a unit (` + "`30s`, `10m`, `1h`, `7d`" + `); in a property of Hadoop it may have one.
"Secret" is a password: keep it in a credential store ([tls.md](tls.md)). "Reloaded" means that a change takes effect
while the server runs; any other change needs a restart. ` + "`*`" + ` in a name means any text.

The program writes this page: ` + "`go test ./hadoopconf -run TestSettingsPage -update`" + `.
`

// TestSettingsPage: docs/settings.md has each property of the table once. -update writes the page.
func TestSettingsPage(t *testing.T) {
	want := settingsPage()
	const page = "../docs/settings.md"
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != want {
		t.Errorf("%s is not the table of properties: run this test with -update", page)
	}
	known := map[string]bool{}
	for _, k := range KMS {
		known[k.Name] = true
		if n := strings.Count(want, "\n- `"+k.Name+"`"); n != 1 {
			t.Errorf("property %s is on the page %d times", k.Name, n)
		}
		if k.Doc == "" {
			t.Errorf("property %s has no documentation", k.Name)
		}
	}
	for name := range Values {
		if !known[name] {
			t.Errorf("%s has a type, but is not a property", name)
		}
	}
}

func settingsPage() string {
	var b strings.Builder
	b.WriteString(settingsHead)
	part := func(title, intro string, has func(k *Known) bool) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", title, intro)
		for i := range KMS {
			if has(&KMS[i]) {
				writeSetting(&b, &KMS[i])
			}
		}
	}
	own := func(k *Known) bool { return strings.HasPrefix(k.Name, "claviger.") }
	idle := func(k *Known) bool { return strings.HasPrefix(k.Doc, notUsed) }
	part("Our own", "Hadoop does not have these properties.", func(k *Known) bool { return own(k) && !idle(k) })
	part("Hadoop's and Cloudera's", "They have the same meaning as in Hadoop and in "+
		"Cloudera's KMS, except for the differences in\n[hadoop-divergences.md](hadoop-divergences.md).",
		func(k *Known) bool { return !own(k) && !idle(k) })
	part("Accepted and not used", "A file from another KMS may contain them. A value other than the default causes a "+
		"warning, with the\nreason.", idle)
	return b.String()
}

// writeSetting writes one property, in lines of at most 120 columns.
func writeSetting(b *strings.Builder, k *Known) {
	var facts []string
	v := Values[k.Name]
	typ := map[string]string{"bool": "true or false", "int": "whole number"}[v.Type]
	if typ == "" {
		typ = v.Type
	}
	for _, fact := range []string{typ + strings.TrimRight(" "+v.Bounds, " "), v.Unit} {
		if fact != "" {
			facts = append(facts, fact)
		}
	}
	if k.Default != "" {
		facts = append(facts, "default `"+k.Default+"`")
	}
	if clearSecret.MatchString(k.Name) {
		facts = append(facts, "secret")
	}
	if strings.HasPrefix(k.Name, "hadoop.kms.proxyuser.") {
		facts = append(facts, "reloaded")
	}
	head := "- `" + k.Name + "`"
	if len(facts) > 0 {
		text, between := "("+strings.Join(facts, "; ")+")", " "
		if len(head)+len(text)+2 > 120 { // with a blank before and a colon after it
			between = "\n  "
		}
		head += between + text
	}
	b.WriteString(head + ":\n ")
	column := 1
	doc := strings.TrimPrefix(strings.TrimPrefix(k.Doc, notUsed), ": ")
	for _, word := range strings.Fields(strings.ReplaceAll(doc, "<", "&lt;")) {
		if column+1+len(word) > 120 {
			b.WriteString("\n ")
			column = 1
		}
		b.WriteString(" " + word)
		column += 1 + len(word)
	}
	b.WriteString("\n")
}
