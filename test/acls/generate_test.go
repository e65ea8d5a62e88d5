package acls

import (
	"encoding/xml"
	"fmt"
	"math/rand/v2"
	"strings"
)

// users are the callers, "user" or "user<TAB>real user".
var users = []string{
	"alice", "bob", "carol", "olga", "gina", "bobg", "hdfs", "staff", "ops", "~oozie", "Alice", "zoë",
	"alice\toozie", "bob\toozie", "carol\thive", "olga\thive", "hdfs\thdfs",
}

// groupsOf is the static mapping that both sides use.
const groupsOf = "alice=;bob=;carol=;olga=ops,staff;gina=staff;bobg=bob;hdfs=supergroup;staff=;ops=;" +
	"~oozie=;Alice=Staff;zoë=größe;oozie=ops;hive="

// keys are "name<TAB>ACL name"; without an ACL name the key has no such attribute.
var keys = []string{
	"k\t", "k.1\t", "a.b.c\t", "with blank\t", "ключ\t", "k.READ\t", "%s$x\t", "*\t", "ALL\t",
	"finance\tk", "late\tnobody-named-it", "dotted\ta.b.c", "own\town",
}

var (
	opNames = []string{"CREATE", "DELETE", "ROLLOVER", "GET", "GET_KEYS", "GET_METADATA", "SET_KEY_MATERIAL",
		"GENERATE_EEK", "DECRYPT_EEK"}
	keyOps   = []string{"ALL", "READ", "MANAGEMENT", "GENERATE_EEK", "DECRYPT_EEK"}
	noOps    = []string{"GETT", "get", "", "READ ", "DECRYPT-EEK", "*", "ALL"}
	aclNames = []string{"k", "k.1", "a.b.c", "with blank", "ключ", "k.READ", "%s$x", "*", "ALL", "own",
		"late", "", ".", "K"}
	words = []string{
		"alice", "bob", "carol", "olga", "gina", "bobg", "hdfs", "staff", "ops", "~oozie", "~hive", "~ops", "~~oozie",
		"oozie", "Alice", "zoë", "größe", "bob", "supergroup",
		"*", "${who}", "${no.such}", "~", "alice", "staff", "a-user-that-is-nobody",
	}
	gaps       = []string{",", ",", ",", " ", " ", ", ", " ,", ",,", "\n", "\t", "  ", ",\n    "}
	wholeLists = []string{"*", " * ", "* ", " *", " ", "", "  ", "\n*\n", "\t", "alice", " staff", "alice staff",
		"* staff", "alice *", "*,alice", ",", " ,", "~oozie", "alice,bob ops,staff"}
)

// generator makes files from a seed.
type generator struct{ *rand.Rand }

func pick[T any](g generator, from []T) T { return from[g.IntN(len(from))] }

// value returns an ACL in a usual or unusual form.
func (g generator) value() string {
	if g.IntN(2) == 0 {
		return pick(g, wholeLists)
	}
	var b strings.Builder
	if g.IntN(4) == 0 {
		b.WriteString(pick(g, gaps))
	}
	for i := range 1 + g.IntN(4) {
		if i > 0 {
			b.WriteString(pick(g, gaps))
		}
		b.WriteString(pick(g, words))
	}
	if g.IntN(6) == 0 {
		b.WriteString(pick(g, gaps))
	}
	return b.String()
}

// file returns a kms-acls.xml. Each kind of rule may be missing, so the test covers rules that are not set, too.
func (g generator) file() string {
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<configuration>\n")
	add := func(name, value string) {
		write(&b, "<property><name>", name, "</name><value>", value, "</value>")
		if g.IntN(40) == 0 {
			b.WriteString("<final>true</final>")
		}
		b.WriteString("</property>\n")
	}
	some := func(in100 int, do func()) {
		if g.IntN(100) < in100 {
			do()
		}
	}
	b.WriteString("<property><name>who</name><value>alice</value></property>\n")
	opShare, keyShare := pick(g, []int{0, 30, 80}), pick(g, []int{0, 20, 50})
	for range 1 + g.IntN(20)/19 { // sometimes the same names twice
		for _, op := range opNames {
			some(opShare, func() { add("hadoop.kms.acl."+op, g.value()) })
			some(opShare/2, func() { add("hadoop.kms.blacklist."+op, g.value()) })
		}
		for _, op := range keyOps {
			some(40, func() { add("default.key.acl."+op, g.value()) })
			some(25, func() { add("whitelist.key.acl."+op, g.value()) })
			for _, name := range aclNames {
				some(keyShare/2, func() { add("key.acl."+name+"."+op, g.value()) })
			}
		}
		for _, op := range noOps {
			some(20, func() { add("hadoop.kms.acl."+op, g.value()) })
			some(20, func() { add("hadoop.kms.blacklist."+op, g.value()) })
			some(20, func() { add("default.key.acl."+op, g.value()) })
			some(20, func() { add("key.acl."+pick(g, aclNames)+"."+op, g.value()) })
		}
	}
	some(10, func() { write(&b, "<property><name>", "hadoop.kms.acl.GET", "</name></property>\n", "", "") })
	some(10, func() { add(" hadoop.kms.acl.GET_KEYS\n", "bob") })
	some(10, func() { add("Hadoop.kms.acl.GET", "nobody") })
	some(10, func() { add("xkey.acl.k.READ", "*") })
	b.WriteString("</configuration>\n")
	return b.String()
}

// broken returns a file that cannot be used. Each has another fault.
func (g generator) broken() string {
	whole := g.file()
	return pick(g, []string{
		whole[:len(whole)-len("</configuration>\n")],
		strings.Replace(whole, "</name>", "</nome>", 1),
		whole[:g.IntN(len(whole)-20)],
		"",
		"no XML at all",
		strings.Replace(whole, "<configuration>",
			"<configuration><property><name>hadoop.kms.acl.GET</name><value>a & b</value></property>", 1),
		strings.Replace(whole, "</configuration>",
			"<property><name>hadoop.kms.acl.DELETE</name><value>${loop.a}</value><final>true</final></property>"+
				"<property><name>loop.a</name><value>x${loop.b}</value></property>"+
				"<property><name>loop.b</name><value>y${loop.a}</value></property></configuration>", 1),
	})
}

func write(b *strings.Builder, before, name, between, value, after string) {
	b.WriteString(before)
	_ = xml.EscapeText(b, []byte(name)) // a Builder never fails
	b.WriteString(between)
	_ = xml.EscapeText(b, []byte(value))
	b.WriteString(after)
}

// fileName returns the name of the i-th file.
func fileName(i int) string { return fmt.Sprintf("%04d.xml", i) }
