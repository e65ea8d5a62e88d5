package kmswire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"claviger"
)

// FuzzRequests compares our readers with a second implementation of Hadoop's KMS over
// encoding/json. Both have the same result or the same exception; for broken JSON both only
// have to refuse it. Our readers may refuse more in two cases: deep nesting, and text that is
// not UTF-8.
func FuzzRequests(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		create, err := ReadCreate(body)
		compareWithJava(t, body, create, err, javaCreate)
		roll, err := ReadRoll(body)
		compareWithJava(t, body, roll, err, javaRoll)
		open, err := ReadOpen(body)
		compareWithJava(t, body, open, err, javaOpen)
		const most = 1000
		batch, err := ReadBatch(body, most)
		compareWithJava(t, body, batch, err, javaBatch)

		if err != nil {
			return
		}
		for i := range batch {
			batch[i].Version = strings.ToValidUTF8(batch[i].Version, "\ufffd")
		}
		again, err := ReadBatch(AppendBatch(nil, "k", batch), most)
		if err != nil || !reflect.DeepEqual(again, batch) {
			t.Fatalf("written and read again: %+v, %v, was %+v", again, err, batch)
		}
	})
}

// compareWithJava compares the result of a reader with Java's result.
func compareWithJava[T any](t *testing.T, body []byte, got T, err error, java func(any) T) {
	t.Helper()
	var thrown *Exception
	if err != nil && !errors.As(err, &thrown) {
		t.Fatalf("%T: the error is not an Exception: %v", got, err)
	}
	if thrown != nil && thrown.Class == jsonParseException && (!utf8.Valid(body) ||
		strings.Contains(thrown.Message, "nested more than")) {
		return
	}
	var v any
	dec := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(body, []byte("\ufeff"))))
	dec.UseNumber()
	jacksonError := thrown != nil && (thrown.Class == jsonParseException || thrown.Class == jsonEOFException ||
		thrown.Class == mismatchedInputException)
	if broken := dec.Decode(&v); broken != nil {
		if !jacksonError {
			t.Fatalf("%T: %v, but encoding/json says: %v", got, err, broken)
		}
		return
	}
	want, wantThrown := func() (want T, thrown *Exception) {
		defer func() {
			if p := recover(); p != nil {
				var ok bool
				if thrown, ok = p.(*Exception); !ok {
					panic(p)
				}
			}
		}()
		return java(v), nil
	}()
	switch {
	case thrown == nil && wantThrown == nil:
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, want %+v", got, want)
		}
	case wantThrown != nil && wantThrown.Class == mismatchedInputException && jacksonError:
		// A value of another kind. Jackson and encoding/json may see its end at different places, as in "01".
	case !reflect.DeepEqual(thrown, wantThrown):
		t.Fatalf("%T: %v, want %v", got, thrown, wantThrown)
	}
}

// The rest of the file is Java's side. It panics with the exception that Java throws.

func javaClass(v any) string {
	switch v := v.(type) {
	case map[string]any:
		return "java.util.LinkedHashMap"
	case []any:
		return "java.util.ArrayList"
	case string:
		return "java.lang.String"
	case bool:
		return "java.lang.Boolean"
	case json.Number:
		n, ok := new(big.Int).SetString(v.String(), 10)
		switch {
		case !ok:
			return "java.lang.Double"
		case !n.IsInt64():
			return "java.math.BigInteger"
		case n.Int64() != int64(int32(n.Int64())):
			return "java.lang.Long"
		}
		return "java.lang.Integer"
	}
	return ""
}

func javaFields(v any, parameter string) map[string]any {
	if v == nil {
		panic(Throw(NullPointer, `Cannot invoke "java.util.Map.get(Object)" because "`+parameter+`" is null`))
	}
	m, ok := v.(map[string]any)
	if !ok {
		panic(Throw(mismatchedInputException, ""))
	}
	return m
}

// javaCast is (String) v; nil for null.
func javaCast(v any) *string {
	s, ok := v.(string)
	switch {
	case ok:
		return &s
	case v == nil:
		return nil
	}
	panic(cannotCast(javaClass(v), "java.lang.String"))
}

