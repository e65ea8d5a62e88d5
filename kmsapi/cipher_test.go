package kmsapi_test

import (
	"strings"
	"testing"

	"claviger/provider/memory"
)

// TestSM4: the other cipher that Hadoop supports is refused as a wrong argument. The error names
// the supported ciphers.
func TestSM4(t *testing.T) {
	addr := start(t, stack{Primary: memory.New(memory.Config{})})
	for _, cipher := range []string{"SM4/CTR/NoPadding", "sm4/CTR/NoPadding"} {
		a := send(t, addr, "POST", "/kms/v1/keys", `{"name":"k","cipher":"`+cipher+`","length":128}`)
		class, message := a.thrown(t)
		if a.status != 400 || class != "java.lang.IllegalArgumentException" && class != "IllegalArgumentException" ||
			!strings.Contains(message, cipher+" is not supported; the ciphers are AES/CTR/NoPadding") {
			t.Errorf("%s: %d %s %s", cipher, a.status, class, message)
		}
	}
	if a := send(t, addr, "GET", "/kms/v1/keys/names", ""); string(a.body) != "[]" {
		t.Errorf("keys: %s", a.body)
	}
}
