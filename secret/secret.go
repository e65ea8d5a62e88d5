// Package secret holds byte strings that must not be seen: they print
// redacted under every verb and encoder, and can be wiped.
package secret

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Bytes is secret material: a DEK, a key version's material, a PIN. The zero
// value (nil) means "none", which is how a withheld material is told.
type Bytes []byte

var (
	_ fmt.Formatter  = Bytes(nil)
	_ json.Marshaler = Bytes(nil)
	_ slog.LogValuer = Bytes(nil)
)

// Format prints the redaction mark whatever the verb.
func (b Bytes) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redacted)) }

// MarshalJSON writes the redaction mark. What must go over the wire is encoded
// by package kmswire, which asks for the bytes by name.
func (b Bytes) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// MarshalText writes the redaction mark.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue is the redaction mark.
func (b Bytes) LogValue() slog.Value { return slog.StringValue(redacted) }

// Equal compares in constant time for equal lengths.
func (b Bytes) Equal(o Bytes) bool { return subtle.ConstantTimeCompare(b, o) == 1 }

// Wipe overwrites the bytes. Copies that were made earlier are not reached.
func (b Bytes) Wipe() { clear(b) }
