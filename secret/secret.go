// Package secret has a type for secret bytes, which every verb and encoder prints redacted, and which can be wiped. It
// also removes secrets from texts, and checks the rights of files with secrets.
package secret

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Bytes is secret material: a DEK, a key version's material, a PIN. nil means that there is none, or that it is
// withheld.
type Bytes []byte

var (
	_ fmt.Formatter  = Bytes(nil)
	_ json.Marshaler = Bytes(nil)
	_ slog.LogValuer = Bytes(nil)
)

// Format prints the redaction mark for every verb.
func (b Bytes) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redacted)) }

// MarshalJSON writes the redaction mark. Package kmswire encodes secrets for the wire explicitly.
func (b Bytes) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// MarshalText writes the redaction mark.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns the redaction mark.
func (b Bytes) LogValue() slog.Value { return slog.StringValue(redacted) }

// Equal compares in constant time for equal lengths.
func (b Bytes) Equal(o Bytes) bool { return subtle.ConstantTimeCompare(b, o) == 1 }

// Wipe overwrites the bytes. It does not overwrite copies.
func (b Bytes) Wipe() { clear(b) }

// WipeAll overwrites the bytes of each secret.
func WipeAll(list ...Bytes) {
	for _, b := range list {
		b.Wipe()
	}
}
