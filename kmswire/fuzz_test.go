package kmswire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzRequests holds our reader to encoding/json: where that one reads a body
// as a batch, so do we, to the same EDEKs; where it refuses the JSON, so do we.
// Left out are the places where Jackson, whom we follow, differs from it: names
// match in their exact case, and what follows the value is not looked at.
func FuzzRequests(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = ReadCreate(body)
		_, _ = ReadRoll(body)
		_, _ = ReadOpen(body)
		got, err := ReadBatch(body, 1000)

		var ref []map[string]any
		dec := json.NewDecoder(bytes.NewReader(body))
		if refErr := dec.Decode(&ref); refErr != nil {
			if err == nil {
				t.Fatalf("taken, but encoding/json says: %v", refErr)
			}
			return
		}
		if err != nil || !utf8.Valid(body) {
			return // ours asks for more than JSON: fields, base64, depth
		}
		if len(ref) != len(got) {
			t.Fatalf("%d EDEKs, encoding/json has %d", len(got), len(ref))
		}
		for i, e := range got {
			inner, _ := ref[i]["encryptedKeyVersion"].(map[string]any)
			iv, ivErr := decodeBase64(str(ref[i]["iv"]))
			if ivErr != nil {
				iv = []byte{}
			}
			material, mErr := decodeBase64(str(inner["material"]))
			if e.Version != str(ref[i]["versionName"]) || !bytes.Equal(e.IV, iv) || mErr != nil || !bytes.Equal(e.Material, material) {
				t.Fatalf("EDEK %d is %+v, encoding/json has %v", i, e, ref[i])
			}
		}
		again, err := ReadBatch(AppendBatch(nil, "k", got), 1000)
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("written and read again: %+v, %v, was %+v", again, err, got)
		}
	})
}

func str(v any) string { s, _ := v.(string); return s }

// FuzzBase64 holds the decoder to encoding/base64.
func FuzzBase64(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		got, err := decodeBase64(s)
		plain := strings.NewReplacer(" ", "", "\n", "", "\r", "", "\t", "", "+", "-", "/", "_").Replace(s)
		var want []byte
		refErr := error(base64.CorruptInputError(0))
		for _, enc := range []*base64.Encoding{base64.RawURLEncoding, base64.URLEncoding} {
			if b, e := enc.DecodeString(plain); e == nil {
				want, refErr = b, nil
			}
		}
		if (err == nil) != (refErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%q: %x, %v; encoding/base64: %x, %v", s, got, err, want, refErr)
		}
	})
}
