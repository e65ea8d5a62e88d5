package trustee

import (
	"context"
	"time"
)

// A Deposit is a secret that a client keeps at the Key Trustee Server. Its content
// is encrypted before it leaves the client; all else the server sees.
type Deposit struct {
	// UUID is the server's name for it: opaque, at least 26 random characters.
	UUID string
	// Owner is the fingerprint of the client that made it.
	Owner string
	// Label is the owner's name for it, at most MaxLabel bytes, which no other live
	// deposit of his has.
	Label string
	// Description is free text of at most MaxDescription bytes.
	Description string
	Created     time.Time
	Expires     time.Time // zero: never
	Deleted     time.Time // zero: live; else when it was deleted, from which it can be brought back
	// Access are fingerprints of other clients of the same organization that may read
	// it; at most MaxAccess.
	Access []string
	// Digest is SHA-256 of the content, in hex, over which the owner has signed.
	Digest string
	// Content is an OpenPGP message; nil in lists.
	Content []byte
}

// Limits of a deposit, and of one answer of List.
const (
	MaxLabel       = 512
	MaxDescription = 4 << 10
	MaxAccess      = 100
	MaxContent     = 512 << 10
	MaxPage        = 1000
)

// Cursor tells List where to go on.
func (d *Deposit) Cursor() string { return d.Label + "\x00" + d.UUID }

// A Box is what a client can do with its deposits. All methods may be called at
// the same time, honour ctx, and return *claviger.Error. Kind Unavailable means
// that no server can be reached, or not both where both are needed, and that
// nothing was changed; Denied, that the client is unknown, disabled or expired.
type Box interface {
	// Put makes a deposit live and returns its uuid; in the same moment the deposit
	// that replaces names ("" is none) is so no more. Of d, Label, Description,
	// Expires, Access and Content count. Kinds KeyExists where another live deposit has
	// the label, KeyNotFound where replaces is not live, as when somebody else was
	// faster.
	Put(ctx context.Context, d Deposit, replaces string) (uuid string, err error)
	// Get returns a live deposit, with its content, whose digest and signature were
	// checked. Kind KeyNotFound.
	Get(ctx context.Context, uuid string) (Deposit, error)
	// Find is Get by label.
	Find(ctx context.Context, label string) (Deposit, error)
	// List returns the owner's live deposits, or with deleted those that were deleted
	// and can be brought back, whose label begins with prefix, in the order of their
	// labels, without content, and at most limit of them; a page without any is the
	// last. after is the Cursor of the
	// last of the page before; "" begins.
	List(ctx context.Context, prefix string, deleted bool, after string, limit int) ([]Deposit, error)
	// Delete makes deposits unreadable until they are brought back: all or none. Kind
	// KeyNotFound where one is not live.
	Delete(ctx context.Context, uuids ...string) error
	// Undelete brings deposits back: all or none. Kinds KeyNotFound where one is not
	// deleted, KeyExists where a label was taken meanwhile.
	Undelete(ctx context.Context, uuids ...string) error
	// Purge removes deposits that were deleted for good: all or none. Kind
	// KeyNotFound where one is not deleted.
	Purge(ctx context.Context, uuids ...string) error
}
