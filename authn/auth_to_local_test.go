package authn

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// TestRulesAsJava compares the rules with Hadoop's KerberosName. testdata/java/Rules.java wrote KerberosName's result
// for each list of rules and each name.
func TestRulesAsJava(t *testing.T) {
	data, err := os.ReadFile("testdata/java/rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	var (
		rules          *Rules
		head           string
		lists, names   int
		refused, short int
		stricter       int
	)
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		if fields[0] != "" { // a list of rules
			lists++
			head = line
			m, err := ParseMechanism(fields[0])
			if err != nil {
				t.Fatal(err)
			}
			if rules, err = ParseRules(fields[1], m, "EXAMPLE.COM"); err != nil {
				rules = nil
			}
			continue
		}
		if fields[1] == "!start" {
			refused++
			if rules != nil {
				t.Errorf("%s: Hadoop does not start with it", head)
			}
			continue
		}
		if rules == nil {
			t.Fatalf("%s is refused; Hadoop takes it", head)
		}
		names++
		got, err := rules.Short(fields[1])
		var none noRule
		switch {
		case errors.As(err, &none):
			got = "!norule " + err.Error()
		case err != nil:
			got = "!illegal " + err.Error()
		default:
			got = "=" + got
			short++
		}
		if strings.Contains(head, "/L") && strings.ContainsAny(fields[2], "k\u0307") &&
			strings.ContainsAny(fields[1], "\u212a\u0130") {
			// A difference to Hadoop on purpose: Java would make another user's name.
			stricter++
			if !strings.HasPrefix(got, "!norule Lower case of ") {
				t.Errorf("%s: %s becomes\n%s, want a refusal", head, fields[1], got)
			}
			continue
		}
		if got != fields[2] {
			t.Errorf("%s: %s becomes\n%s, want\n%s", head, fields[1], got, fields[2])
		}
	}
	if lists < 230 || names < 4100 || refused < 30 || short < 2300 || stricter < 8 {
		t.Errorf("only %d lists (%d of them refused), %d names (%d of them with a short one, %d stricter than Java)",
			lists, refused, names, short, stricter)
	}
}

// TestRulesRefused: ParseRules refuses rules that Hadoop refuses only when a principal uses them, and rules that mean
// something else in Java.
func TestRulesRefused(t *testing.T) {
	for rules, want := range map[string]string{
		`RULE:[1:$2] DEFAULT`:            "$2 is not one of the parameters $0 (the realm) to $1",
		`RULE:[1:$]`:                     "$ is not one of the parameters",
		`RULE:[1:$1]s/a/$1/`:             "one of the 0 groups",
		`RULE:[1:$1]s/(a)/$2/`:           "one of the 1 groups",
		`RULE:[1:$1]s/(a)/${x}/`:         "one of the 1 groups",
		`RULE:[1:$1]s/(a)/${/`:           "one of the 1 groups",
		`RULE:[1:$1]s/a/$/`:              "one of the 0 groups",
		`RULE:[1:$1]s/a/\/`:              `nothing follows the \`,
		`RULE:[1:$1]s/(?=a)b/c/`:         "write several rules instead",
		`RULE:[1:$1]s/(?!a)b/c/`:         "write several rules instead",
		`RULE:[1:$1]s/(?<=a)b/c/`:        "write several rules instead",
		`RULE:[1:$1]s/(?U)a+/c/`:         "write several rules instead",
		`RULE:[1:$1]s/(a)\1/c/`:          `\1 cannot be used here`,
		`RULE:[1:$1](\bx)`:               `\b cannot be used here`,
		`RULE:[1:$1](a*+b)`:              "possessive quantifiers",
		`RULE:[1:$1]([a-z&&[^b]]+)`:      "a set within a set",
		`RULE:[1:$1](\vx)`:               `\v cannot be used here`,
		`RULE:[1:$1](\p{Lower}+)`:        "invalid character class range",
		`RULE:[1:$1]s/(?i)\pL/x/`:        `\p cannot be used under (?i) here`,
		`RULE:[1:$1](a{,3})`:             "does not begin a repetition",
		`RULE:[1:$1](a{2000})`:           "invalid repeat count",
		`DEFAULT RULE:[1:$1](x`:          `the text from "(x" on is not a rule`,
		`RULE:[1:$1](a)(b)`:              `the text from "(b)" on is not a rule`,
		`RULE:[99999999999999999999:$1]`: "not a number of components",
	} {
		_, err := ParseRules(rules, MechanismHadoop, "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", rules, err, want)
			continue
		}
		if !strings.Contains(err.Error(), "RULE:[") && !strings.Contains(err.Error(), "is not a rule") {
			t.Errorf("%s: the error does not name the rule: %v", rules, err)
		}
	}
	if _, err := ParseMechanism("kerberos"); err == nil {
		t.Error("an unknown mechanism is accepted")
	}
	r, err := ParseRules(`RULE:[1:$1]/L`, MechanismHadoop, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"İbo@R", "ΣΑΣ@R", "\u212aafka@R"} {
		if got, err := r.Short(name); err == nil {
			t.Errorf("%s is %s in lower case", name, got)
		}
	}
	if r.UsesDefaultRealm() {
		t.Error("UsesDefaultRealm is true without DEFAULT")
	}
}

// FuzzRules: rules that parse for one mechanism parse for both and give the same short name, and with mechanism hadoop
// no short name of a principal contains "/" or "@".
func FuzzRules(f *testing.F) {
	if seeds, err := os.ReadDir("testdata/fuzz/FuzzRules"); err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		if !validName(name) {
			return
		}
		hadoop, err := ParseRules(text, MechanismHadoop, "EXAMPLE.COM")
		if err != nil {
			return
		}
		mit, err := ParseRules(text, MechanismMIT, "EXAMPLE.COM")
		if err != nil {
			t.Fatalf("%q is good for one mechanism only: %v", text, err)
		}
		short, err := hadoop.Short(name)
		if err != nil {
			return
		}
		if principalForm.MatchString(name) && strings.ContainsAny(short, "/@") {
			t.Errorf("%q makes %q from %q", text, short, name)
		}
		if other, err := mit.Short(name); err != nil || other != short {
			t.Errorf("%q makes %q from %q, and %q (%v) with mechanism mit", text, short, name, other, err)
		}
	})
}
