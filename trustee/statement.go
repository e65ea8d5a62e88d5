package trustee

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"claviger"
)

// statement describes a deposit. The owner of the deposit makes and signs it. It contains the uuid,
// which the owner makes, and the digest of the content. So a server can neither return one deposit
// for another nor change the description.
type statement struct {
	UUID        string     `json:"uuid"`
	Owner       string     `json:"owner"`
	Label       string     `json:"label"`
	Description string     `json:"description,omitempty"`
	Created     time.Time  `json:"created"`
	Expires     *time.Time `json:"expires,omitempty"`
	Access      []string   `json:"access,omitempty"`
	Digest      string     `json:"digest"`
}

// Sealed is the form of a deposit in requests, in answers and in the store of a server: the owner's
// statement and signature, and the content, which is nil in lists.
type Sealed struct {
	Statement []byte `json:"statement"`
	Signature []byte `json:"signature"`
	Content   []byte `json:"content,omitempty"`
	// Deleted is when the deposit was deleted. The server sets it, and no signature covers it.
	Deleted *time.Time `json:"deleted,omitempty"`
}

// maxStatement is the size limit of a statement. It has room for a label, a description and an access
// list of their greatest length, with all characters escaped.
const maxStatement = 64 << 10

// NewUUID makes the name of a deposit: 160 random bits, 32 characters.
func NewUUID() string {
	var b [20]byte
	_, _ = rand.Read(b[:]) // it never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// seal makes the Sealed form of a deposit.
func (id *Identity) seal(d Deposit, now time.Time) (*Sealed, error) {
	digest := sha256.Sum256(d.Content)
	s := statement{
		UUID: d.UUID, Owner: id.Fingerprint(), Label: d.Label, Description: d.Description,
		Created: now.UTC().Truncate(time.Millisecond), Access: d.Access, Digest: hex.EncodeToString(digest[:]),
	}
	if !d.Expires.IsZero() {
		at := d.Expires.UTC().Truncate(time.Millisecond)
		s.Expires = &at
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, claviger.E("trustee.seal", claviger.Internal, "", err)
	}
	signature, err := id.sign(text, now)
	if err != nil {
		return nil, claviger.E("trustee.seal", claviger.KindOf(err), "", err)
	}
	return &Sealed{Statement: text, Signature: signature, Content: d.Content}, nil
}

// Read checks a sealed deposit of the owner: the signature, the limits, and the digest of the content
// if there is one. Kind Invalid.
func (s *Sealed) Read(owner *Party, now time.Time) (Deposit, error) {
	const op = "trustee.Read"
	refuse := func(format string, args ...any) (Deposit, error) {
		return Deposit{}, claviger.Errorf(op, claviger.Invalid, "", format, args...)
	}
	if len(s.Statement) > maxStatement || len(s.Content) > MaxContent {
		return refuse("a deposit with a statement of %d and a content of %d bytes is too long: at most %d and %d",
			len(s.Statement), len(s.Content), maxStatement, MaxContent)
	}
	if err := owner.verify(s.Statement, s.Signature, now); err != nil {
		return refuse("the statement of a deposit does not have the signature of %s: %w", owner, err)
	}
	var st statement
	if err := decodeStrict(s.Statement, &st); err != nil {
		return refuse("the statement of a deposit of %s cannot be read: %w", owner, err)
	}
	d := Deposit{UUID: st.UUID, Owner: st.Owner, Label: st.Label, Description: st.Description, Created: st.Created,
		Access: st.Access, Digest: st.Digest, Content: s.Content}
	if st.Expires != nil {
		d.Expires = *st.Expires
	}
	if s.Deleted != nil {
		d.Deleted = *s.Deleted
	}
	if !strings.EqualFold(st.Owner, owner.Fingerprint()) {
		return refuse("the statement of a deposit of %s names %s as its owner", owner, st.Owner)
	}
	if err := d.check(); err != nil {
		return refuse("%w", err)
	}
	if s.Content != nil {
		if digest := sha256.Sum256(s.Content); hex.EncodeToString(digest[:]) != st.Digest {
			return refuse("the content of deposit %s does not have the digest that its owner signed", st.UUID)
		}
	}
	return d, nil
}

// Made returns the time of creation in the statement. It does not check the signature.
func (s *Sealed) Made() (time.Time, error) {
	var st statement
	if err := decodeStrict(s.Statement, &st); err != nil {
		return time.Time{}, claviger.Errorf("trustee.Made", claviger.Invalid, "",
			"the statement of a deposit cannot be read: %w", err)
	}
	return st.Created, nil
}

// check compares the deposit with the limits.
func (d *Deposit) check() error {
	switch {
	case !wellFormed(d.UUID, 26, 64):
		return fmt.Errorf("%.80q is not a uuid: it must have 26 to 64 letters and digits", d.UUID)
	case d.Label == "" || len(d.Label) > MaxLabel:
		return fmt.Errorf("a label must have 1 to %d bytes, not %d", MaxLabel, len(d.Label))
	case len(d.Description) > MaxDescription:
		return fmt.Errorf("a description must have at most %d bytes, not %d", MaxDescription, len(d.Description))
	case len(d.Access) > MaxAccess:
		return fmt.Errorf("at most %d other clients may have access, not %d", MaxAccess, len(d.Access))
	case !wellFormed(d.Digest, 64, 64):
		return fmt.Errorf("%.80q is not a digest: it must have 64 hex digits", d.Digest)
	}
	for _, a := range d.Access {
		if !wellFormed(a, fingerprintLen, fingerprintLen) {
			return fmt.Errorf("%.80q in the access list is not a fingerprint: it must have %d hex digits", a,
				fingerprintLen)
		}
	}
	return nil
}

// wellFormed reports whether s has from least to most characters, all of them ASCII letters or digits.
func wellFormed(s string, minLen, maxLen int) bool {
	return len(s) >= minLen && len(s) <= maxLen && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	})
}

// decodeStrict decodes one JSON value. It refuses unknown names, and data after the value.
func decodeStrict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF { //nolint:errorlint // Token returns it bare
		return fmt.Errorf("data follows the JSON value")
	}
	return nil
}
