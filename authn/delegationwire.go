package authn

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// delegationKind is the kind of the KMS's delegation tokens.
const delegationKind = "kms-dt"

// identifier says whom a delegation token is for. Its bytes are those of
// Hadoop's AbstractDelegationTokenIdentifier:
//
//	byte 0 | Text owner | Text renewer | Text realUser | VLong issueDate |
//	VLong maxDate | VInt sequenceNumber | VInt masterKeyId
//
// where Text is a VInt of its length in bytes and UTF-8, and VInt and VLong are
// WritableUtils' numbers. Dates are milliseconds since the epoch.
type identifier struct {
	owner, renewer, realUser string
	issued, maxDate          int64
	sequence, keyID          int32
}

// String is Hadoop's text, which its messages hold and its clients look for.
func (id identifier) String() string {
	return fmt.Sprintf("%s owner=%s, renewer=%s, realUser=%s, issueDate=%d, maxDate=%d, sequenceNumber=%d, masterKeyId=%d",
		delegationKind, id.owner, id.renewer, id.realUser, id.issued, id.maxDate, id.sequence, id.keyID)
}

func (id identifier) bytes() []byte {
	b := []byte{0}
	b = appendText(b, id.owner)
	b = appendText(b, id.renewer)
	b = appendText(b, id.realUser)
	b = appendVLong(b, id.issued)
	b = appendVLong(b, id.maxDate)
	b = appendVLong(b, int64(id.sequence))
	return appendVLong(b, int64(id.keyID))
}

// delegation is a token as it travels:
//
//	VInt length, identifier | VInt length, password | Text kind | Text service
//
// in URL-safe base64 without padding.
type delegation struct {
	identifier, password []byte
	kind, service        string
}

func (d delegation) text() string {
	b := append(appendVLong(nil, int64(len(d.identifier))), d.identifier...)
	b = append(appendVLong(b, int64(len(d.password))), d.password...)
	b = appendText(b, d.kind)
	return base64.RawURLEncoding.EncodeToString(appendText(b, d.service))
}

// errEOF is what Hadoop says of every token that it cannot decode.
var errEOF = errors.New("java.io.EOFException")

// maxDelegation is the longest text of a token that is looked at.
const maxDelegation = 8 << 10

func parseDelegation(text string) (d delegation, id identifier, err error) {
	text = strings.TrimRight(text, "=")
	if len(text) > maxDelegation {
		return d, id, errEOF
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return d, id, errEOF
	}
	r := &writable{b: raw}
	d = delegation{identifier: r.take(r.vlong()), password: r.take(r.vlong())}
	d.kind, d.service = r.text(), r.text()
	if r.failed || len(r.b) > 0 {
		return d, id, errEOF
	}
	r = &writable{b: d.identifier}
	version := r.take(1)
	id = identifier{owner: r.text(), renewer: r.text(), realUser: r.text(), issued: r.vlong(), maxDate: r.vlong(), sequence: r.vint(), keyID: r.vint()}
	if r.failed || len(r.b) > 0 || version[0] != 0 {
		return d, id, errEOF
	}
	return d, id, nil
}

// appendVLong writes a number as WritableUtils.writeVLong does: one byte for
// -112..127; else a byte that tells sign and length, and the bytes of the number
// (of its complement, if it is negative), the highest first.
func appendVLong(b []byte, n int64) []byte {
	if n >= -112 && n <= 127 {
		return append(b, byte(n))
	}
	first := -112
	if n < 0 {
		n, first = ^n, -120
	}
	size := (bits.Len64(uint64(n)) + 7) / 8 //nolint:gosec // n is not negative here
	var word [8]byte
	binary.BigEndian.PutUint64(word[:], uint64(n)) //nolint:gosec // as above
	b = append(b, byte(first-size))
	return append(b, word[8-size:]...)
}

func appendText(b []byte, s string) []byte {
	return append(appendVLong(b, int64(len(s))), s...)
}

// writable reads what Hadoop's Writables wrote. After a failure all it reads is
// empty.
type writable struct {
	b      []byte
	failed bool
}

func (r *writable) take(n int64) []byte {
	if n < 0 || n > int64(len(r.b)) || r.failed {
		r.failed, r.b = true, nil
		return []byte{}
	}
	taken := r.b[:n:n]
	r.b = r.b[n:]
	return taken
}

func (r *writable) text() string { return string(r.take(r.vlong())) }

func (r *writable) vlong() int64 {
	head := r.take(1)
	if r.failed {
		return 0
	}
	first := int64(int8(head[0])) //nolint:gosec // a signed byte, as in Java
	if first >= -112 {
		return first
	}
	size, negative := -112-first, first < -120
	if negative {
		size = -120 - first
	}
	var word [8]byte
	copy(word[8-size:], r.take(size))
	n := int64(binary.BigEndian.Uint64(word[:])) //nolint:gosec // eight bytes are a long
	if negative {
		n = ^n
	}
	return n
}

func (r *writable) vint() int32 {
	n := r.vlong()
	if n < math.MinInt32 || n > math.MaxInt32 {
		r.failed = true
		return 0
	}
	return int32(n)
}
