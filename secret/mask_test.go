package secret_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"claviger/secret"
)

// aToken was issued by a KMS in a test. It is no longer valid.
const aToken = "HgAFYWxpY2UFYWxpY2UAigGiIrHneIoBoka-a3gBARSUcP-chFvUeqa-b_BQEXarDCBaqAZrbXMtZHQA"

const aCookie = "u=alice&p=alice@EXAMPLE.COM&t=kerberos&e=1795903200000&s=6fZtUaTqmq0nFQ3W6Z5gUnk3Jw6WcB0v2aYc9Jm6E7s="

// TestMask: delegation tokens and signatures of cookies are masked, also if they are percent-encoded or truncated.
// Ordinary text is not masked.
func TestMask(t *testing.T) {
	standard := strings.NewReplacer("-", "+", "_", "/").Replace(aToken)
	for _, c := range []struct{ text, want string }{
		{aToken, "***"},
		{standard, "***"},
		{aToken[:60], "***"}, // the token's password begins in character 42 of the base64
		{aToken[:50] + "\r\n" + aToken[50:], "***"},
		{"GET " + aToken + " refused", "GET *** refused"},
		{"a=" + aToken + "&b=" + aToken + "&c=d", "a=***&b=***&c=d"},
		{url.QueryEscape(url.QueryEscape(strings.ReplaceAll(aToken, "A", "%41"))) + "&x", "***&x"},
		{strings.Repeat("%25", 20) + aToken, "***"},
		{"%25252525252525252525252541 and no token at all, but no end of escapes", "***"},
		{aCookie, strings.Split(aCookie, "&s=")[0] + "&s=***"},
		{"Authorization: negotiate " + base64.StdEncoding.EncodeToString(make([]byte, 40)),
			"Authorization: negotiate ***"},
	} {
		if got := secret.Mask(c.text); got != c.want {
			t.Errorf("%s becomes %s, want %s", c.text, got, c.want)
		}
	}
	for _, text := range []string{
		"", "k", strings.Repeat("a-key-with-a-long-name_", 40), strings.Repeat("%2f", 200), strings.Repeat("A", 5000),
		"http://kms1.example.com:9600/kms/v1/keyversion/warehouse_finance_2026_production_main%4017/_eek?" +
			"eek_op=decrypt", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0x8a}, 300)),
		"the ticket of HTTP/kms1.example.com@EXAMPLE.COM is for Negotiate authentication, which is not configured",
	} {
		if got := secret.Mask(text); got != text {
			t.Errorf("%q becomes %q", text, got)
		}
	}
}

// TestLogHandler: no attribute of a log line, whatever its type, shows a delegation token.
func TestLogHandler(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(secret.LogHandler(slog.NewJSONHandler(&b, nil))).With("with", aToken).WithGroup("g")
	log.Warn("message "+aToken, "string", aToken, "err", fmt.Errorf("outer: %w", errors.New(aToken)),
		slog.Group("group", "in", aToken), "bytes", []byte(aToken), "panic", any(aToken), "n", 7)
	if text := b.String(); strings.Contains(text, aToken) || strings.Contains(text,
		base64.StdEncoding.EncodeToString([]byte(aToken))) || !strings.Contains(text, `"n":7`) ||
		!strings.Contains(text, "outer: ***") {
		t.Error(text)
	}
}

func BenchmarkMask(b *testing.B) {
	const text = "http://kms1.example.com:9600/kms/v1/keyversion/warehouse_finance_2026_production_main%4017/_eek?" +
		"eek_op=decrypt"
	for b.Loop() {
		secret.Mask(text)
	}
}
