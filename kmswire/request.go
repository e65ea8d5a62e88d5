package kmswire

import (
	"claviger"
	"claviger/secret"
)

// begin checks that a body starts with the byte open, and returns false for null. java is the Java class that Hadoop's
// KMS reads such a body into, for the error.
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
		javaObject:            "Object value (token `JsonToken.START_OBJECT`)",
		"java.util.ArrayList": "Array value (token `JsonToken.START_ARRAY`)",
		javaString:            "String value (token `JsonToken.VALUE_STRING`)",
		"java.lang.Boolean":   "Boolean value",
		"java.lang.Double":    "Floating-point value (token `JsonToken.VALUE_NUMBER_FLOAT`)",
	}[got]
	if token == "" {
		token = "Integer value (token `JsonToken.VALUE_NUMBER_INT`)"
	}
	return false, Throw(mismatchedInputException, "Cannot deserialize value of type `"+java+"` from "+token)
}

// body reads a body that is an object. parameter is the name of Hadoop's variable for
// the body, for the error of a null body.
func (l *lexer) body(parameter string, find func(name []byte) *value) error {
	ok, err := l.begin('{', "java.util.LinkedHashMap<java.lang.Object,java.lang.Object>")
	if err != nil {
		return err
	}
	if !ok {
		return Throw(NullPointer, `Cannot invoke "java.util.Map.get(Object)" because "`+parameter+`" is null`)
	}
	return l.fields(find)
}

// material decodes a base64 field of a creation or a roll; nil if it is absent. As in
// Hadoop, a text that is not base64 becomes empty, and the length check refuses it.
func (v value) material() (secret.Bytes, error) {
	s, ok, err := v.string()
	if err != nil || !ok {
		return nil, err
	}
	b, err := decodeBase64(s)
	if err != nil {
		return secret.Bytes{}, nil //nolint:nilerr // the length check returns the error, see above
	}
	return b, nil
}

// ReadCreate decodes the body of POST /v1/keys. Like the other readers of this file it
// returns only errors of type *Exception.
func ReadCreate(body []byte) (Create, error) {
	l := newLexer(body)
	var name, cipher, material, length, description, attributes value
	err := l.body("jsonKey", func(field []byte) *value {
		switch string(field) {
		case "name":
			return &name
		case "cipher":
			return &cipher
		case "material":
			return &material
		case "length":
			return &length
		case "description":
			return &description
		case "attributes":
			return &attributes
		}
		return nil
	})
	if err != nil {
		return Create{}, err
	}
	s, ok, err := name.string()
	switch {
	case err != nil:
		return Create{}, err
	case !ok:
		return Create{}, required("name")
	case len(s) == 0:
		return Create{}, Throw(IllegalArgument, "Parameter 'name' cannot be empty")
	}
	c := Create{Name: string(s)}
	if s, _, err = cipher.string(); err != nil {
		return Create{}, err
	}
	c.Cipher = string(s)
	if c.Material, err = material.material(); err != nil {
		return Create{}, err
	}
	if c.Length, err = length.integer(); err != nil {
		return Create{}, err
	}
	if s, ok, err = description.string(); err != nil {
		return Create{}, err
	} else if ok {
		text := string(s)
		c.Description = &text
	}
	c.Attributes, c.BadAttribute, err = attributes.attributes()
	if err != nil {
		return Create{}, err
	}
	return c, nil
}

// attributes returns a map of strings, or nil for null. bad is true if a value is not
// a string.
func (v value) attributes() (m map[string]string, bad bool, err error) {
	switch v.java {
	case "":
		return nil, false, nil
	case javaObject:
	default:
		return nil, false, cannotCast(v.java, javaMap)
	}
	m = map[string]string{}
	wrong := map[string]bool{}
	l := &lexer{data: v.text}
	err = l.object(func(name []byte) error {
		v, err := l.value()
		if err != nil {
			return err
		}
		delete(m, string(name))
		delete(wrong, string(name))
		s, ok, castErr := v.string()
		switch {
		case castErr != nil:
			wrong[string(name)] = true
		case ok:
			m[string(name)] = string(s)
		}
		return nil
	})
	return m, len(wrong) > 0, err
}

