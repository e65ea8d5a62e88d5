package trustee

import (
	"strings"

	"claviger"
)

// Labels of the deposits of a KT KMS. A server cannot read deposits, but their labels say which
// belong together.
const (
	// LabelKey and a key's name: the key's document, which names its versions.
	LabelKey = "key/"
	// LabelVersion and a version's full name: its material.
	LabelVersion = "version/"
	// LabelDeleted, a key's name, a slash and an id: the document of a deleted key.
	LabelDeleted = "deleted/"
)

// KeyOfLabel returns the key's name in the label of a KT KMS's deposit, and the kind of the label;
// "" for any other deposit.
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
