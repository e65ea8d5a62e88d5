package authn

import (
	"strings"
	"testing"
)

// TestFoldedExpressions: the letters under (?i) are written out, and nothing else changes its meaning.
func TestFoldedExpressions(t *testing.T) {
	for expr, want := range map[string]string{
		`a(?i)b`:          `a[bB]`,
		`\pL(?i)a{2}`:     `\pL[aA]{2}`,
		`\p{Lu}b`:         `\p{Lu}b`,
		`[a-c]`:           `[a-c]`,
		`(?i)[a-c]`:       `[a-cA-C]`,
		`(?i)\pL`:         `error: \p cannot be used under (?i) here`,
		`(?i)[\pL]`:       `error: \p cannot be used under (?i) here`,
		`(?i)[a-\pL]`:     `error: \p cannot be used under (?i) here`,
		`[\x{110000}]`:    `error: \x110000 is not a character`,
		`[a-\x{110000}]`:  `error: \x110000 is not a character`,
		`[z-a]`:           `error: a range of a set of characters ends before it begins`,
		`[a`:              `error: a set of characters is not closed`,
		`(?i)[`:           `error: a set of characters is not closed`,
		`(?i)[a-b](?-i)c`: `[a-bA-B]c`,
	} {
		got, err := asciiFold(expr)
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != want && (err == nil || !strings.HasPrefix(got, want)) {
			t.Errorf("%s becomes %s, want %s", expr, got, want)
		}
	}
}

// TestJavaExpressions: an expression that means the same in Java and Go is accepted, wherever '&', '{' and quotes are.
// What follows a quoted text or a class is checked too.
func TestJavaExpressions(t *testing.T) {
	for expr, want := range map[string]string{
		`a&b`: "", `a&&b`: "", `[a&b]`: "", `[&]`: "", `[a]&&`: "", `x&`: "", `\Qa\Eb`: "", `\Q\b`: "", `\pLb`: "",
		`\p{Lu}b`: "", `\x{41}b`: "",
		`[a&&b]`:   "an intersection of sets",
		`[a[b]]`:   "a set within a set",
		`\Qa\E\b`:  `\b cannot be used here`,
		`\pL\b`:    `\b cannot be used here`,
		`\pL\b{2}`: `\b cannot be used here`,
		`\d{,3}`:   "does not begin a repetition",
		`a(?=b`:    "a group that begins with (?",
		`a)`:       "unexpected ), at a); lookaround",
	} {
		_, err := compileJava(expr)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", expr, err, want)
		}
	}
}

// TestDeepExpressions: an expression that is nested too deeply for package regexp only after its letters are written
// out is refused. The letter is k, because only k and s have a third form in Unicode.
func TestDeepExpressions(t *testing.T) {
	deep := func(groups int) string {
		return strings.Repeat("(", groups) + "(?i)kk" + strings.Repeat(")", groups)
	}
	depth := 990
	for ; depth < 1010; depth++ {
		if _, err := compileJava(deep(depth)); err != nil {
			if !strings.Contains(err.Error(), "after the letters under (?i) were written out") {
				t.Errorf("at depth %d: %.60v", depth, err)
			}
			return
		}
	}
	t.Errorf("%d nested groups are accepted", depth)
}

// TestLongTexts: a text that is too long for the search of empty matches is replaced without them.
func TestLongTexts(t *testing.T) {
	s, err := newSubstitution("x*", "z", true)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"yx":                              "zyzz",
		strings.Repeat("y", 1100) + "x":   strings.Repeat("zy", 1100) + "z",
		strings.Repeat("y", 1100) + "xyx": strings.Repeat("zy", 1100) + "zyz",
	} {
		if got := s.apply(text); got != want {
			t.Errorf("%.10s (%d bytes) becomes %.10s (%d bytes), want %d", text, len(text), got, len(got), len(want))
		}
	}
}

// TestRuleFaultsAreNamed: the error names the first word that is not a rule.
func TestRuleFaultsAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"DEFAULT nonsense and more": `the text from "nonsense" on`,
		"DEFAULT \u00a0":            `the text from " \u00a0" on`,
	} {
		if _, err := ParseRules(text, MechanismHadoop, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	for text, want := range map[string]bool{"RULE:[1:$1] DEFAULT": true, "RULE:[1:$1]": false, "": false} {
		if r, err := ParseRules(text, MechanismHadoop, ""); err != nil || r.UsesDefaultRealm() != want {
			t.Errorf("%q: %v; UsesDefaultRealm is not %v", text, err, want)
		}
	}
}

// TestTokenTexts: quotes are removed only around the whole text of a cookie's token.
func TestTokenTexts(t *testing.T) {
	const good, missing = "u=a&p=a&t=simple&e=1", "Invalid token string, missing attributes"
	for text, want := range map[string]string{
		good:             "",
		`"` + good + `"`: "",
		`"` + good:       missing,
		good + `"`:       `For input string: "1\""`,
		"":               missing,
		`"`:              "Invalid authentication token",
		`""`:             missing,
		good + "&i=-1":   "",
		good + "&i=x":    `For input string: "x"`,
	} {
		_, err := parseToken(text)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