// ReadRoll decodes the body of POST /v1/key/{name}.
func ReadRoll(body []byte) (r Roll, err error) {
	var material value
	err = newLexer(body).body("jsonMaterial", func(field []byte) *value {
		if string(field) == "material" {
			return &material
		}
		return nil
	})
	if err == nil {
		r.Material, err = material.material()
	}
	return r, err
}

// ReadOpen decodes the body of a decrypt or a single re-encrypt.
func ReadOpen(body []byte) (o Open, err error) {
	var name, iv, material value
	err = newLexer(body).body("jsonPayload", func(field []byte) *value {
		switch string(field) {
		case "name":
			return &name
		case "iv":
			return &iv
		case "material":
			return &material
		}
		return nil
	})
	if err != nil {
		return Open{}, err
	}
	key, hasName, nameErr := name.string()
	ivText, hasIV, ivErr := iv.string()
	text, hasMaterial, textErr := material.string()
	for _, err := range [...]error{nameErr, ivErr, textErr} {
		if err != nil {
			return Open{}, err
		}
	}
	switch {
	case !hasIV:
		return Open{}, required("iv")
	case !hasMaterial:
		return Open{}, required("material")
	}
	o = Open{Name: string(key), HasName: hasName}
	buf := make([]byte, 0, len(ivText)+len(text)) // one buffer for both
	o.IV, buf = decodeInto(buf, ivText)
	if o.Material, _, hasMaterial = decodeStrict(buf, text); !hasMaterial {
		return Open{}, errMaterial
	}
	return o, nil
}

// errMaterial is the error for material that is not base64. Hadoop ignores the wrong
// characters and decrypts the rest, which cannot be a useful DEK.
var errMaterial = Throw(IllegalArgument, "Parameter 'material' is not base64")

// decodeStrict appends the decoded bytes of s to buf. It returns them as value, and
// the extended buf as rest. ok is false if s is not base64.
func decodeStrict(buf, s []byte) (value, rest []byte, ok bool) {
	start := len(buf)
	buf, err := appendPublicBase64(buf, s)
	if err != nil {
		return nil, buf[:start], false
	}
	return buf[start:len(buf):len(buf)], buf, true
}

// decodeInto is decodeStrict for a field whose length is checked later: if s is not
// base64, value is empty.
func decodeInto(buf, s []byte) (value, rest []byte) {
	value, rest, ok := decodeStrict(buf, s)
	if !ok {
		return []byte{}, rest
	}
	return value, rest
}

// ReadBatch decodes the body of POST /v1/key/{name}/_reencryptbatch. A body of more
// than limit EDEKs is an error. The EDEKs share one buffer.
func ReadBatch(body []byte, limit int) (Batch, error) {
	return readBatch(body, limit, (*batchReader).next)
}

// readBatch is ReadBatch with a method that reads one item.
func readBatch(body []byte, limit int, next func(*batchReader) error) (Batch, error) {
	b := &batchReader{lexer: newLexer(body), limit: limit}
	ok, err := b.begin('[', "java.util.ArrayList<java.lang.Object>")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, required("jsonPayload")
	}
	items := 0
	err = b.array(func() error {
		if items++; items > limit {
			return tooMany(limit)
		}
		return next(b)
	})
	switch {
	case err != nil:
		return nil, err
	case b.wrong != nil:
		return nil, b.wrong
	case b.notEEK != nil:
		return nil, b.notEEK
	case b.edeks == nil:
		return Batch{}, nil
	}
	return b.edeks, nil
}

// batchReader reads EDEKs one after another.
type batchReader struct {
	*lexer
	limit   int // of EDEKs
	edeks   Batch
	buf     []byte  // decoded bytes of the EDEKs; when it grows, earlier EDEKs keep their old array
	version string  // of the last EDEK; nearly all have the same, so they share one string
	pattern pattern // of the last EDEK that item has read
	// Hadoop parses the whole body, then checks all items, then their inner version names.
	// Therefore wrong is the error of the first wrong item, and notEEK is the error of the
	// first wrong inner name.
	wrong, notEEK error
}

