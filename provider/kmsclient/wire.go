package kmsclient

import (
	"claviger"
)

// read decodes an answer. Its error never quotes the answer, which may contain keys.
func read[T any](op, about string, body []byte, decode func([]byte) (T, error)) (T, error) {
	v, err := decode(body)
	if err != nil {
		return v, claviger.Errorf(op, claviger.Internal, about, "the KMS's answer cannot be read: %w", err)
	}
	return v, nil
}

// checkVersion demands that v is a version of key. bits is its length if v has no material.
func checkVersion(op, key string, v *claviger.KeyVersion, bits int) (claviger.KeyVersion, error) {
	if v == nil {
		return claviger.KeyVersion{},
			claviger.Errorf(op, claviger.Internal, key, "the KMS answered without a key version")
	}
	if k, ok := claviger.KeyOfVersion(v.Name); !ok || k != key {
		return claviger.KeyVersion{}, claviger.Errorf(op, claviger.Internal, key,
			"the KMS answered with version %q of another key", v.Name)
	}
	v.Key = key
	if v.Material == nil {
		v.BitLength = bits
	}
	return *v, nil
}
