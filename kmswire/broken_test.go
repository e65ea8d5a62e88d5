package kmswire

import (
	"errors"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"claviger"
	"claviger/secret"
)

// requestReaders has the readers of requests, by name.
var requestReaders = map[string]func(string) error{
	"create": func(b string) error { _, err := ReadCreate([]byte(b)); return err },
	"roll":   func(b string) error { _, err := ReadRoll([]byte(b)); return err },
	"open":   func(b string) error { _, err := ReadOpen([]byte(b)); return err },
	"batch":  func(b string) error { _, err := ReadBatch([]byte(b), 3); return err },
	"EDEK":   func(b string) error { _, err := ReadEDEK([]byte(b)); return err },
	"DEK":    func(b string) error { _, err := ReadDEK([]byte(b)); return err },
}

// places has the beginnings of bodies, by reader. A value must follow, of a known or unknown field.
var places = map[string][]string{
	"create": {`{"x":`, `{"name":`, `{"name":"k","attributes":`, `{"name":"k","attributes":{"a":`},
	"roll":   {`{"x":`, `{"material":`},
	"open":   {`{"x":`, `{"iv":"AA","material":"AA","name":`},
	"DEK":    {`{"x":`, `{"material":`},
	"batch": {`[{"x":`, `[{"versionName":`, `[{"iv":`, `[{"encryptedKeyVersion":`, `[{"encryptedKeyVersion":{"x":`,
		`[{"encryptedKeyVersion":{"versionName":`, `[{"encryptedKeyVersion":{"material":`, `[null,{"x":`},
	"EDEK": {`{"x":`, `{"iv":`, `{"encryptedKeyVersion":{"x":`},
}

// brokenValues are no JSON, whatever follows. The texts are those of the errors, without the place in the body.
var brokenValues = map[string]string{
	`tru`:                   "Unexpected character ('t'): expected a value",
	`fals`:                  "Unexpected character ('f'): expected a value",
	`nul`:                   "Unexpected character ('n'): expected a value",
	`?`:                     "Unexpected character ('?'): expected a value",
	`-?`:                    "Unexpected character ('?'): expected a digit",
	`01`:                    "Invalid numeric value: Leading zeroes not allowed",
	`1.?`:                   "Unexpected character ('?'): Decimal point not followed by a digit",
	`1e?`:                   "Unexpected character ('?'): Exponent indicator not followed by a digit",
	`1E+?`:                  "Unexpected character ('?'): Exponent indicator not followed by a digit",
	`"\x"`:                  "Unrecognized character escape in a string",
	"\"a\nb\"":              `Unexpected character ('\n'): control characters must be escaped in strings`,
	"\"\xff\"":              "Invalid UTF-8 in a string",
	`{"a"?`:                 "Unexpected character ('?'): was expecting a colon to separate field name and value",
	`{a`:                    "Unexpected character ('a'): was expecting double-quote to start field name",
	`{"\x":1}`:              "Unrecognized character escape in a string",
	`{"a":1,}`:              "Unexpected character ('}'): was expecting double-quote to start field name",
	`{"a":1 "b":2}`:         `Unexpected character ('"'): was expecting comma to separate Object entries`,
	`{"a":?`:                "Unexpected character ('?'): expected a value",
	`[1 2]`:                 "Unexpected character ('2'): was expecting comma to separate Array entries",
	`[1,]`:                  "Unexpected character (']'): expected a value",
	`[?`:                    "Unexpected character ('?'): expected a value",
	`[{"a":[tru]}]`:         "Unexpected character ('t'): expected a value",
	strings.Repeat("[", 70): "JSON is nested more than 64 deep",
}