// next reads the next item.
func (b *batchReader) next() error {
	if b.similar() {
		return nil
	}
	return b.item()
}

// item reads {"versionName":..,"iv":..,"encryptedKeyVersion":{"versionName":"EEK","material":..}}.
// It returns errors of syntax; other errors of the item are stored in b.
func (b *batchReader) item() error {
	if b.peek() != '{' {
		java, err := b.skip(0)
		switch {
		case err != nil:
			return err
		case java == "":
			b.setWrong(Throw(IllegalArgument, "Parameter 'valueMap' cannot be null"))
		default:
			b.setWrong(cannotCast(java, javaMap))
		}
		return nil
	}
	start := b.pos
	var version, iv, wrapped, inner, material value
	err := b.object(func(field []byte) (err error) {
		switch string(field) {
		case "versionName":
			version, err = b.value()
		case "iv":
			iv, err = b.value()
		case "encryptedKeyVersion":
			inner, material = value{}, value{}
			if b.peek() != '{' {
				wrapped, err = b.value()
				return err
			}
			wrapped.java = javaMap
			// It does not use fields, which would put the values of a thousand items on the heap.
			return b.object(func(field []byte) (err error) {
				switch string(field) {
				case "versionName":
					inner, err = b.value()
				case "material":
					material, err = b.value()
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
	if err != nil || b.wrong != nil {
		return err
	}
	b.makeRoom(b.pos-start, iv, material)
	b.setWrong(b.addEDEK(version, iv, wrapped, inner, material))
	b.pattern = pattern{}
	if b.wrong == nil && b.notEEK == nil {
		b.pattern = patternOf(b.data, start, b.pos, iv, material)
	}
	return nil
}

// makeRoom allocates the memory for all EDEKs, if they are like the first one. size is the length of its JSON.
func (b *batchReader) makeRoom(size int, iv, material value) {
	if b.edeks != nil {
		return
	}
	n := min(b.limit, (len(b.data)-b.pos)/size+1)
	decoded := len(iv.text)*3/4 + len(material.text)*3/4
	b.edeks, b.buf = make(Batch, 0, n), make([]byte, 0, n*decoded+1) // 1: see appendPublicBase64
}

// setWrong stores the first error of an item.
func (b *batchReader) setWrong(err error) {
	if b.wrong == nil {
		b.wrong = err
	}
}

// addEDEK appends the EDEK with an item's values.
func (b *batchReader) addEDEK(version, iv, wrapped, inner, material value) error {
	versionName, err := version.required("versionName")
	if err != nil {
		return err
	}
	ivText, err := iv.required("iv")
	if err != nil {
		return err
	}
	switch wrapped.java {
	case javaMap:
	case "":
		return required("encryptedKeyVersion")
	default:
		return cannotCast(wrapped.java, javaMap)
	}
	innerName, err := inner.required("versionName")
	if err != nil {
		return err
	}
	text, err := material.required("material")
	if err != nil {
		return err
	}
	if b.notEEK == nil && string(innerName) != EEK {
		b.notEEK = Throw(IllegalArgument, "encryptedKey version name must be 'EEK', but found '"+string(innerName)+"'")
	}
	if b.version != string(versionName) {
		b.version = string(versionName)
	}
	e := claviger.EDEK{Version: b.version}
	e.IV, b.buf = decodeInto(b.buf, ivText)
	var ok bool
	if e.Material, b.buf, ok = decodeStrict(b.buf, text); !ok {
		return errMaterial
	}
	b.edeks = append(b.edeks, e)
	return nil
}

// required returns a string; null or an absent field is an error.
func (v value) required(parameter string) ([]byte, error) {
	s, ok, err := v.string()
	if err == nil && !ok {
		err = required(parameter)
	}
	return s, err
}
