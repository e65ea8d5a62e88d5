package provider

import (
	"strings"

	"claviger"
)

// CheckSpec makes the checks of a Spec that all providers share. Kinds Invalid (no name), InvalidKeySize,
// UnknownCipher, MaterialLength. The only known cipher is AES, in any mode: only HDFS uses the mode. op is the caller's
// operation, for the error.
func CheckSpec(op string, s Spec) error {
	if s.Name == "" {
		return claviger.Errorf(op, claviger.Invalid, "", "a key must have a name")
	}
	if s.BitLength != 128 && s.BitLength != 192 && s.BitLength != 256 {
		return claviger.Errorf(op, claviger.InvalidKeySize, s.Name, "bit length is %d; it must be 128, 192 or 256",
			s.BitLength)
	}
	if algorithm, _, _ := strings.Cut(s.Cipher, "/"); !strings.EqualFold(algorithm, "AES") {
		return claviger.Errorf(op, claviger.UnknownCipher, s.Name, "cipher is %q; only AES is known, as in %q",
			s.Cipher, claviger.DefaultCipher)
	}
	if s.Material != nil {
		return CheckMaterial(op, s.Name, s.BitLength, s.Material)
	}
	return nil
}

// CheckImport checks the numbers of the versions of an Import. Kind Invalid.
func CheckImport(op, key string, n, first int) error {
	if n < 1 {
		return claviger.Errorf(op, claviger.Invalid, key, "a key must have at least 1 version, not %d", n)
	}
	if first < 0 || first > claviger.MaxVersion-(n-1) {
		return claviger.Errorf(op, claviger.Invalid, key,
			"%d versions cannot be numbered from %d on: numbers go from 0 to %d", n, first, claviger.MaxVersion)
	}
	return nil
}

// CheckMaterial checks that given material has the length of its key. The text of the error is Hadoop's. Kind
// MaterialLength.
func CheckMaterial(op, key string, bitLength int, material []byte) error {
	if got := 8 * len(material); got != bitLength {
		return claviger.Errorf(op, claviger.MaterialLength, key, "Wrong key length. Required %d, but got %d",
			bitLength, got)
	}
	return nil
}
