package kmswire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// maxDepth is how deep a value of an unknown field may nest.
const maxDepth = 64

// lexer reads JSON from a whole body. It does not allocate for values that it skips,
// nor for strings without escapes. Its errors are *Exception, with texts similar to
// Jackson's.
//
// It replaces encoding/json because a NameNode sends bodies of a thousand EDEKs, and
// parsing them took most of a batch's time. FuzzRequests compares the two.
type lexer struct {
	data []byte
	pos  int
}

// newLexer makes a lexer for a body. Like Jackson it skips a byte order mark.
func newLexer(body []byte) *lexer {
	return &lexer{data: bytes.TrimPrefix(body, []byte("\ufeff"))}
}

func (l *lexer) skipSpace() {
	for l.pos < len(l.data) {
		switch l.data[l.pos] {
		case ' ', '\t', '\n', '\r':
			l.pos++
		default:
			return
		}
	}
}

// peek returns the first byte of the next token; 0 at the end.
func (l *lexer) peek() byte {
	l.skipSpace()
	if l.pos == len(l.data) {
		return 0
	}
	return l.data[l.pos]
}

func (l *lexer) eof(where string) error {
	return Throw(jsonEOFException, "Unexpected end-of-input"+where)
}

func (l *lexer) unexpected(want string) error {
	if l.pos >= len(l.data) {
		return l.eof(": " + want)
	}
	return Throw(jsonParseException, fmt.Sprintf("Unexpected character (%s) at byte %d: %s",
		strconv.QuoteRune(rune(l.data[l.pos])), l.pos+1, want))
}

// object reads an object, which is the next token. It calls field for each name; field must read the value.
func (l *lexer) object(field func(name []byte) error) error {
	l.pos++ // past the bracket, which the caller has seen
	if l.peek() == '}' {
		l.pos++
		return nil
	}
	for {
		if l.peek() != '"' {
			return l.unexpected("was expecting double-quote to start field name")
		}
		name, err := l.str()
		if err != nil {
			return err
		}
		if l.peek() != ':' {
			return l.unexpected("was expecting a colon to separate field name and value")
		}
		l.pos++
		if err := field(name); err != nil {
			return err
		}
		switch l.peek() {
		case ',':
			l.pos++
		case '}':
			l.pos++
			return nil
		default:
			return l.unexpected("was expecting comma to separate Object entries")
		}
	}
}

// array reads an array, which is the next token. It calls item for each element; item must read it.
func (l *lexer) array(item func() error) error {
	l.pos++ // past the bracket, which the caller has seen
	if l.peek() == ']' {
		l.pos++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch l.peek() {
		case ',':
			l.pos++
		case ']':
			l.pos++
			return nil
		default:
			return l.unexpected("was expecting comma to separate Array entries")
		}
	}
}

// str reads a string token. The result may be part of data.
func (l *lexer) str() ([]byte, error) {
	start := l.pos + 1 // after the quote
	for i := start; i < len(l.data); i++ {
		switch c := l.data[i]; {
		case c == '"':
			l.pos = i + 1
			return l.data[start:i], nil
		case c == '\\' || c < ' ' || c >= utf8.RuneSelf:
			return l.slowString(start, i)
		}
	}
	l.pos = len(l.data)
	return nil, l.eof(" in VALUE_STRING")
}

// slowString reads a string with escapes or characters outside ASCII.
func (l *lexer) slowString(start, i int) ([]byte, error) {
	escaped := false
	for ; i < len(l.data); i++ {
		c := l.data[i]
		switch {
		case c == '\\':
			escaped = true
			i++
		case c < ' ':
			l.pos = i
			return nil, l.unexpected("control characters must be escaped in strings")
		case c == '"':
			raw := l.data[start:i]
			l.pos = i + 1
			if !utf8.Valid(raw) {
				return nil, Throw(jsonParseException, "Invalid UTF-8 in a string")
			}
			if !escaped {
				return raw, nil
			}
			var s string
			if err := json.Unmarshal(l.data[start-1:i+1], &s); err != nil {
				return nil, Throw(jsonParseException, "Unrecognized character escape in a string")
			}
			return []byte(s), nil
		}
	}
	l.pos = len(l.data)
	return nil, l.eof(" in VALUE_STRING")
}

// literal reads the token w: true, false or null.
func (l *lexer) literal(w string) error {
	if !bytes.HasPrefix(l.data[l.pos:], []byte(w)) {
		return l.unexpected("expected a value")
	}
	l.pos += len(w)
	return nil
}

