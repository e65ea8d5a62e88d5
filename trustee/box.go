package trustee

import (
	"context"
	"time"
)

// A Deposit is a secret that a client stores at the Key Trustee Server. The content is encrypted
// before it leaves the client; the server can read everything else.
type Deposit struct {
	// UUID is the server's name of the deposit: opaque, at least 26 random characters.
	UUID string
	// Owner is the fingerprint of the client that made the deposit.
	Owner string
	// Label is the owner's name of the deposit, at most MaxLabel bytes. No two live deposits of an
	// owner have the same label.
	Label string
	// Description is free text of at most MaxDescription bytes.
	Description string
	Created     time.Time
	Expires     time.Time // zero for never
	Deleted     time.Time // zero for a live deposit; otherwise when it was deleted, and it can be brought back
	// Access are the fingerprints of other clients of the same organization that may read the
	// deposit, at most MaxAccess.
	Access []string
	// Digest is SHA-256 of the content, in hex. The owner has signed it.
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

// A Box is what a client can do with its deposits. All methods may be called at the same time,
// honour ctx, and return *claviger.Error. Kind Unavailable means that no server can be reached, or
// not both where both are needed, and that nothing was changed. Denied means that the client is
// unknown, disabled or expired.
type Box interface {
	// Put makes a deposit live and returns its uuid, and atomically retires the deposit named by
	// replaces ("" for none). It uses Label, Description, Expires, Access and Content of d. Kinds
	// KeyExists if another live deposit has the label, and KeyNotFound if replaces is not live, for
	// example because another host replaced it first.
	Put(ctx context.Context, d Deposit, replaces string) (uuid string, err error)
	// Get returns a live deposit with its content. Its digest and signature were checked. Kind
	// KeyNotFound.
	Get(ctx context.Context, uuid string) (Deposit, error)
	// Find is Get by label.
	Find(ctx context.Context, label string) (Deposit, error)
	// List returns a page of the owner's live deposits whose label begins with prefix, by label,
	// without content, and at most limit of them. With deleted it returns the deposits that were
	// deleted and can be brought back. after is the Cursor of the last deposit of the page before,
	// or "". An empty page is the last.
	List(ctx context.Context, prefix string, deleted bool, after string, limit int) ([]Deposit, error)
	// Delete makes deposits unreadable until they are brought back: all or none. Kind KeyNotFound
	// if one is not live.
	Delete(ctx context.Context, uuids ...string) error
	// Undelete brings deposits back: all or none. Kinds KeyNotFound if one is not deleted,
	// KeyExists if a label was taken meanwhile.
	Undelete(ctx context.Context, uuids ...string) error
	// Purge removes deleted deposits for good: all or none. Kind KeyNotFound if one is not deleted.
	Purge(ctx context.Context, uuids ...string) error
}
