package authn

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"claviger/writable"
)

// delegationKind is the kind of the KMS's delegation tokens.
const delegationKind = "kms-dt"

// identifier holds the users and dates of a delegation token. Its bytes have the format of Hadoop's
// AbstractDelegationTokenIdentifier:
//
//	byte 0 | Text owner | Text renewer | Text realUser | VLong issueDate |
//	VLong maxDate | VInt sequenceNumber | VInt masterKeyId
//
// Text is its length in bytes as a VInt, then UTF-8. VInt and VLong are numbers as WritableUtils writes them. Dates
// are milliseconds since the epoch.
type identifier struct {
	owner, renewer, realUser string
	issued, maxDate          int64
	sequence, keyID          int32
}

// String returns Hadoop's text of an identifier. It is a part of Hadoop's messages, and clients search for it.
func (id identifier) String() string {
	return fmt.Sprintf("%s owner=%s, renewer=%s, realUser=%s, issueDate=%d, maxDate=%d, sequenceNumber=%d, "+
		"masterKeyId=%d",
		delegationKind, id.owner, id.renewer, id.realUser, id.issued, id.maxDate, id.sequence, id.keyID)
}

func (id identifier) bytes() []byte {
	b := []byte{0}
	b = writable.AppendText(b, id.owner)
	b = writable.AppendText(b, id.renewer)
	b = writable.AppendText(b, id.realUser)
	b = writable.AppendLong(b, id.issued)
	b = writable.AppendLong(b, id.maxDate)
	b = writable.AppendLong(b, int64(id.sequence))
	return writable.AppendLong(b, int64(id.keyID))
}

// delegation is a token in a request or answer:
//
//	VInt length, identifier | VInt length, password | Text kind | Text service
//
// in URL-safe base64 without padding.
type delegation struct {
	identifier, password []byte
	kind, service        string
}

func (d delegation) text() string {
	b := append(writable.AppendLong(nil, int64(len(d.identifier))), d.identifier...)
	b = append(writable.AppendLong(b, int64(len(d.password))), d.password...)
	b = writable.AppendText(b, d.kind)
	return base64.RawURLEncoding.EncodeToString(writable.AppendText(b, d.service))
}

// errEOF has Hadoop's message for each token that it cannot decode.
var errEOF = errors.New("java.io.EOFException")

// maxDelegation is the maximum length of a token's text in bytes.
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
	r := &writable.Reader{Rest: raw}
	d = delegation{identifier: r.Take(r.Long()), password: r.Take(r.Long())}
	d.kind, d.service = r.Text(), r.Text()
	if r.Failed || len(r.Rest) > 0 {
		return d, id, errEOF
	}
	id, err = parseIdentifier(d.identifier)
	return d, id, err
}

func parseIdentifier(b []byte) (identifier, error) {
	r := &writable.Reader{Rest: b}
	version := r.Take(1)
	id := identifier{owner: r.Text(), renewer: r.Text(), realUser: r.Text(), issued: r.Long(), maxDate: r.Long(),
		sequence: r.Int(), keyID: r.Int()}
	if r.Failed || len(r.Rest) > 0 || version[0] != 0 {
		return id, errEOF
	}
	return id, nil
}
