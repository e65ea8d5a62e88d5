package authn

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

// compileJava compiles a regular expression that was written for
// java.util.regex. Most mean the same to Go's regexp; those that Go does not
// know, and those that both know with another meaning, are refused. The texts
// that they are matched with hold no line ends and no control characters, so
// that what the two make of these does not matter. (A \b is refused, too: to Java
// letters that are not ASCII make words, and which ones hangs on its version.)
// Letters under (?i) are written out, see asciiFold.
func compileJava(expr string) (*regexp.Regexp, error) {
	if err := checkJava(expr); err != nil {
		return nil, fmt.Errorf("regular expression %s: %w", expr, err)
	}
	// What Go says of the expression as it stands is easier to understand.
	_, err := syntax.Parse(expr, syntax.Perl)
	var bad *syntax.Error
	if errors.As(err, &bad) {
		return nil,
			fmt.Errorf("regular expression %s: %s, at %s; lookaround, back references, atomic groups and possessive "+
				"quantifiers cannot be used here: write several rules instead", expr, bad.Code, bad.Expr)
	}
	if err != nil {
		return nil, err
	}
	folded, err := asciiFold(expr)
	if err != nil {
		return nil, fmt.Errorf("regular expression %s: %w", expr, err)
	}
	re, err := regexp.Compile(folded)
	if err != nil {
		return nil, fmt.Errorf("regular expression %s: with the letters under (?i) written out it is %w", expr, err)
	}
	return re, nil
}

var (
	// sameEscape are the letters that mean the same after a backslash.
	sameEscape = regexp.MustCompile(`^[dDwWsSAzQEpPxtnrfa]`)
	// repetition is {2} and the like; any other '{' is an error to Java.
	repetition = regexp.MustCompile(`^\{[0-9]+(,[0-9]*)?\}`)
	// sameGroup is what may follow "(?"; other flags differ.
	sameGroup = regexp.MustCompile(`^(:|<[A-Za-z][A-Za-z0-9]*>|-?i[:)])`)
)

// checkJava refuses what Java and Go understand differently.
func checkJava(expr string) error {
	inSet := false
	for i := 0; i < len(expr); i++ {
		rest := expr[i+1:]
		switch c := expr[i]; {
		case c == '\\' && strings.HasPrefix(rest, "Q"):
			_, after, closed := strings.Cut(rest, `\E`)
			if !closed {
				return nil // all of it is quoted
			}
			i = len(expr) - len(after) - 1
		case c == '\\':
			if rest == "" {
				return nil // an error to both
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
			return errors.New("a set within a set, or of what two sets share, cannot be used here: write one set of " +
				"characters")
		case inSet:
			inSet = c != ']'
		case c == '[':
			inSet = true
			rest = strings.TrimPrefix(rest, "^")
			rest = strings.TrimPrefix(rest, "]") // at the beginning it is one of the set
			i = len(expr) - len(rest) - 1
		case c == '(' && strings.HasPrefix(rest, "?") && !sameGroup.MatchString(rest[1:]):
			return errors.New("of the groups that begin with (? only (?:...), (?<name>...) and (?i) can be used " +
				"here: write several rules instead")
		case c == '{':
			if !repetition.MatchString(expr[i:]) {
				return errors.New(`a '{' that is no repetition is written \{`)
			}
		}
	}
	return nil
}

// substitution is Java's replaceFirst or replaceAll.
type substitution struct {
	from   *regexp.Regexp
	to     []piece
	repeat bool
	// mayBeEmpty: from may match nothing at all.
	mayBeEmpty bool
}

// piece of a replacement: a text, or what a group of the expression matched.
type piece struct {
	text  string
	group int // -1: it is a text
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

// parseReplacement reads a replacement as java.util.regex.Matcher does: "$1" and
// "${name}" are groups, a backslash takes the meaning of what follows. It refuses
// what Matcher would only refuse once the expression matches.
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

// groupReference reads what follows a '$'.
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
	// As many digits as still are a group's number.
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

// in replaces in a text.
func (s *substitution) in(text string) string {
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

// matches are the matches that Java finds. Directly behind a match Java takes
// one of nothing, too, and Go does not: to Java, s/.*/x/g makes "xx" of a name.
// Such a match has no groups that hold anything.
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

// emptyAt is the match of the empty text at an offset, where any match at all
// there is known to be one.
func (s *substitution) emptyAt(text string, at int) []int {
	// The text before the offset must be seen by ^, and be skipped.
	there, err := regexp.Compile(fmt.Sprintf(`\A(?s:.{%d})((?:%s))`, utf8.RuneCountInString(text[:at]), s.from))
	if err != nil {
		return nil // no name is as long as the longest repetition
	}
	m := there.FindStringSubmatchIndex(text)
	if m == nil {
		return nil
	}
	return m[2:]
}

// nullable tells whether an expression may match the empty text somewhere.
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