func notNull[T any](v *T, parameter string) T {
	if v == nil {
		panic(required(parameter))
	}
	return *v
}

// javaMaterial is Base64.decodeBase64; for text that is not base64 the result is empty.
func javaMaterial(s *string) []byte {
	if s == nil {
		return nil
	}
	b, err := referenceBase64(*s)
	if err != nil {
		return []byte{}
	}
	return b
}

func strictMaterial(s string) []byte {
	b, err := referenceBase64(s)
	if err != nil {
		panic(errMaterial)
	}
	return b
}

func javaCreate(v any) (c Create) {
	m := javaFields(v, "jsonKey")
	if c.Name = notNull(javaCast(m["name"]), "name"); c.Name == "" {
		panic(Throw(IllegalArgument, "Parameter 'name' cannot be empty"))
	}
	if s := javaCast(m["cipher"]); s != nil {
		c.Cipher = *s
	}
	c.Material = javaMaterial(javaCast(m["material"]))
	switch n := m["length"].(type) {
	case nil:
	case json.Number:
		if javaClass(n) == "java.lang.Integer" {
			i, _ := n.Int64()
			c.Length = int(i)
			break
		}
		panic(cannotCast(javaClass(n), "java.lang.Integer"))
	default:
		panic(cannotCast(javaClass(n), "java.lang.Integer"))
	}
	c.Description = javaCast(m["description"])
	switch attrs := m["attributes"].(type) {
	case nil:
	case map[string]any:
		c.Attributes = map[string]string{}
		for k, v := range attrs {
			switch v := v.(type) {
			case string:
				c.Attributes[k] = v
			case nil:
			default:
				c.BadAttribute = true
			}
		}
	default:
		panic(cannotCast(javaClass(attrs), "java.util.Map"))
	}
	return c
}

func javaRoll(v any) Roll {
	return Roll{javaMaterial(javaCast(javaFields(v, "jsonMaterial")["material"]))}
}

func javaOpen(v any) (o Open) {
	m := javaFields(v, "jsonPayload")
	name, iv, material := javaCast(m["name"]), javaCast(m["iv"]), javaCast(m["material"])
	if o.HasName = name != nil; o.HasName {
		o.Name = *name
	}
	notNull(iv, "iv")
	o.IV = javaMaterial(iv)
	o.Material = strictMaterial(notNull(material, "material"))
	return o
}

func javaBatch(v any) Batch {
	if v == nil {
		panic(required("jsonPayload"))
	}
	list, ok := v.([]any)
	if !ok {
		panic(Throw(mismatchedInputException, ""))
	}
	if len(list) > 1000 {
		panic(tooMany(1000))
	}
	object := func(v any, parameter string) map[string]any {
		m, ok := v.(map[string]any)
		switch {
		case v == nil:
			panic(required(parameter))
		case !ok:
			panic(cannotCast(javaClass(v), "java.util.Map"))
		}
		return m
	}
	batch := Batch{}
	var notEEK *Exception
	for _, item := range list {
		m := object(item, "valueMap")
		var e claviger.EDEK
		e.Version = notNull(javaCast(m["versionName"]), "versionName")
		iv := javaCast(m["iv"])
		notNull(iv, "iv")
		e.IV = javaMaterial(iv)
		inner := object(m["encryptedKeyVersion"], "encryptedKeyVersion")
		name := notNull(javaCast(inner["versionName"]), "versionName")
		e.Material = strictMaterial(notNull(javaCast(inner["material"]), "material"))
		if name != "EEK" && notEEK == nil {
			notEEK = Throw(IllegalArgument, "encryptedKey version name must be 'EEK', but found '"+name+"'")
		}
		batch = append(batch, e)
	}
	if notEEK != nil {
		panic(notEEK)
	}
	return batch
}