// number reads a number token by JSON's grammar. integer is true if it has neither
// fraction nor exponent.
func (l *lexer) number() (text []byte, integer bool, err error) {
	start := l.pos
	digits := func() bool {
		from := l.pos
		for l.pos < len(l.data) && l.data[l.pos] >= '0' && l.data[l.pos] <= '9' {
			l.pos++
		}
		return l.pos > from
	}
	if l.data[l.pos] == '-' {
		l.pos++
	}
	first := l.pos
	if !digits() {
		return nil, false, l.unexpected("expected a digit")
	}
	if l.data[first] == '0' && l.pos > first+1 {
		return nil, false, Throw(jsonParseException, "Invalid numeric value: Leading zeroes not allowed")
	}
	integer = true
	if l.pos < len(l.data) && l.data[l.pos] == '.' {
		integer = false
		l.pos++
		if !digits() {
			return nil, false, l.unexpected("Decimal point not followed by a digit")
		}
	}
	if l.pos < len(l.data) && (l.data[l.pos] == 'e' || l.data[l.pos] == 'E') {
		integer = false
		l.pos++
		if l.pos < len(l.data) && (l.data[l.pos] == '+' || l.data[l.pos] == '-') {
			l.pos++
		}
		if !digits() {
			return nil, false, l.unexpected("Exponent indicator not followed by a digit")
		}
	}
	return l.data[start:l.pos], integer, nil
}

// skip reads a value of any kind and returns the Java class of it; "" for null.
func (l *lexer) skip(depth int) (java string, err error) {
	if depth > maxDepth {
		return "", Throw(jsonParseException, fmt.Sprintf("JSON is nested more than %d deep", maxDepth))
	}
	switch c := l.peek(); {
	case c == '{':
		return javaObject, l.object(func([]byte) error {
			_, err := l.skip(depth + 1)
			return err
		})
	case c == '[':
		return "java.util.ArrayList", l.array(func() error {
			_, err := l.skip(depth + 1)
			return err
		})
	case c == '"':
		_, err := l.str()
		return javaString, err
	case c == 't':
		return "java.lang.Boolean", l.literal("true")
	case c == 'f':
		return "java.lang.Boolean", l.literal("false")
	case c == 'n':
		return "", l.literal("null")
	case c == '-' || c >= '0' && c <= '9':
		text, integer, err := l.number()
		return javaNumber(text, integer), err
	}
	return "", l.unexpected("expected a value")
}

// javaNumber returns the class that Jackson uses for a number.
func javaNumber(text []byte, integer bool) string {
	if !integer {
		return "java.lang.Double"
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	switch {
	case err != nil:
		return "java.math.BigInteger"
	case int64(int32(n)) != n:
		return "java.lang.Long"
	}
	return javaInteger
}

// cannotCast is Java's error for a value of the wrong kind.
func cannotCast(from, to string) error {
	return Throw(ClassCast, fmt.Sprintf("class %[1]s cannot be cast to class %[2]s "+
		"(%[1]s and %[2]s are in module java.base of loader 'bootstrap')", from, to))
}

// Java's classes of JSON values, as Jackson makes them.
const (
	javaString  = "java.lang.String"
	javaInteger = "java.lang.Integer"
	javaMap     = "java.util.Map"           // Hadoop casts an object to it
	javaObject  = "java.util.LinkedHashMap" // Jackson's class for an object
)

// value is the value of a field. Hadoop's KMS parses the whole body, keeps the last of
// several fields with one name, and casts a field when it uses it. So a value of the
// wrong kind is an error only when it is used.
type value struct {
	java string // its class; "" for null and for an absent field
	text []byte // the content of a string; otherwise the JSON text
	at   int    // index in the lexer's data of a string's first character
}

// value reads a value of any kind.
func (l *lexer) value() (v value, err error) {
	if l.peek() == '"' {
		v.java, v.at = javaString, l.pos+1
		v.text, err = l.str()
		return v, err
	}
	start := l.pos
	v.java, err = l.skip(0)
	v.text = l.data[start:l.pos]
	return v, err
}

// string returns a string; ok is false for null.
func (v value) string() (s []byte, ok bool, err error) {
	switch v.java {
	case javaString:
		return v.text, true, nil
	case "":
		return nil, false, nil
	}
	return nil, false, cannotCast(v.java, javaString)
}

// integer returns an int; null is 0.
func (v value) integer() (int, error) {
	switch v.java {
	case javaInteger:
		return strconv.Atoi(string(v.text))
	case "":
		return 0, nil
	}
	return 0, cannotCast(v.java, javaInteger)
}

// fields reads an object. find returns where to store a field's value; nil skips it.
func (l *lexer) fields(find func(name []byte) *value) error {
	return l.object(func(name []byte) error {
		if v := find(name); v != nil {
			var err error
			*v, err = l.value()
			return err
		}
		_, err := l.skip(0)
		return err
	})
}
