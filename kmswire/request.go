package kmswire

import (
	"claviger"
)

// begin checks that a body holds a value of the wanted kind, and returns false
// for null.
func (l *lexer) begin(open byte, java string) (ok bool, err error) {
	c := l.peek()
	switch {
	case c == 0 && l.pos == len(l.data):
		return false, Throw(mismatchedInputException, "No content to map due to end-of-input")
	case c == open:
		return true, nil
	}
	got, err := l.skip(0)
	if err != nil || got == "" {
		return false, err
	}
	token := map[string]string{
		"java.util.LinkedHashMap": "Object value (token `JsonToken.START_OBJECT`)",
		"java.util.ArrayList":     "Array value (token `JsonToken.START_ARRAY`)",
		"java.lang.String":        "String value (token `JsonToken.VALUE_STRING`)",
		"java.lang.Boolean":       "Boolean value",
		"java.lang.Double":        "Floating-point value (token `JsonToken.VALUE_NUMBER_FLOAT`)",
	}[got]
	if token == "" {
		token = "Integer value (token `JsonToken.VALUE_NUMBER_INT`)"
	}
	return false, Throw(mismatchedInputException, "Cannot deserialize value of type `"+java+"` from "+token)
}

// object reads a request body that is an object. parameter is the Java variable
// that a null body makes null.
func (l *lexer) body(parameter string, field func(name []byte) error) error {
	ok, err := l.begin('{', "java.util.LinkedHashMap<java.lang.Object,java.lang.Object>")
	if err != nil {
		return err
	}
	if !ok {
		return Throw(NullPointer, `Cannot invoke "java.util.Map.get(Object)" because "`+parameter+`" is null`)
	}
	return l.object(field)
}

// material reads a base64 field of a creation or a roll. What is no base64 is
// empty, as with Hadoop, whose length check then refuses it.
func (l *lexer) material() ([]byte, error) {
	s, ok, err := l.text()
	if err != nil || !ok {
		return nil, err
	}
	b, err := decodeBase64(s)
	if err != nil {
		return []byte{}, nil //nolint:nilerr // see above: the length check speaks
	}
	return b, nil
}

// ReadCreate decodes the body of POST /v1/keys. Errors are *Exception.
func ReadCreate(body []byte) (Create, error) {
	var c Create
	l := &lexer{data: body}
	name := false
	err := l.body("jsonKey", func(field []byte) (err error) {
		var s []byte
		switch string(field) {
		case "name":
			s, name, err = l.text()
			c.Name = string(s)
		case "cipher":
			s, _, err = l.text()
			c.Cipher = string(s)
		case "length":
			c.Length, err = l.integer()
		case "description":
			var ok bool
			if s, ok, err = l.text(); ok {
				d := string(s)
				c.Description = &d
			} else {
				c.Description = nil
			}
		case "attributes":
			c.Attributes, c.BadAttribute, err = l.attributes()
		case "material":
			c.Material, err = l.material()
		default:
			_, err = l.skip(0)
		}
		return err
	})
	switch {
	case err != nil:
		return Create{}, err
	case !name:
		return Create{}, required("name")
	case c.Name == "":
		return Create{}, Throw(IllegalArgument, "Parameter 'name' cannot be empty")
	}
	return c, nil
}

// attributes reads a map of strings, or null. bad tells of a value of another
// kind.
func (l *lexer) attributes() (m map[string]string, bad bool, err error) {
	if l.peek() != '{' {
		java, err := l.skip(0)
		if err == nil && java != "" {
			err = cannotCast(java, "java.util.Map")
		}
		return nil, false, err
	}
	m = map[string]string{}
	err = l.object(func(name []byte) error {
		if l.peek() != '"' {
			java, err := l.skip(1)
			bad = bad || java != ""
			return err
		}
		v, err := l.str()
		m[string(name)] = string(v)
		return err
	})
	return m, bad, err
}

// ReadRoll decodes the body of POST /v1/key/{name}.
func ReadRoll(body []byte) (Roll, error) {
	var r Roll
	l := &lexer{data: body}
	err := l.body("jsonMaterial", func(field []byte) (err error) {
		if string(field) == "material" {
			r.Material, err = l.material()
			return err
		}
		_, err = l.skip(0)
		return err
	})
	return r, err
}

