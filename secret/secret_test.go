package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"claviger/secret"
)

// TestNeverPrints: neither fmt, slog nor JSON writes the content of Bytes.
func TestNeverPrints(t *testing.T) {
	b := secret.Bytes("hunter2-hunter2")
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "pin", b)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "pin", b, "in", struct{ P secret.Bytes }{b})
	j, err := json.Marshal(map[string]any{"a": b, "b": &b, "c": []secret.Bytes{b}})
	if err != nil {
		t.Fatal(err)
	}
	all := log.String() + string(j)
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o"} {
		all += fmt.Sprintf(f, b) + fmt.Sprintf(f, struct{ P secret.Bytes }{b})
	}
	for _, leak := range []string{"hunter2", "68756e74", "68756E74", "104 117", "aHVudGVy"} {
		if strings.Contains(all, leak) {
			t.Errorf("%q in the output:\n%s", leak, all)
		}
	}
	if n := strings.Count(all, "[redacted]"); n < 20 {
		t.Errorf("only %d redaction marks in:\n%s", n, all)
	}
}

// TestWipeAndEqual: Equal compares content and length, and Wipe overwrites the content with zeros.
func TestWipeAndEqual(t *testing.T) {
	b := secret.Bytes{1, 2, 3}
	if !b.Equal(secret.Bytes{1, 2, 3}) || b.Equal(secret.Bytes{1, 2}) || b.Equal(secret.Bytes{1, 2, 4}) {
		t.Error("Equal returns a wrong result")
	}
	if b.Wipe(); !bytes.Equal(b, []byte{0, 0, 0}) {
		t.Errorf("not wiped: %d", []byte(b))
	}
}
