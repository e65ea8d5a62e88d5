package keyring

import (
	"strings"

	"claviger"
	"claviger/provider"
)

// Limits of a key's metadata. The metadata stay in memory and in the store for as long as the key exists, and are
// sent to each user who requests them.
const (
	maxCipher         = 128 // bytes
	maxDescription    = 8 << 10
	maxAttributes     = 64
	maxAttributeName  = 256
	maxAttributeValue = 4 << 10
	maxAllAttributes  = 32 << 10
)

// checkSpec refuses a name that is too long for a path, and metadata that are too long. The errors name the part, but
// do not repeat its text. Kind Invalid.
func checkSpec(spec provider.Spec) error {
	const op = "keyring.Create"
	tooLong := func(what string, got, most int) error {
		return claviger.Errorf(op, claviger.Invalid, "", "%s has %d bytes, and may have at most %d", what, got, most)
	}
	if why := claviger.BadName(spec.Name); why != "" {
		return claviger.Errorf(op, claviger.Invalid, "", "the name of the key %s", why)
	}
	// PostgreSQL stores no NUL: a store with such a key could not be moved to PostgreSQL.
	hasNUL := func(text string) bool { return strings.ContainsRune(text, 0) }
	switch {
	case spec.Description != nil && hasNUL(*spec.Description):
		return claviger.Errorf(op, claviger.Invalid, "", "the description holds a NUL")
	case len(spec.Cipher) > maxCipher:
		return tooLong("the cipher", len(spec.Cipher), maxCipher)
	case spec.Description != nil && len(*spec.Description) > maxDescription:
		return tooLong("the description", len(*spec.Description), maxDescription)
	case len(spec.Attributes) > maxAttributes:
		return claviger.Errorf(op, claviger.Invalid, "", "the key has %d attributes, and may have at most %d",
			len(spec.Attributes), maxAttributes)
	}
	all := 0
	for name, value := range spec.Attributes {
		if len(name) > maxAttributeName {
			return tooLong("the name of an attribute", len(name), maxAttributeName)
		}
		if len(value) > maxAttributeValue {
			return tooLong("the value of an attribute", len(value), maxAttributeValue)
		}
		if hasNUL(name) || hasNUL(value) {
			return claviger.Errorf(op, claviger.Invalid, "", "an attribute holds a NUL")
		}
		all += len(name) + len(value)
	}
	if all > maxAllAttributes {
		return tooLong("the sum of all attributes", all, maxAllAttributes)
	}
	if why := claviger.BadName(spec.Attributes[claviger.ACLNameAttribute]); why != "" &&
		spec.Attributes[claviger.ACLNameAttribute] != "" {
		return claviger.Errorf(op, claviger.Invalid, "", "the attribute %s %s", claviger.ACLNameAttribute, why)
	}
	return nil
}
