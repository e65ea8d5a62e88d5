package kmswire

import "claviger"

// EDEKWriter appends EDEKs of one key, as JSON in the form of AppendEDEK. It encodes the parts that the EDEKs share
// only once.
type EDEKWriter struct {
	version        string // of head
	head           []byte // the text before the IV
	named, unnamed []byte // the text between IV and material, with the key and with null as the inner name
}

// tail is the text after the material of an EDEK.
const tail = `"}}`

// NewEDEKWriter returns a writer for EDEKs of the key.
func NewEDEKWriter(key string) *EDEKWriter {
	return &EDEKWriter{head: appendHead(nil, ""), named: appendMiddle(nil, &key), unnamed: appendMiddle(nil, nil)}
}

// appendHead appends the text of an EDEK before its IV.
func appendHead(b []byte, version string) []byte {
	b = append(b, `{"versionName":`...)
	b = appendString(b, version)
	return append(b, `,"iv":"`...)
}

// appendMiddle appends the text of an EDEK between its IV and its material.
func appendMiddle(b []byte, key *string) []byte {
	b = append(b, `","encryptedKeyVersion":{"versionName":"`+EEK+`","name":`...)
	b = appendNullable(b, key)
	return append(b, `,"material":"`...)
}

// AppendEDEK appends one EDEK. The inner name is the key's, or null if key is nil.
func AppendEDEK(b []byte, key *string, e *claviger.EDEK) []byte {
	b = appendHead(b, e.Version)
	b = appendPublic(b, e.IV)
	b = appendMiddle(b, key)
	b = appendPublic(b, e.Material)
	return append(b, tail...)
}

// AppendEDEKs appends a list of fresh EDEKs of one key.
func AppendEDEKs(b []byte, key string, es []claviger.EDEK) []byte {
	w := NewEDEKWriter(key)
	return AppendList(b, len(es), func(b []byte, i int) []byte { return w.Append(b, &es[i]) })
}

// Append appends a fresh EDEK.
func (w *EDEKWriter) Append(b []byte, e *claviger.EDEK) []byte { return w.append(b, w.named, e) }

// Size returns the length of the text that Append appends.
func (w *EDEKWriter) Size(e *claviger.EDEK) int { return w.size(w.named, e) }

// AppendReencrypted appends one EDEK of the answer to a batch. If its version has not changed, the EDEK was not
// re-encrypted, and its inner name is null, as in Hadoop.
func (w *EDEKWriter) AppendReencrypted(b []byte, sent, fresh *claviger.EDEK) []byte {
	return w.append(b, w.middle(sent, fresh), fresh)
}

// SizeReencrypted returns the length of the text that AppendReencrypted appends.
func (w *EDEKWriter) SizeReencrypted(sent, fresh *claviger.EDEK) int {
	return w.size(w.middle(sent, fresh), fresh)
}

// middle returns the text between the IV and the material of a re-encrypted EDEK.
func (w *EDEKWriter) middle(sent, fresh *claviger.EDEK) []byte {
	if fresh.Version == sent.Version {
		return w.unnamed
	}
	return w.named
}

func (w *EDEKWriter) append(b, middle []byte, e *claviger.EDEK) []byte {
	w.use(e.Version)
	b = append(b, w.head...)
	b = appendPublic(b, e.IV)
	b = append(b, middle...)
	b = appendPublic(b, e.Material)
	return append(b, tail...)
}

func (w *EDEKWriter) size(middle []byte, e *claviger.EDEK) int {
	w.use(e.Version)
	return len(w.head) + urlSafe.EncodedLen(len(e.IV)) + len(middle) + urlSafe.EncodedLen(len(e.Material)) + len(tail)
}

// use sets the head for a version.
func (w *EDEKWriter) use(version string) {
	if version != w.version {
		w.version, w.head = version, appendHead(w.head[:0], version)
	}
}
