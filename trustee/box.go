package trustee

import (
	"context"
	"time"
)

// A Deposit is a secret that a client stores at the Key Trustee Server. The content is encrypted
// before it leaves the client; the server can read everything else.
type Deposit struct {
	// UUID names the deposit at the server: opaque, at least 26 random characters.
	UUID string
	// Owner is the fingerprint of the client that made the deposit.
	Owner string
	// Label is the name that the owner gave the deposit, at most MaxLabel bytes. Two live deposits of
	// an owner never have the same label.
	Label string
	// Description is free text of at most MaxDescription bytes.
	Description string
	Created     time.Time
	Expires     time.Time // zero for never
	Deleted     time.Time // when the deposit was deleted, but not purged; zero for a live deposit
	// Access holds the fingerprints of other clients of the same organization that may read the
	// deposit, at most MaxAccess.
	Access []string
	// Digest is the SHA-256 of the content, in hex. The owner has signed it.
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

// Cursor is the argument after of List for the next page.
func (d *Deposit) Cursor() string { return d.Label + "\x00" + d.UUID }

// A Box holds the deposits of one client. All methods may be called at the same time, end when ctx
// ends, and return *claviger.Error. Kind Unavailable means that no server can be reached, or only
// one where both are needed, and that nothing was changed. Kind Denied means that the client is
// unknown, disabled or expired.
type Box interface {
	// Put makes a deposit live and returns its uuid, and atomically retires the deposit named by
	// replaces ("" for none). It uses Label, Description, Expires, Access and Content of d. Kinds
	// KeyExists if another live deposit has the label, and KeyNotFound if replaces is not live, for
	// example because another host replaced it first.
	Put(ctx context.Context, d Deposit, replaces string) (uuid string, err error)
	// Get returns a live deposit with its content, and checks the digest and the signature. Kind
	// KeyNotFound.
	Get(ctx context.Context, uuid string) (Deposit, error)
	// Find is like Get, but by label.
	Find(ctx context.Context, label string) (Deposit, error)
	// List returns a page of at most limit live deposits of the owner whose label begins with prefix,
	// without content, sorted by label. If deleted is true, it returns deleted deposits instead.
	// after is the Cursor of the last deposit of the page before, or "". After the last page comes an
	// empty page.
	List(ctx context.Context, prefix string, deleted bool, after string, limit int) ([]Deposit, error)
	// Delete makes deposits unreadable until Undelete: all or none. Kind KeyNotFound if one is not
	// live.
	Delete(ctx context.Context, uuids ...string) error
	// Undelete makes deleted deposits live again: all or none. Kinds KeyNotFound if one is not
	// deleted, KeyExists if another live deposit has one of the labels.
	Undelete(ctx context.Context, uuids ...string) error
	// Purge destroys deleted deposits: all or none. Kind KeyNotFound if one is not deleted.
	Purge(ctx context.Context, uuids ...string) error
}
