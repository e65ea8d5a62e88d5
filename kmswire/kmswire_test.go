package kmswire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/secret"
)

// TestBase64Dialects: base64 is read in both alphabets, with and without padding and white space.
func TestBase64Dialects(t *testing.T) {
	for n := range 40 {
		want := make([]byte, n)
		for i := range want {
			want[i] = byte(0xff - i*7)
		}
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding,
			base64.RawURLEncoding} {
			text := enc.EncodeToString(want)
			for _, s := range []string{text, text + "\n", strings.Join(strings.Split(text, ""), " ")} {
				if got, err := decodeBase64(s); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%q: %x, %v, want %x", s, got, err, want)
				}
			}
		}
	}
	for _, bad := range []string{"!", "A", "AAAAA", "AA=A", "AA===", "====", "=", "AAA==", "AAé="} {
		if got, err := decodeBase64(bad); err == nil {
			t.Errorf("%q was accepted as %x", bad, got)
		}
	}
}

// TestRequestErrors has the texts of a real Hadoop KMS 3.4.2.
func TestRequestErrors(t *testing.T) {
	const inBootstrap = " are in module java.base of loader 'bootstrap')"
	create := func(b string) error { _, err := ReadCreate([]byte(b)); return err }
	roll := func(b string) error { _, err := ReadRoll([]byte(b)); return err }
	open := func(b string) error { _, err := ReadOpen([]byte(b)); return err }
	batch := func(b string) error { _, err := ReadBatch([]byte(b), 3); return err }
	item := `{"encryptedKeyVersion":{"material":"AA","name":"k","versionName":"EEK"},"versionName":"k@0","iv":"AA"}`
	for _, c := range []struct {
		read        func(string) error
		body, class string
		message     string
	}{
		{create, ``, "MismatchedInputException", "No content to map due to end-of-input"},
		{create, `[1]`, "MismatchedInputException",
			"Cannot deserialize value of type `java.util.LinkedHashMap<java.lang.Object,java.lang.Object>` " +
				"from Array value (token `JsonToken.START_ARRAY`)"},
		{create, `null`, "NullPointerException", `Cannot invoke "java.util.Map.get(Object)" because "jsonKey" is null`},
		{create, `{"name": 12}`, "ClassCastException",
			"class java.lang.Integer cannot be cast to class java.lang.String (java.lang.Integer and java.lang.String" +
				inBootstrap},
		{create, `{"name":"k","length":"128"}`, "ClassCastException",
			"class java.lang.String cannot be cast to class java.lang.Integer (java.lang.String and java.lang.Integer" +
				inBootstrap},
		{create, `{"name":"k","length":128.5}`, "ClassCastException",
			"class java.lang.Double cannot be cast to class java.lang.Integer (java.lang.Double and java.lang.Integer" +
				inBootstrap},
		{create, `{"name":"k","length":99999999999}`, "ClassCastException", ""},
		{create, `{}`, "IllegalArgumentException", "Parameter 'name' cannot be null"},
		{create, `{"name":""}`, "IllegalArgumentException", "Parameter 'name' cannot be empty"},
		{create, `{"name":`, "JsonEOFException", ""},
		{create, "{\"name\":\"\xff\"}", "JsonParseException", "Invalid UTF-8 in a string"},
		{create, `{"name":"k","x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "JsonParseException",
			"JSON is nested more than 64 deep"},
		{roll, `null`, "NullPointerException",
			`Cannot invoke "java.util.Map.get(Object)" because "jsonMaterial" is null`},
		{open, `{"name":"k","material":"AA"}`, "IllegalArgumentException", "Parameter 'iv' cannot be null"},
		{open, `{"name":"k","iv":"AA"}`, "IllegalArgumentException", "Parameter 'material' cannot be null"},
		{open, `{"name":"k","iv":"AA","material":"!"}`, "IllegalArgumentException",
			"Parameter 'material' is not base64"},
		{open, `{"name":"k","iv":1,"material":"AA"}`, "ClassCastException",
			"class java.lang.Integer cannot be cast to class java.lang.String (java.lang.Integer and java.lang.String" +
				inBootstrap},
		{batch, `{}`, "MismatchedInputException",
			"Cannot deserialize value of type `java.util.ArrayList<java.lang.Object>` " +
				"from Object value (token `JsonToken.START_OBJECT`)"},
		{batch, `[null]`, "IllegalArgumentException", "Parameter 'valueMap' cannot be null"},
		{batch, `[{"versionName":"k@0","iv":"AA"}]`, "IllegalArgumentException",
			"Parameter 'encryptedKeyVersion' cannot be null"},
		{batch, strings.Replace("["+item+"]", "EEK", "FOO", 1), "IllegalArgumentException",
			"encryptedKey version name must be 'EEK', but found 'FOO'"},
		{batch, strings.Replace("["+item+"]", `"iv"`, `"vi"`, 1), "IllegalArgumentException",
			"Parameter 'iv' cannot be null"},
		{batch, strings.Replace("["+item+"]", `"EEK"`, `null`, 1), "IllegalArgumentException",
			"Parameter 'versionName' cannot be null"},
		{batch, strings.Replace("["+item+",null]", "EEK", "FOO", 1), "IllegalArgumentException",
			"Parameter 'valueMap' cannot be null"},
		{batch, "[null, 1, " + item, "JsonEOFException", ""},
		{batch, "[" + item + "," + item + "," + item + "," + item + "]", "IllegalArgumentException",
			"more than 3 EDEKs in one request; send them in parts"},
	} {
		err := c.read(c.body)
		var e *Exception
		if !errors.As(err, &e) || e.Simple() != c.class || c.message != "" && e.Message != c.message {
			t.Errorf("%.60s\n got %v\nwant %s: %s", c.body, err, c.class, c.message)
		}
	}
}

// TestRequests: requests are read as Jackson reads them in Hadoop's KMS.
func TestRequests(t *testing.T) {
	desc := "dé\"s\n"
	spec := Create{Name: "a/b@c", Cipher: "AES/CTR/NoPadding", Length: 256, Description: &desc,
		Attributes: map[string]string{"x": "<y>"}, Material: secret.Bytes{1, 2, 0xff}}
	c, err := ReadCreate(append(AppendCreate(nil, spec), " trailing"...))
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != spec.Name || c.Cipher != spec.Cipher || c.Length != 256 || *c.Description != desc ||
		c.Attributes["x"] != "<y>" || !spec.Material.Equal(c.Material) {
		t.Errorf("got %+v", c)
	}
	c, err = ReadCreate([]byte(`{"name":"k1","name":"k2","cipher":null,"attributes":{"n":1},"material":"!!!",` +
		`"u":[{"a":null}]}`))
	if err != nil || c.Name != "k2" || c.Cipher != "" || !c.BadAttribute || c.Material == nil || len(c.Material) != 0 {
		t.Errorf("got %+v, %v", c, err)
	}
	es := []claviger.EDEK{{Version: "k@1", IV: make([]byte, 16), Material: []byte{0xfb, 0xff}},
		{Version: "k@2", IV: []byte{1}, Material: []byte{}}}
	got, err := ReadBatch(AppendBatch(nil, "k", es), 10)
	if err != nil || !reflect.DeepEqual([]claviger.EDEK(got), es) {
		t.Errorf("got %+v, %v", got, err)
	}
	o, err := ReadOpen(AppendOpen(nil, "k", &es[0]))
	if err != nil || o.Name != "k" || !o.HasName || !bytes.Equal(o.IV, es[0].IV) ||
		!bytes.Equal(o.Material, es[0].Material) {
		t.Errorf("got %+v, %v", o, err)
	}
}

// TestOwnMemory: a reader's result stays valid after the body is wiped.
func TestOwnMemory(t *testing.T) {
	for what, read := range map[string]func([]byte) (any, error){
		"create": func(b []byte) (any, error) { return ReadCreate(b) },
		"roll":   func(b []byte) (any, error) { return ReadRoll(b) },
		"open":   func(b []byte) (any, error) { return ReadOpen(b) },
		"batch":  func(b []byte) (any, error) { return ReadBatch(b, 9) },
	} {
		body := `{"name":"k","cipher":"c","description":"d","attributes":{"a":"b"},"iv":"AAAA","material":"AQID"}`
		if what == "batch" {
			body = `[{"versionName":"k@0","iv":"AAAA","encryptedKeyVersion":{"versionName":"EEK","material":"AQID"}}]`
		}
		buf := []byte(body)
		got, err := read(buf)
		if err != nil {
			t.Fatal(err)
		}
		clear(buf)
		if want, _ := read([]byte(body)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, before its body was wiped %+v", what, got, want)
		}
	}
}

// TestAnswers: each answer is read to the value that was written.
func TestAnswers(t *testing.T) {
	m := &claviger.Metadata{Name: "k", Cipher: "AES/CTR/NoPadding", BitLength: 128,
		Attributes: map[string]string{"key.acl.name": "k"},
		Created:    time.UnixMilli(1795442617204), Versions: 3}
	item := func(b []byte, i int) []byte { return AppendMetadata(b, []*claviger.Metadata{m, nil}[i]) }
	ms, err := ReadMetadataList(AppendList(nil, 2, item))
	if err != nil || len(ms) != 2 || ms[1] != nil || !reflect.DeepEqual(ms[0], m) {
		t.Errorf("metadata %+v, %v", ms, err)
	}
	v := claviger.KeyVersion{Key: "k", Name: "k@0", BitLength: 24, Material: secret.Bytes{1, 2, 3}}
	if got, err := ReadKeyVersion(AppendKeyVersion(nil, &v)); err != nil || !reflect.DeepEqual(*got, v) {
		t.Errorf("key version %+v, %v", got, err)
	}
	if got, err := ReadKeyVersion(AppendKeyVersion(nil, nil)); err != nil || got != nil {
		t.Errorf("no key version: %+v, %v", got, err)
	}
	if dek, err := ReadDEK(AppendDEK(nil, "k", nil)); err != nil || dek == nil || len(dek) != 0 {
		t.Errorf("empty DEK: %v", err)
	}
	e := ReadException(AppendException(nil, Throw(QueryParamException, "first\nsecond")))
	if e == nil || e.Class != QueryParamException || e.Simple() != "QueryParamException" || e.Message != "first" {
		t.Errorf("exception %+v", e)
	}
	if ReadException([]byte("<html>")) != nil {
		t.Error("HTML was accepted as an exception")
	}
}

// TestStrings: encoding/json reads the strings of appendString.
func TestStrings(t *testing.T) {
	for _, s := range []string{"", "plain", "\x00\x1f\"\\/\n\r\t", "ü€😀\ufffd", "a\xffb\xe2\x82"} {
		var got string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil || got != strings.ToValidUTF8(s, "\ufffd") &&
			got != string([]rune(s)) {
			t.Errorf("%q came back as %q, %v", s, got, err)
		}
	}
}

// TestFuzzSeeds: each fuzz target has seeds.
func TestFuzzSeeds(t *testing.T) {
	for _, f := range []string{"FuzzRequests", "FuzzAnswers", "FuzzBase64", "FuzzSimilar", "FuzzEDEKs"} {
		if files, err := os.ReadDir("testdata/fuzz/" + f); err != nil || len(files) == 0 {
			t.Errorf("%s has no seeds: %v", f, err)
		}
	}
}

// TestSimilar: items in the forms of known clients are read by the pattern of the first one, until the version changes.
func TestSimilar(t *testing.T) {
	hadoop := "{\n  \"encryptedKeyVersion\" : {\n    \"material\" : \"%s\",\n    \"name\" : null,\n" +
		"    \"versionName\" : \"EEK\"\n  },\n  \"versionName\" : \"%s\",\n  \"iv\" : \"%s\"\n}"
	python := `{"encryptedKeyVersion": {"material": "%s", "name": "k1", "versionName": "EEK"}, "versionName": "%s", ` +
		`"iv": "%s"}`
	own := `{"versionName":"%[2]s","iv":"%[3]s","encryptedKeyVersion":{"versionName":"EEK","name":"k",` +
		`"material":"%[1]s"}}`
	for what, item := range map[string]string{"Hadoop": hadoop, "Python": python, "claviger": own} {
		var items []string
		var want Batch
		for i := range 10 {
			e := claviger.EDEK{Version: fmt.Sprint("k@", i/5), IV: bytes.Repeat([]byte{byte(i)}, 16),
				Material: bytes.Repeat([]byte{0xff, byte(i)}, 16)}
			want = append(want, e)
			items = append(items, fmt.Sprintf(item, urlSafe.EncodeToString(e.Material), e.Version,
				urlSafe.EncodeToString(e.IV)))
		}
		general := 0
		got, err := readBatch([]byte("[ "+strings.Join(items, ", ")+" ]"), 10, func(b *batchReader) error {
			if b.similar() {
				return nil
			}
			general++
			return b.item()
		})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		if general != 2 {
			t.Errorf("%s: %d items were read as JSON", what, general)
		}
	}
}

func batchOf(n int) []byte {
	es := make([]claviger.EDEK, n)
	for i := range es {
		es[i] = claviger.EDEK{Version: "k@0123456789abcdef", IV: bytes.Repeat([]byte{byte(i)}, 16),
			Material: bytes.Repeat([]byte{byte(i)}, 32)}
	}
	return AppendBatch(nil, "k", es)
}

func BenchmarkAppendReencrypted1000(b *testing.B) {
	sent, err := ReadBatch(batchOf(1000), 1000)
	if err != nil {
		b.Fatal(err)
	}
	fresh := slices.Clone(sent)
	for i := range fresh {
		fresh[i].Version = "k@fedcba9876543210"
	}
	w := NewEDEKWriter("k")
	item := func(b []byte, i int) []byte { return w.AppendReencrypted(b, &sent[i], &fresh[i]) }
	out := AppendList(nil, len(sent), item)
	b.Run("kmswire", func(b *testing.B) {
		b.SetBytes(int64(len(out)))
		b.ReportAllocs()
		for b.Loop() {
			out = AppendList(out[:0], len(sent), item)
		}
	})
	b.Run("encoding-json", func(b *testing.B) {
		type inner struct{ VersionName, Name, Material string }
		type item struct {
			VersionName, IV     string
			EncryptedKeyVersion inner
		}
		b.SetBytes(int64(len(out)))
		b.ReportAllocs()
		for b.Loop() {
			items := make([]item, len(fresh))
			for i, e := range fresh {
				items[i] = item{e.Version, urlSafe.EncodeToString(e.IV),
					inner{EEK, "k", urlSafe.EncodeToString(e.Material)}}
			}
			if _, err := json.Marshal(items); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkReadBatch1000(b *testing.B) {
	body := batchOf(1000)
	b.Run("kmswire", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ReadBatch(body, 1000); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding-json", func(b *testing.B) {
		b.SetBytes(int64(len(body)))
		b.ReportAllocs()
		for b.Loop() {
			var v []struct {
				VersionName, IV     string
				EncryptedKeyVersion struct{ VersionName, Material string }
			}
			if err := json.Unmarshal(body, &v); err != nil {
				b.Fatal(err)
			}
		}
	})
}
