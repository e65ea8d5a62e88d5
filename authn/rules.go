package authn

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// Mechanism decides two cases: no auth_to_local rule matches a principal, and the result of a rule contains '/' or
// '@'.
type Mechanism string

// The mechanisms of hadoop.security.auth_to_local.mechanism.
const (
	MechanismHadoop Mechanism = "hadoop" // both cases are refused
	MechanismMIT    Mechanism = "mit"    // the principal, or the result, is the user name
)

// ParseMechanism reads a mechanism in any case, as Hadoop does.
func ParseMechanism(s string) (Mechanism, error) {
	switch m := Mechanism(strings.ToLower(s)); m {
	case MechanismHadoop, MechanismMIT:
		return m, nil
	}
	return "", errors.New("it must be hadoop or mit")
}

// Rules map principals to short names. They are Hadoop's auth_to_local, in Java
// org.apache.hadoop.security.authentication.util.KerberosName. Rules never change, so any goroutine may use them.
type Rules struct {
	rules     []rule
	mechanism Mechanism
	realm     string // the default realm
}

// firstComponent has the rules that Hadoop uses without Kerberos.
var firstComponent = &Rules{mechanism: MechanismHadoop, rules: []rule{
	{text: "RULE:[1:$1]", components: 1, format: []int{1}, literals: []string{"", ""}},
	{text: "RULE:[2:$1]", components: 2, format: []int{1}, literals: []string{"", ""}},
}}

// rule is DEFAULT, or RULE:[components:format](match)s/from/to/gL. Everything after the ']' is optional.
type rule struct {
	text       string // as Hadoop writes it
	isDefault  bool
	components int
	// A formatted name is literals[0], the parameter format[0], literals[1], and so on. Parameter 0 is the realm, 1
	// and 2 are the components.
	format    []int
	literals  []string
	match     *regexp.Regexp // of the whole formatted name; nil: any
	replace   *substitution  // nil: none
	lowerCase bool
}

var (
	// ruleForm is Hadoop's own expression, in the syntax of RE2. It matches one rule at the beginning of the text;
	// the next rule begins after the match.
	ruleForm = regexp.MustCompile(`^[ \t\n\x0b\f\r]*((DEFAULT)|(RULE:\[([0-9]*):([^\]]*)\](\(([^)]*)\))?` +
		`(s/([^/]*)/([^/]*)/(g)?)?))/?(L)?`)
	// parameter matches "$1", for example.
	parameter = regexp.MustCompile(`\$([0-9]*)`)
)

// ParseRules reads the text of auth_to_local. realm is the default realm, "" if there is none.
// It refuses each text that Hadoop refuses at start or, later, when a principal uses the rule. It also refuses
// regular expressions that Go cannot match as Java does: lookaround, back references, possessive quantifiers, sets in
// sets.
func ParseRules(text string, mechanism Mechanism, realm string) (*Rules, error) {
	r := &Rules{mechanism: mechanism, realm: realm}
	rest := strings.TrimFunc(text, func(c rune) bool { return c <= ' ' }) // Java's trim
	for rest != "" {
		m := ruleForm.FindStringSubmatch(rest)
		if m == nil {
			return nil, fmt.Errorf("the text from %q on is not a rule; a rule is DEFAULT or "+
				"RULE:[n:format](regex)s/from/to/g, without ')' in regex, and without '/' in from and to",
				firstField(rest))
		}
		parsed := rule{text: strings.TrimLeft(m[0], " \t\n\v\f\r"), isDefault: m[2] != ""}
		if !parsed.isDefault {
			if err := parsed.parse(m); err != nil {
				return nil, fmt.Errorf("rule %s: %w", parsed.text, err)
			}
		}
		r.rules = append(r.rules, parsed)
		rest = rest[len(m[0]):]
	}
	return r, nil
}

func firstField(s string) string {
	const limit = 80 // bytes
	if f := strings.Fields(s); len(f) > 0 {
		s = f[0]
	}
	return s[:min(len(s), limit)]
}

