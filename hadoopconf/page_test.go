package hadoopconf

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestSettingsPage: docs/settings.md is the table of properties, each of them once. -update
// writes it.
func TestSettingsPage(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Properties

All properties that ` + "`claviger kms`" + ` and the commands with ` + "`--conf`" + ` read, of ` +
		"`core-site.xml` and `kms-site.xml`" + `. The page
is written from the program's own table (` + "`go test ./hadoopconf -run TestSettingsPage -update`" + `). A property of
these families that is not here is warned of at the start, with the one that was probably meant, and refused where
that is not set and decides on keys, users, TLS or records ([hadoop-divergences.md](hadoop-divergences.md)). The rules of
` + "`kms-acls.xml`" + ` are in [acls.md](acls.md), the stores of ` + "`ssl-server.xml` and `ssl-client.xml`" + ` in
[tls.md](tls.md), ` + "`kts-site.xml` in [kt-kms.md](kt-kms.md), `application.properties` in [keyhsm.md](keyhsm.md)" + `.

Times of our own properties need a unit (` + "`30s`, `10m`, `1h`, `7d`" + `); Hadoop's without one have the unit that Hadoop
gives them. ` + "`*`" + ` stands for any text.
`)
	table := func(title, intro string, has func(k *Known) bool) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| property | default | what |\n|---|---|---|\n", title, intro)
		for i := range KMS {
			k := &KMS[i]
			if !has(k) {
				continue
			}
			value := ""
			if k.Default != "" {
				value = "`" + k.Default + "`"
			}
			doc := strings.TrimPrefix(strings.TrimPrefix(k.Doc, notUsed), ": ")
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", k.Name, strings.ReplaceAll(value, "|", `\|`),
				strings.NewReplacer("|", `\|`, "<", "&lt;").Replace(doc))
		}
	}
	own := func(k *Known) bool { return strings.HasPrefix(k.Name, "claviger.") }
	idle := func(k *Known) bool { return strings.HasPrefix(k.Doc, notUsed) }
	table("Our own", "They have no counterpart in Hadoop.", func(k *Known) bool { return own(k) && !idle(k) })
	table("Hadoop's and Cloudera's", "They mean here what they mean there, but for [hadoop-divergences.md](hadoop-divergences.md).", func(k *Known) bool { return !own(k) && !idle(k) })
	table("Taken and not used", "They may stand in a file that is taken over. A value other than the default is warned of, with the reason.", idle)

	const page = "../docs/settings.md"
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != b.String() {
		t.Errorf("%s is not the table of properties: run this test with -update", page)
	}
	for _, k := range KMS {
		if n := strings.Count(b.String(), "\n| `"+k.Name+"` |"); n != 1 {
			t.Errorf("property %s stands on the page %d times", k.Name, n)
		}
		if k.Doc == "" {
			t.Errorf("nothing is said of property %s", k.Name)
		}
	}
}