// cutValues are the beginnings of values.
var cutValues = map[string]string{
	``:       "Unexpected end-of-input: expected a value",
	`-`:      "Unexpected end-of-input: expected a digit",
	`1.`:     "Unexpected end-of-input: Decimal point not followed by a digit",
	`1e`:     "Unexpected end-of-input: Exponent indicator not followed by a digit",
	`"a`:     "Unexpected end-of-input in VALUE_STRING",
	`"é`:     "Unexpected end-of-input in VALUE_STRING",
	`"a\`:    "Unexpected end-of-input in VALUE_STRING",
	`{`:      "Unexpected end-of-input: was expecting double-quote to start field name",
	`{"a"`:   "Unexpected end-of-input: was expecting a colon to separate field name and value",
	`{"a":`:  "Unexpected end-of-input: expected a value",
	`{"a":1`: "Unexpected end-of-input: was expecting comma to separate Object entries",
	`[`:      "Unexpected end-of-input: expected a value",
	`[1`:     "Unexpected end-of-input: was expecting comma to separate Array entries",
	`[1,`:    "Unexpected end-of-input: expected a value",
}

// atByte is the place in the body in the text of an error.
var atByte = regexp.MustCompile(` at byte \d+`)

// TestBrokenJSON: a body that is no JSON is refused with the reason, wherever it is broken.
func TestBrokenJSON(t *testing.T) {
	for reader, read := range requestReaders {
		for _, place := range places[reader] {
			for value, want := range brokenValues {
				wantRefused(t, reader, read, place+value+"}", jsonParseException, want)
			}
			for value, want := range cutValues {
				wantRefused(t, reader, read, place+value, jsonEOFException, want)
			}
		}
	}
	wantRefused(t, "create", requestReaders["create"], "\x00", jsonParseException,
		`Unexpected character ('\x00'): expected a value`)
	wantRefused(t, "batch", requestReaders["batch"], `[{} {}]`, jsonParseException,
		"Unexpected character ('{'): was expecting comma to separate Array entries")
}

func wantRefused(t *testing.T, reader string, read func(string) error, body, class, want string) {
	t.Helper()
	var e *Exception
	err := read(body)
	if !errors.As(err, &e) || e.Class != class || atByte.ReplaceAllString(e.Message, "") != want {
		t.Errorf("%s of %q:\n got %v\nwant %s: %s", reader, body, err, class, want)
	}
}

// TestGoodValues: each kind of JSON value is accepted in an unknown field.
func TestGoodValues(t *testing.T) {
	const fields = `,"name":"k","iv":"AA","material":"AA","versionName":"k@0","encryptedKeyVersion":{"versionName":` +
		`"EEK","material":"AA"}}`
	for _, value := range []string{`0`, `-0`, `12.50`, `1e5`, `1E+5`, `1e-5`, `-0.5e10`, `true`, `false`, `null`,
		`"é\n"`, ` [ ] `, ` { } `, `[1, "a", null]`, `{"a":{"b":[]}}`} {
		for reader, read := range requestReaders {
			body := `{"x":` + value + fields
			if reader == "batch" {
				body = "[" + body + "]"
			}
			if err := read(body); err != nil {
				t.Errorf("%s of %s: %v", reader, body, err)
			}
		}
	}
}

// TestWrongKinds: a field of another kind than expected is refused, as Java refuses to cast it.
func TestWrongKinds(t *testing.T) {
	wrapped := func(value string) string {
		return `[{"versionName":"k@0","iv":"AA","encryptedKeyVersion":` + value + `}]`
	}
	for reader, bodies := range map[string][]string{
		"create": {`{"name":1}`, `{"name":"k","cipher":1}`, `{"name":"k","material":1}`, `{"name":"k","length":true}`,
			`{"name":"k","description":1}`, `{"name":"k","attributes":1}`},
		"roll": {`{"material":1}`},
		"open": {`{"name":1,"iv":"","material":""}`, `{"iv":1,"material":""}`, `{"iv":"","material":1}`},
		"batch": {`[1]`, `[{"versionName":1}]`, `[{"versionName":"k@0","iv":1}]`, wrapped(`1`),
			wrapped(`{"versionName":1}`), wrapped(`{"versionName":"EEK","material":1}`),
			// Java checks all items before it checks inner names.
			strings.TrimSuffix(wrapped(`{"versionName":"X","material":"AA"}`), "]") + `,{"versionName":1}]`},
		"EDEK": {`1`, `{"versionName":1}`},
		"DEK":  {`{"material":1}`},
	} {
		for _, body := range bodies {
			var e *Exception
			if err := requestReaders[reader](body); !errors.As(err, &e) || e.Class != ClassCast {
				t.Errorf("%s of %s: %v, want %s", reader, body, err, ClassCast)
			}
		}
	}
}

// TestWrongEDEKs: an EDEK without its parts, or whose material is not base64, is refused, and not left out of a batch.
func TestWrongEDEKs(t *testing.T) {
	for item, want := range map[string]string{
		`{"iv":"AA"}`: "Parameter 'versionName' cannot be null",
		`{"versionName":"k@0","iv":"AA","encryptedKeyVersion":{"versionName":"EEK"}}`: "Parameter 'material' " +
			"cannot be null",
		`{"versionName":"k@0","iv":"AA","encryptedKeyVersion":{"versionName":"EEK","material":"!"}}`: "Parameter " +
			"'material' is not base64",
		`{"versionName":"k@0","iv":"AA","encryptedKeyVersion":{"versionName":"EEK","material":"A"}}`: "Parameter " +
			"'material' is not base64",
	} {
		good := `{"versionName":"k@0","iv":"AA","encryptedKeyVersion":{"versionName":"EEK","material":"AAA"}}`
		wantRefused(t, "EDEK", requestReaders["EDEK"], item, IllegalArgument, want)
		wantRefused(t, "batch", requestReaders["batch"], "["+item+"]", IllegalArgument, want)
		wantRefused(t, "batch", requestReaders["batch"], "["+good+","+item+"]", IllegalArgument, want)
	}
}

// TestLastFieldCounts: of several attributes with one name the last one counts, also if it is null or no string.
func TestLastFieldCounts(t *testing.T) {
	for attributes, want := range map[string]Create{
		`{"a":"x","a":"y"}`:  {Attributes: map[string]string{"a": "y"}},
		`{"a":"x","a":null}`: {Attributes: map[string]string{}},
		`{"a":"x","a":1}`:    {Attributes: map[string]string{}, BadAttribute: true},
		`{"a":1,"a":"x"}`:    {Attributes: map[string]string{"a": "x"}},
		`{"a":1,"b":"x"}`:    {Attributes: map[string]string{"b": "x"}, BadAttribute: true},
		`null`:               {},
	} {
		want.Name = "k"
		got, err := ReadCreate([]byte(`{"name":"k","attributes":` + attributes + `}`))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", attributes, got, err, want)
		}
	}
}

// TestWrongAnswers: a client does not take an answer that is broken, null or incomplete for a result.
func TestWrongAnswers(t *testing.T) {
	readers := map[string]func([]byte) error{
		"version":  func(b []byte) error { _, err := ReadKeyVersion(b); return err },
		"versions": func(b []byte) error { _, err := ReadKeyVersions(b); return err },
		"metadata": func(b []byte) error { _, err := ReadMetadata(b); return err },
		"list":     func(b []byte) error { _, err := ReadMetadataList(b); return err },
		"names":    func(b []byte) error { _, err := ReadNames(b); return err },
		"DEK":      func(b []byte) error { _, err := ReadDEK(b); return err },
	}
	for reader, bodies := range map[string][]string{
		"version": {``, `null`, ` null `, `{`, `[]`, `{"versionName":1}`, `{"versionName":"k@0","material":"!"}`},
		"versions": {``, `null`, `[`, `{}`, `[{}]`, `[null]`, `[{"versionName":"k@0"},{}]`,
			`[{"versionName":"k@0","material":"!"}]`},
		"metadata": {``, `{`, `[]`, `{"name":1}`},
		"list":     {``, `null`, `[`, `{}`, `[1]`},
		"names":    {``, `null`, `[`, `{}`, `["a",null]`, `[1]`},
		"DEK":      {``, `null`, `{`, `[]`, `{}`, `{"material":null}`, `{"material":"!"}`},
	} {
		for _, body := range bodies {
			if err := readers[reader]([]byte(body)); err == nil {
				t.Errorf("%s of %q is accepted", reader, body)
			}
		}
	}
}

// TestMaterialWithRest: material of which only the beginning is base64 is empty, so that its length is refused. The
// beginning alone may have the length of a key.
func TestMaterialWithRest(t *testing.T) {
	for _, material := range []string{"AAECAwQFBgcICQoLDA0ODw==!", "AAECAwQFBgcICQoLDA0ODw=A", "!"} {
		c, err := ReadCreate([]byte(`{"name":"k","material":"` + material + `"}`))
		if err != nil || c.Material == nil || len(c.Material) != 0 {
			t.Errorf("create with %s: %d bytes, %v", material, len(c.Material), err)
		}
		r, err := ReadRoll([]byte(`{"material":"` + material + `"}`))
		if err != nil || r.Material == nil || len(r.Material) != 0 {
			t.Errorf("roll with %s: %d bytes, %v", material, len(r.Material), err)
		}
	}
}

// TestLists: lists of versions and names are read to the values that were written.
func TestLists(t *testing.T) {
	versions := []claviger.KeyVersion{{Key: "k", Name: "k@0", BitLength: 16, Material: secret.Bytes{1, 2}},
		{Key: "k", Name: "k@1"}}
	got, err := ReadKeyVersions(AppendList(nil, 2, func(b []byte, i int) []byte {
		return AppendKeyVersion(b, &versions[i])
	}))
	if err != nil || !reflect.DeepEqual(got, versions) {
		t.Errorf("versions %+v, %v", got, err)
	}
	_, err = ReadKeyVersions([]byte(`[{"versionName":"k@0","material":"!"}]`))
	if err == nil || !strings.Contains(err.Error(), `material of key version "k@0"`) {
		t.Errorf("wrong material: %v", err)
	}
	want := []string{"a", "é\"\ufffd"}
	names, err := ReadNames(AppendList(nil, 2, func(b []byte, i int) []byte { return AppendName(b, want[i]) }))
	if err != nil || !reflect.DeepEqual(names, want) {
		t.Errorf("names %q, %v", names, err)
	}
}

// TestTexts: the texts of a roll, of our own answers and of exceptions.
func TestTexts(t *testing.T) {
	for want, got := range map[string]string{
		`{}`:                           string(AppendRoll(nil, nil)),
		`{"material":"AQI"}`:           string(AppendRoll(nil, secret.Bytes{1, 2})),
		`{"name":"k","versions":[""]}`: string(AppendJSON(nil, MigratedKey{Name: "k", Versions: []string{""}})),
		IOException:                    (&Exception{Class: IOException, NoMessage: true}).Error(),
		IOException + ": why":          Throw(IOException, "why").Error(),
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