// ReadOpen decodes the body of a decrypt or a single re-encrypt.
func ReadOpen(body []byte) (Open, error) {
	var o Open
	l := &lexer{data: body}
	var iv, material bool
	buf := make([]byte, 0, len(body)) // IV and material decode into one piece
	err := l.body("jsonPayload", func(field []byte) (err error) {
		var s []byte
		switch string(field) {
		case "name":
			s, o.HasName, err = l.text()
			o.Name = string(s)
		case "iv":
			if s, iv, err = l.text(); iv {
				o.IV, buf = decodeInto(buf, s)
			}
		case "material":
			if s, material, err = l.text(); material {
				var ok bool
				if o.Material, buf, ok = decodeStrict(buf, s); !ok {
					return errMaterial
				}
			}
		default:
			_, err = l.skip(0)
		}
		return err
	})
	switch {
	case err != nil:
		return Open{}, err
	case !iv:
		return Open{}, required("iv")
	case !material:
		return Open{}, required("material")
	}
	return o, nil
}

// errMaterial: Hadoop decodes what it can of such a text and opens that; the
// result could only be rubbish.
var errMaterial = Throw(IllegalArgument, "Parameter 'material' is not base64")

// decodeStrict appends the bytes of s to buf, and returns them and the rest of
// buf; ok is false for what is no base64.
func decodeStrict(buf, s []byte) (value, rest []byte, ok bool) {
	start := len(buf)
	buf, err := appendBase64(buf, s)
	if err != nil {
		return nil, buf[:start], false
	}
	return buf[start:len(buf):len(buf)], buf, true
}

// decodeInto is decodeStrict for a field whose length is checked later: what is
// no base64 is empty.
func decodeInto(buf, s []byte) (value, rest []byte) {
	value, rest, ok := decodeStrict(buf, s)
	if !ok {
		return []byte{}, rest
	}
	return value, rest
}

// ReadBatch decodes the body of POST /v1/key/{name}/_reencryptbatch. More than
// most EDEKs are refused. The EDEKs share one piece of memory.
func ReadBatch(body []byte, most int) (Batch, error) {
	l := &lexer{data: body}
	ok, err := l.begin('[', "java.util.ArrayList<java.lang.Object>")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, required("jsonPayload")
	}
	const guess = 150 // bytes of JSON an EDEK; only a first capacity
	b := &batchReader{lexer: l, edeks: make(Batch, 0, min(most, len(body)/guess+1)), buf: make([]byte, 0, len(body))}
	err = l.array(func() error {
		if len(b.edeks) == most {
			return tooMany(most)
		}
		return b.item()
	})
	if err != nil {
		return nil, err
	}
	return b.edeks, nil
}

// batchReader reads EDEKs one after another.
type batchReader struct {
	*lexer
	edeks   Batch
	buf     []byte // decoded bytes of all EDEKs
	version string // the last one, since nearly all are the same
}

// item reads {"versionName":..,"iv":..,"encryptedKeyVersion":{"versionName":"EEK","material":..}}.
func (b *batchReader) item() error {
	switch b.peek() {
	case '{':
	case 'n':
		if err := b.word("null"); err != nil {
			return err
		}
		return Throw(IllegalArgument, "Parameter 'valueMap' cannot be null")
	default:
		java, err := b.skip(0)
		if err == nil {
			err = cannotCast(java, "java.util.Map")
		}
		return err
	}
	var e claviger.EDEK
	var version, iv, inner, material, wrapped bool
	var innerName []byte
	err := b.object(func(field []byte) (err error) {
		var s []byte
		switch string(field) {
		case "versionName":
			if s, version, err = b.text(); version {
				if b.version != string(s) {
					b.version = string(s)
				}
				e.Version = b.version
			}
		case "iv":
			if s, iv, err = b.text(); iv {
				e.IV, b.buf = decodeInto(b.buf, s)
			}
		case "encryptedKeyVersion":
			wrapped, inner, material = false, false, false
			if b.peek() != '{' {
				java, err := b.skip(0)
				if err == nil && java != "" {
					err = cannotCast(java, "java.util.Map")
				}
				return err
			}
			wrapped = true
			return b.object(func(field []byte) (err error) {
				switch string(field) {
				case "versionName":
					innerName, inner, err = b.text()
				case "material":
					var s []byte
					if s, material, err = b.text(); material {
						var ok bool
						if e.Material, b.buf, ok = decodeStrict(b.buf, s); !ok {
							return errMaterial
						}
					}
				default:
					_, err = b.skip(0)
				}
				return err
			})
		default:
			_, err = b.skip(0)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case !version:
		return required("versionName")
	case !iv:
		return required("iv")
	case !wrapped:
		return required("encryptedKeyVersion")
	case !inner || string(innerName) != EEK:
		name := "null"
		if inner {
			name = string(innerName)
		}
		return Throw(IllegalArgument, "encryptedKey version name must be 'EEK', but found '"+name+"'")
	case !material:
		return required("material")
	}
	b.edeks = append(b.edeks, e)
	return nil
}
