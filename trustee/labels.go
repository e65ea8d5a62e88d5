package trustee

import (
	"strings"

	"claviger"
)

// Prefixes of the labels of a KT KMS's deposits. A server cannot read deposits, but their labels show
// which deposits belong to one key.
const (
	// LabelKey, followed by the name of a key: the document of the key, which names its versions.
	LabelKey = "key/"
	// LabelVersion, followed by the full name of a version: the material of the version.
	LabelVersion = "version/"
	// LabelDeleted, followed by the name of a key, a slash and an id: the document of a deleted key.
	LabelDeleted = "deleted/"
)

// KeyOfLabel returns the name of the key in the label of a KT KMS's deposit, and the prefix of the
// label as kind. Both are "" for any other deposit.
func KeyOfLabel(label string) (kind, key string) {
	if name, ok := strings.CutPrefix(label, LabelKey); ok && name != "" {
		return LabelKey, name
	}
	if version, ok := strings.CutPrefix(label, LabelVersion); ok {
		if name, ok := claviger.KeyOfVersion(version); ok {
			return LabelVersion, name
		}
	}
	if rest, ok := strings.CutPrefix(label, LabelDeleted); ok {
		if i := strings.LastIndexByte(rest, '/'); i > 0 {
			return LabelDeleted, rest[:i]
		}
	}
	return "", ""
}
