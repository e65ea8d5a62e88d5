package eek

import (
	"io"

	"claviger"
)

// Implied makes n EDEKs of DEKs of dekLen bytes under the version, without the version's key. The material of each EDEK
// is random. Since an EDEK is DEK xor keystream, and the keystream depends on the key and the IV alone, each string of
// dekLen bytes is the EDEK of exactly one DEK. If the string is uniformly random and independent of the keystream, so
// is the DEK. Nobody knows the DEK before the EDEK is opened for the first time. random is the source of IVs and
// materials; nil means crypto/rand. If n <= 0, it makes no EDEK.
//
// An EDEK can be opened only if the version's key exists. The caller must know that.
func Implied(version string, dekLen, n int, random io.Reader) ([]claviger.EDEK, error) {
	const op = "eek.Implied"
	if dekLen == 0 {
		return nil, claviger.Errorf(op, claviger.Invalid, version, "a DEK cannot have 0 bytes")
	}
	edeks, _, err := draw(op, version, dekLen, n, random)
	return edeks, err
}