// FuzzAnswers reads any text as a server's answer.
func FuzzAnswers(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		if v, err := ReadKeyVersion(body); err == nil && v != nil {
			if again, err := ReadKeyVersion(AppendKeyVersion(nil, v)); err != nil || !reflect.DeepEqual(again, v) {
				t.Errorf("key version %+v came back as %+v, %v", v, again, err)
			}
		}
		if m, err := ReadMetadata(body); err == nil && m != nil {
			if again, err := ReadMetadata(AppendMetadata(nil, m)); err != nil || !reflect.DeepEqual(again, m) {
				t.Errorf("metadata %+v came back as %+v, %v", m, again, err)
			}
		}
		if names, err := ReadNames(body); err == nil && len(names) > 0 {
			list := AppendList(nil, len(names), func(b []byte, i int) []byte { return AppendName(b, names[i]) })
			if again, err := ReadNames(list); err != nil || !reflect.DeepEqual(again, names) {
				t.Errorf("names %q came back as %q, %v", names, again, err)
			}
		}
		if e, err := ReadEDEK(body); err == nil {
			if again, err := ReadEDEK(AppendEDEK(nil, nil, &e)); err != nil || !reflect.DeepEqual(again, e) {
				t.Errorf("EDEK %+v came back as %+v, %v", e, again, err)
			}
		}
		if dek, err := ReadDEK(body); err == nil {
			if again, err := ReadDEK(AppendDEK(nil, "k", dek)); err != nil || !again.Equal(dek) {
				t.Errorf("a DEK of %d bytes came back as one of %d, %v", len(dek), len(again), err)
			}
		}
		if e := ReadException(body); e != nil {
			e.Message = firstLine(e.Message)
			if again := ReadException(AppendException(nil, e)); !reflect.DeepEqual(again, e) {
				t.Errorf("%+v came back as %+v", e, again)
			}
		}
		_, _ = ReadKeyVersions(body)
		_, _ = ReadMetadataList(body)
		_, _ = ReadEDEKs(body)
	})
}

// referenceBase64 decodes the four dialects with encoding/base64.
func referenceBase64(s string) (b []byte, err error) {
	plain := strings.NewReplacer(" ", "", "\n", "", "\r", "", "\t", "", "+", "-", "/", "_").Replace(s)
	for _, enc := range []*base64.Encoding{base64.RawURLEncoding, base64.URLEncoding} {
		if b, err = enc.DecodeString(plain); err == nil {
			return b, nil
		}
	}
	return nil, err
}

// FuzzBase64 compares the decoders and the encoder with encoding/base64.
func FuzzBase64(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		got, err := decodeBase64(s)
		want, refErr := referenceBase64(s)
		if (err == nil) != (refErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%q: %x, %v; encoding/base64: %x, %v", s, got, err, want, refErr)
		}
		public, err := appendPublicBase64([]byte("x"), []byte(s))
		if (err == nil) != (refErr == nil) || err == nil && string(public) != "x"+string(want) {
			t.Fatalf("%q: %x, %v; encoding/base64: %x, %v", s, public, err, want, refErr)
		}
		written := string(appendPublic([]byte("x"), []byte(s)))
		if want := "x" + urlSafe.EncodeToString([]byte(s)); written != want {
			t.Fatalf("%x: %s, want %s", s, written, want)
		}
	})
}

// FuzzSimilar compares a batch whose items are similar with one in which each item is read as JSON. The batch repeats
// an item; the last one has a change.
func FuzzSimilar(f *testing.F) {
	f.Fuzz(func(t *testing.T, item, between []byte, at uint16, change []byte) {
		body := slices.Concat([]byte("["), item, between, item, between)
		from := len(body) + min(int(at), len(item))
		body = append(body, item...)
		body = slices.Concat(body[:from], change, body[min(from+len(change), len(body)):], []byte("]"))
		for _, limit := range []int{2, 1000} {
			got, err := ReadBatch(body, limit)
			want, wantErr := readBatch(body, limit, (*batchReader).item)
			if !reflect.DeepEqual(got, want) || fmt.Sprintf("%T %[1]v", err) != fmt.Sprintf("%T %[1]v", wantErr) {
				t.Fatalf("%q\n got %+v, %v\nwant %+v, %v", body, got, err, want, wantErr)
			}
		}
	})
}