// parse reads the groups of a match of ruleForm.
func (r *rule) parse(m []string) (err error) {
	if r.components, err = strconv.Atoi(m[4]); err != nil || r.components > math.MaxInt32 {
		return fmt.Errorf("%q is not a number of components; a principal has one or two", m[4])
	}
	end := 0
	for _, p := range parameter.FindAllStringSubmatchIndex(m[5], -1) {
		n, err := strconv.Atoi(m[5][p[2]:p[3]])
		if err != nil || n > r.components {
			return fmt.Errorf("%s is not one of the parameters $0 (the realm) to $%d", m[5][p[0]:p[1]], r.components)
		}
		r.literals = append(r.literals, m[5][end:p[0]])
		r.format = append(r.format, n)
		end = p[1]
	}
	r.literals = append(r.literals, m[5][end:])
	if m[6] != "" {
		re, err := compileJava(m[7])
		if err != nil {
			return err
		}
		if r.match, err = regexp.Compile(`\A(?:` + re.String() + `)\z`); err != nil {
			return err
		}
	}
	if m[8] != "" {
		if r.replace, err = newSubstitution(m[9], m[10], m[11] != ""); err != nil {
			return err
		}
	}
	r.text = "RULE:[" + strconv.Itoa(r.components) + ":" + m[5] + "]" + m[6] + m[8]
	if r.lowerCase = m[12] != ""; r.lowerCase {
		r.text += "/L"
	}
	return nil
}

// UsesDefaultRealm reports whether a rule needs the default realm.
func (r *Rules) UsesDefaultRealm() bool {
	for _, rule := range r.rules {
		if rule.isDefault {
			return true
		}
	}
	return false
}

// noRule is an error of Short that is a NoMatchingRule in Hadoop. All other errors of Short are
// IllegalArgumentExceptions in Hadoop.
type noRule string

func (e noRule) Error() string { return string(e) }

// javaText returns an error of Short as Java prints it: its class, then its message.
func javaText(err error) string {
	var none noRule
	if errors.As(err, &none) {
		return "org.apache.hadoop.security.authentication.util.KerberosName$NoMatchingRule: " + err.Error()
	}
	return "java.lang.IllegalArgumentException: " + err.Error()
}

// principalForm is Hadoop's form of a principal: service[/host][@realm].
var principalForm = regexp.MustCompile(`^([^/@]+)(?:/([^/@]+))?(?:@([^/@]+))?$`)

// Short returns the short name of a principal. A name without host and realm is already short. The error has Hadoop's
// text.
func (r *Rules) Short(name string) (string, error) {
	if !strings.ContainsAny(name, "/@") {
		return name, nil
	}
	m := principalForm.FindStringSubmatch(name)
	switch {
	case m == nil && strings.Contains(name, "@"):
		return "", errors.New("Malformed Kerberos name: " + name) //nolint:staticcheck // Hadoop's text
	case m == nil || m[2] == "" && m[3] == "":
		return name, nil
	}
	params := []string{m[3], m[1]}
	if m[2] != "" {
		params = append(params, m[2])
	}
	for i := range r.rules {
		short, ok, err := r.rules[i].apply(params, r)
		if err != nil || ok {
			return short, err
		}
	}
	if r.mechanism == MechanismMIT {
		return name, nil
	}
	return "", noRule("No rules applied to " + name)
}

// Letters that /L refuses. The lower case of contextual letters depends on the letters around them, or on the locale.
// The lower case of the KELVIN SIGN is an ASCII k, also in Java, so the result could be the name of another user.
const (
	contextual = "\u0130\u03a3"
	kelvin     = '\u212a'
)

// apply makes a short name from params: a principal's realm ("" for none), then its components. ok is false if the rule
// does not match.
func (r *rule) apply(params []string, rules *Rules) (short string, ok bool, err error) {
	switch {
	case r.isDefault:
		if params[0] == "" || params[0] != rules.realm {
			return "", false, nil
		}
		return params[1], true, nil
	case len(params)-1 != r.components:
		return "", false, nil
	}
	var b strings.Builder
	for i, literal := range r.literals {
		b.WriteString(literal)
		if i == len(r.format) {
			break
		}
		if p := params[r.format[i]]; p != "" {
			b.WriteString(p)
		} else {
			b.WriteString("null") // as Java writes a missing realm
		}
	}
	short = b.String()
	if r.match != nil && !r.match.MatchString(short) {
		return "", false, nil
	}
	if r.replace != nil {
		short = r.replace.apply(short)
	}
	if strings.ContainsAny(short, "/@") && rules.mechanism == MechanismHadoop {
		return "", false, noRule("Non-simple name " + short + " after auth_to_local rule " + r.text)
	}
	if r.lowerCase {
		if strings.ContainsAny(short, contextual) || strings.ContainsRune(short, kelvin) {
			return "", false, noRule("Lower case of " + short + ", after auth_to_local rule " + r.text +
				", is that of another name, or depends on more than its letters")
		}
		short = strings.Map(unicode.ToLower, short)
	}
	return short, true, nil
}
