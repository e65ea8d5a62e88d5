package authn

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// asciiFold writes an expression of java.util.regex without (?i): each ASCII letter under the flag becomes a set of
// its two cases. Java's flag CASE_INSENSITIVE folds ASCII letters only. Go's flag folds by Unicode: a KELVIN SIGN
// matches k, so a principal with a KELVIN SIGN could become another user. checkJava must have accepted expr.
func asciiFold(expr string) (string, error) {
	f := folder{rest: expr, flags: []bool{false}}
	for f.rest != "" {
		if err := f.step(); err != nil {
			return "", err
		}
	}
	return f.out.String(), nil
}

// folder is the state of asciiFold.
type folder struct {
	rest  string          // of the input
	out   strings.Builder // the result
	flags []bool          // (?i) of each open group, the innermost last
}

func (f *folder) fold() bool { return f.flags[len(f.flags)-1] }

// take removes n bytes from rest, and returns them.
func (f *folder) take(n int) string {
	taken := f.rest[:n]
	f.rest = f.rest[n:]
	return taken
}

func (f *folder) step() error {
	switch c := f.rest[0]; {
	case c == '\\' && strings.HasPrefix(f.rest, `\Q`):
		quoted, after, _ := strings.Cut(f.rest[2:], `\E`)
		f.rest = after
		for _, r := range quoted {
			f.letter(r)
		}
	case c == '\\':
		r, text, err := f.escape()
		switch {
		case err != nil:
			return err
		case r >= 0:
			f.letter(r)
		default:
			f.out.WriteString(text)
		}
	case c == '[':
		return f.set()
	case c == '(':
		f.group()
	case c == ')':
		f.out.WriteString(f.take(1))
		if len(f.flags) > 1 { // compileJava has refused a ')' without '('
			f.flags = f.flags[:len(f.flags)-1]
		}
	default:
		r, size := utf8.DecodeRuneInString(f.rest)
		if text := f.take(size); isLetter(r) {
			f.letter(r)
		} else {
			f.out.WriteString(text) // not quoted: it may be an operator
		}
	}
	return nil
}

// group opens a group, or applies (?i) or (?-i) to the rest of the innermost open group.
func (f *folder) group() {
	was := f.fold()
	for _, form := range []struct {
		text, out  string
		opens, now bool
	}{
		{"(?i)", "", false, true}, {"(?-i)", "", false, false},
		{"(?i:", "(?:", true, true}, {"(?-i:", "(?:", true, false},
		{"(", "(", true, was}, // the rest of (?: and (?<name> follows
	} {
		if !strings.HasPrefix(f.rest, form.text) {
			continue
		}
		f.take(len(form.text))
		f.out.WriteString(form.out)
		if form.opens {
			f.flags = append(f.flags, form.now)
			if strings.HasPrefix(f.rest, "?") { // copy a group's name without folding it
				end := strings.IndexAny(f.rest, ":>")
				f.out.WriteString(f.take(end + 1))
			}
		} else {
			f.flags[len(f.flags)-1] = form.now
		}
		return
	}
}

// isLetter reports whether r is an ASCII letter.
func isLetter(r rune) bool { return r|0x20 >= 'a' && r|0x20 <= 'z' && r < utf8.RuneSelf }

// letter writes a character that is not an operator.
func (f *folder) letter(r rune) {
	if f.fold() && isLetter(r) {
		f.out.WriteString("[" + string(r) + string(r^0x20) + "]")
		return
	}
	f.out.WriteString(literal(r))
}

// literal returns the form of a character in an expression or a set.
func literal(r rune) string {
	if r < utf8.RuneSelf && !isLetter(r) && (r < '0' || r > '9') {
		return fmt.Sprintf(`\x%02x`, r)
	}
	return string(r)
}

// escape takes an escape sequence. It returns the character that the sequence means; or -1, and the sequence itself
// if it is a class or an anchor, which have no case.
func (f *folder) escape() (r rune, text string, err error) {
	switch c := f.rest[1]; {
	case c == 'x':
		return f.hex()
	case c == 'p' || c == 'P':
		if f.fold() {
			return 0, "", fmt.Errorf(`\%c cannot be used under (?i) here: its matches depend on Java's version`, c)
		}
		n := 3
		if strings.HasPrefix(f.rest[2:], "{") {
			n = strings.IndexByte(f.rest, '}') + 1
		}
		return -1, f.take(n), nil
	case isLetter(rune(c)): // a class, an anchor, a control character
		return -1, f.take(2), nil
	}
	f.take(1)
	r, size := utf8.DecodeRuneInString(f.rest)
	f.take(size)
	return r, "", nil
}

// hex takes \xHH or \x{H...}.
func (f *folder) hex() (rune, string, error) {
	n := 4 // bytes
	digits := f.rest[2:n]
	if strings.HasPrefix(digits, "{") {
		n = strings.IndexByte(f.rest, '}') + 1
		digits = f.rest[3 : n-1]
	}
	v, err := strconv.ParseUint(digits, 16, 21)
	if err != nil || v > utf8.MaxRune {
		return 0, "", fmt.Errorf(`\x%s is not a character`, digits)
	}
	f.take(n)
	return rune(v), "", nil
}

// set takes a set of characters. Under (?i) it adds the other case of each ASCII letter in the set.
func (f *folder) set() error {
	var cases strings.Builder
	f.out.WriteString(f.take(1))
	if strings.HasPrefix(f.rest, "^") {
		f.out.WriteString(f.take(1))
	}
	for first := true; ; first = false {
		if f.rest == "" {
			return errors.New("a set of characters is not closed")
		}
		if f.rest[0] == ']' && !first {
			break
		}
		lo, text, err := f.member()
		if err != nil {
			return err
		}
		if lo < 0 {
			f.out.WriteString(text)
			continue
		}
		hi := lo
		if len(f.rest) > 1 && f.rest[0] == '-' && f.rest[1] != ']' {
			f.take(1)
			if hi, _, err = f.member(); err != nil {
				return err
			}
			if hi < lo {
				return errors.New("a range of a set of characters ends before it begins")
			}
		}
		f.out.WriteString(literal(lo) + "-" + literal(hi))
		for _, alphabet := range [...]rune{'a', 'A'} {
			if from, to := max(lo, alphabet), min(hi, alphabet+25); f.fold() && from <= to {
				cases.WriteString(string(from^0x20) + "-" + string(to^0x20))
			}
		}
	}
	f.out.WriteString(cases.String() + f.take(1))
	return nil
}

// member takes one character of a set, or a class in it. The results are those of escape.
func (f *folder) member() (rune, string, error) {
	if f.rest[0] == '\\' {
		return f.escape()
	}
	r, size := utf8.DecodeRuneInString(f.rest)
	f.take(size)
	return r, "", nil
}
