package provider_test

import (
	"testing"

	"claviger"
	"claviger/provider"
	"claviger/secret"
)

// TestCheckSpec checks which specifications of a key are refused, and with which kind of error.
func TestCheckSpec(t *testing.T) {
	ok := provider.Spec{Name: "k", Cipher: claviger.DefaultCipher, BitLength: 128}
	for name, c := range map[string]struct {
		change func(*provider.Spec)
		kind   claviger.Kind // Internal if no error is wanted
		text   string
	}{
		"a valid spec":   {func(*provider.Spec) {}, claviger.Internal, ""},
		"192":            {func(s *provider.Spec) { s.BitLength = 192 }, claviger.Internal, ""},
		"material":       {func(s *provider.Spec) { s.Material = make(secret.Bytes, 16) }, claviger.Internal, ""},
		"another mode":   {func(s *provider.Spec) { s.Cipher = "aes/GCM/NoPadding" }, claviger.Internal, ""},
		"algorithm only": {func(s *provider.Spec) { s.Cipher = "AES" }, claviger.Internal, ""},
		"no name":        {func(s *provider.Spec) { s.Name = "" }, claviger.Invalid, "a key must have a name"},
		"100 bits": {func(s *provider.Spec) { s.BitLength = 100 }, claviger.InvalidKeySize,
			`"k": bit length is 100; it must be 128, 192 or 256`},
		"no cipher": {func(s *provider.Spec) { s.Cipher = "" }, claviger.UnknownCipher,
			`"k": cipher is ""; only AES is known, as in "AES/CTR/NoPadding"`},
		"SM4": {func(s *provider.Spec) { s.Cipher = "SM4/CTR/NoPadding" }, claviger.UnknownCipher,
			`"k": cipher is "SM4/CTR/NoPadding"; only AES is known, as in "AES/CTR/NoPadding"`},
		"empty material": {func(s *provider.Spec) { s.Material = secret.Bytes{} }, claviger.MaterialLength,
			`"k": Wrong key length. Required 128, but got 0`},
		"too long for 128": {func(s *provider.Spec) { s.Material = make(secret.Bytes, 32) }, claviger.MaterialLength,
			`"k": Wrong key length. Required 128, but got 256`},
	} {
		spec := ok
		c.change(&spec)
		err := provider.CheckSpec("op", spec)
		if c.kind == claviger.Internal && err != nil || c.kind != claviger.Internal &&
			(!claviger.Is(err, c.kind) || err.Error() != c.text) {
			t.Errorf("%s: %v, want %q", name, err, c.text)
		}
	}
}
