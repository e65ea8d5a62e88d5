package authn

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

// compileJava compiles a regular expression of java.util.regex. Most expressions mean the same in Go's regexp.
// compileJava refuses an expression that Go does not have, and one that means something else in Go. Names contain no
// line ends and no control characters, so differences in matching those do not matter. \b is refused too: in Java,
// letters that are not ASCII may belong to a word, and which ones depends on Java's version. asciiFold writes out the
// letters under (?i).
func compileJava(expr string) (*regexp.Regexp, error) {
	if err := checkJava(expr); err != nil {
		return nil, fmt.Errorf("regular expression %s: %w", expr, err)
	}
	// Parse the original first: an error about the folded expression would be harder to understand.
	var bad *syntax.Error
	if _, err := syntax.Parse(expr, syntax.Perl); errors.As(err, &bad) {
		return nil,
			fmt.Errorf("regular expression %s: %s, at %s; lookaround, back references, atomic groups and possessive "+
				"quantifiers cannot be used here: write several rules instead", expr, bad.Code, bad.Expr)
	}
	folded, err := asciiFold(expr)
	if err != nil {
		return nil, fmt.Errorf("regular expression %s: %w", expr, err)
	}
	re, err := regexp.Compile(folded)
	if err != nil {
		return nil, fmt.Errorf("regular expression %s: after the letters under (?i) were written out: %w", expr, err)
	}
	return re, nil
}

var (
	// sameEscape matches a letter that, after a backslash, means the same in Java and Go.
	sameEscape = regexp.MustCompile(`^[dDwWsSAzQEpPxtnrfa]`)
	// repetition matches {2}, for example. Any other '{' is an error in Java.
	repetition = regexp.MustCompile(`^\{[0-9]+(,[0-9]*)?\}`)
	// sameGroup matches the text that is allowed after "(?". Other flags differ between Java and Go.
	sameGroup = regexp.MustCompile(`^(:|<[A-Za-z][A-Za-z0-9]*>|-?i[:)])`)
)

// checkJava refuses an expression that does not mean the same in Java and Go.
func checkJava(expr string) error {
	inSet := false
	for i := 0; i < len(expr); i++ {
		rest := expr[i+1:]
		switch c := expr[i]; {
		case c == '\\' && strings.HasPrefix(rest, "Q"):
			_, after, _ := strings.Cut(rest, `\E`) // without \E the whole rest is quoted
			i = len(expr) - len(after) - 1
		case c == '\\':
			if rest == "" {
				return nil // Java and Go both refuse it
			}
			letter := rest[0] | 0x20
			if (letter >= 'a' && letter <= 'z' && !sameEscape.MatchString(rest)) || rest[0] >= '0' && rest[0] <= '9' {
				return fmt.Errorf(`\%c cannot be used here: it does not mean the same in Java and in Go`, rest[0])
			}
			i++
			if strings.ContainsRune("pPx", rune(rest[0])) && strings.HasPrefix(rest[1:], "{") {
				name, _, _ := strings.Cut(rest[1:], "}")
				i += len(name)
			}
		case inSet && c == '[', inSet && c == '&' && strings.HasPrefix(rest, "&"):
			return errors.New("a set within a set, or an intersection of sets (&&), cannot be used here: write one " +
				"set of characters")
		case inSet:
			inSet = c != ']'
		case c == '[':
			inSet = true
			rest = strings.TrimPrefix(rest, "^")
			rest = strings.TrimPrefix(rest, "]") // a first ']' is a member of the set
			i = len(expr) - len(rest) - 1
		case c == '(' && strings.HasPrefix(rest, "?") && !sameGroup.MatchString(rest[1:]):
			return errors.New("a group that begins with (? must be (?:...), (?<name>...) or (?i): write several " +
				"rules instead")
		case c == '{':
			if !repetition.MatchString(expr[i:]) {
				return errors.New(`a '{' that does not begin a repetition, such as {2}, must be written \{`)
			}
		}
	}
	return nil
}

// substitution is Java's replaceFirst or replaceAll.
type substitution struct {
	from   *regexp.Regexp
	to     []piece
	repeat bool // replaceAll
	// mayBeEmpty means that from may match the empty text.
	mayBeEmpty bool
}

// piece is a part of a replacement: a text, or the text that a group of the expression matched.
type piece struct {
	text  string
	group int // -1: a text
}

func newSubstitution(from, to string, repeat bool) (*substitution, error) {
	re, err := compileJava(from)
	if err != nil {
		return nil, err
	}
	tree, err := syntax.Parse(re.String(), syntax.Perl)
	if err != nil {
		return nil, err
	}
	s := &substitution{from: re, repeat: repeat, mayBeEmpty: nullable(tree)}
	if s.to, err = parseReplacement(to, re); err != nil {
		return nil, fmt.Errorf("replacement %s: %w", to, err)
	}
	return s, nil
}

// parseReplacement reads a replacement as java.util.regex.Matcher does: "$1" and "${name}" are groups, and a backslash
// quotes the next character. Matcher refuses a wrong replacement only when the expression matches; parseReplacement
// refuses it at once.
func parseReplacement(to string, re *regexp.Regexp) ([]piece, error) {
	var pieces []piece
	var text strings.Builder
	for to != "" {
		c, size := utf8.DecodeRuneInString(to)
		to = to[size:]
		switch c {
		case '\\':
			if to == "" {
				return nil, errors.New(`nothing follows the \; write \\ for a backslash`)
			}
			c, size = utf8.DecodeRuneInString(to)
			to = to[size:]
			text.WriteRune(c)
		case '$':
			group, rest, err := groupReference(to, re)
			if err != nil {
				return nil, err
			}
			pieces = append(pieces, piece{text.String(), -1}, piece{"", group})
			text.Reset()
			to = rest
		default:
			text.WriteRune(c)
		}
	}
	return append(pieces, piece{text.String(), -1}), nil
}

// groupReference reads the group after a '$'.
func groupReference(s string, re *regexp.Regexp) (group int, rest string, err error) {
	bad := fmt.Errorf(`a $ must name one of the %d groups of the expression; write \$ for the character`,
		re.NumSubexp())
	if s == "" {
		return 0, "", bad
	}
	if s[0] == '{' {
		name, rest, closed := strings.Cut(s[1:], "}")
		if group = re.SubexpIndex(name); !closed || group < 0 {
			return 0, "", bad
		}
		return group, rest, nil
	}
	// Java reads more digits while a group with the number exists.
	digits := 0
	for digits < len(s) && s[digits] >= '0' && s[digits] <= '9' {
		next := group*10 + int(s[digits]-'0')
		if next > re.NumSubexp() {
			break
		}
		group = next
		digits++
	}
	if digits == 0 {
		return 0, "", bad
	}
	return group, s[digits:], nil
}

// apply returns text after the replacement.
func (s *substitution) apply(text string) string {
	var b strings.Builder
	end := 0
	for _, m := range s.matches(text) {
		b.WriteString(text[end:m[0]])
		for _, p := range s.to {
			b.WriteString(p.text)
			if p.group >= 0 && m[2*p.group] >= 0 {
				b.WriteString(text[m[2*p.group]:m[2*p.group+1]])
			}
		}
		end = m[1]
	}
	b.WriteString(text[end:])
	return b.String()
}

// matches returns the matches that Java finds. Java also takes an empty match directly after a match, and Go does
// not: in Java, s/.*/x/g makes "xx" of a name. The groups of such a match are empty.
func (s *substitution) matches(text string) [][]int {
	if !s.repeat {
		if m := s.from.FindStringSubmatchIndex(text); m != nil {
			return [][]int{m}
		}
		return nil
	}
	found := s.from.FindAllStringSubmatchIndex(text, -1)
	if !s.mayBeEmpty {
		return found
	}
	var all [][]int
	for i, m := range found {
		all = append(all, m)
		if m[0] == m[1] || i+1 < len(found) && found[i+1][0] == m[1] {
			continue
		}
		if empty := s.emptyAt(text, m[1]); empty != nil {
			all = append(all, empty)
		}
	}
	return all
}

// emptyAt returns the empty match at an offset, nil if there is none. The caller has made sure that no other match
// begins there.
func (s *substitution) emptyAt(text string, at int) []int {
	// Match from the beginning and skip at bytes, so that ^ does not match at the offset.
	anchored, err := regexp.Compile(fmt.Sprintf(`\A(?s:.{%d})((?:%s))`, utf8.RuneCountInString(text[:at]), s.from))
	if err != nil {
		return nil // more than 1000 repetitions; no name is that long
	}
	if m := anchored.FindStringSubmatchIndex(text); m != nil {
		return m[2:]
	}
	return nil
}

// nullable reports whether an expression may match the empty text somewhere.
func nullable(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpNoMatch, syntax.OpLiteral, syntax.OpCharClass, syntax.OpAnyCharNotNL, syntax.OpAnyChar:
		return false
	case syntax.OpCapture, syntax.OpPlus:
		return nullable(re.Sub[0])
	case syntax.OpRepeat:
		return re.Min == 0 || nullable(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			if !nullable(sub) {
				return false
			}
		}
		return true
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			if nullable(sub) {
				return true
			}
		}
		return false
	}
	return true // an empty match, an assertion, a star or a question mark
}
