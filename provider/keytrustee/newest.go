package keytrustee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"claviger/trustee"
)

// newestFile is in the .keytrustee folder and remembers the newest change that the
// Key Trustee Server has acknowledged to this host, so that a server that was
// restored from an older backup is noticed. It is this host's own; nobody copies it.
const newestFile = "newest.json"

// skew is how far the clocks of two hosts of one KMS may differ: a change of
// another host may seem that much older than it is.
const skew = 2 * trustee.MaxSkew

// newest is the change that is remembered.
type newest struct {
	Key     string    `json:"key"`
	Label   string    `json:"label"`
	UUID    string    `json:"uuid"`
	At      time.Time `json:"at"`
	Deleted bool      `json:"deleted,omitempty"` // the key was purged: nothing is to be found
}

// memory of the newest change. A nil one remembers nothing.
type memory struct {
	folder *trustee.Folder

	mu   sync.Mutex
	last newest
}

// remember keeps a change that was acknowledged.
func (m *memory) remember(n newest) error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n.At.Before(m.last.At) {
		return nil // of two that ended in another order
	}
	m.last = n
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return m.folder.WriteFile(newestFile, text)
}

// changed tells the memory of a change that put a deposit with that label.
func (p *Provider) changed(key, label, uuid string) {
	p.memorize(newest{Key: key, Label: label, UUID: uuid, At: p.cfg.Now().UTC()})
}

func (p *Provider) memorize(n newest) {
	if err := p.cfg.memory.remember(n); err != nil {
		p.cfg.Log.Warn("the newest change cannot be remembered, so that a Key Trustee Server restored from an older backup might not be noticed", "err", err)
	}
}

// lost asks whether the Key Trustee Server has what it acknowledged to this host
// last. The error says that it has not; the warning, that it may not have.
func (p *Provider) lost(ctx context.Context) (warning string, err error) {
	m := p.cfg.memory
	text, err := m.folder.ReadFile(newestFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	file := filepath.Join(m.folder.Path, newestFile)
	var n newest
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	if err != nil {
		return fmt.Sprintf("%s cannot be read (%v), so that a Key Trustee Server restored from an older backup would not be noticed", file, err), nil
	}
	if n.Deleted {
		return "", nil
	}
	// Wherever the key is by now, the deposit that it is in is not older.
	var latest time.Time
	same := false
	for _, label := range []string{keyPrefix + n.Key, deletedPrefix + n.Key + "/"} {
		err := p.list(ctx, label, false, func(d *trustee.Deposit) {
			same = same || d.UUID == n.UUID
			if (d.Label == label || ofDeleted(d.Label) == n.Key) && d.Created.After(latest) {
				latest = d.Created
			}
		})
		if err != nil {
			return "", failed("keytrustee.lost", n.Key, err)
		}
	}
	at := n.At.Format(time.RFC3339)
	switch {
	case same:
	case latest.IsZero():
		return fmt.Sprintf("key %q, which this host changed at %s, is not at the Key Trustee Server: another host has purged it, or the server was restored from an older backup", n.Key, at), nil
	case latest.Before(n.At.Add(-skew)):
		return "",
			fmt.Errorf("the Key Trustee Server has key %q as of %s, and has acknowledged a change of it at %s: it was restored from an older backup, and what was made or rolled since then is lost unless a newer one is restored. If it is given up, remove %s and start again",
				n.Key, latest.UTC().Format(time.RFC3339), at, file)
	case latest.Before(n.At):
		return fmt.Sprintf("the Key Trustee Server has key %q as of %s, and this host changed it at %s: another host's clock is behind, or the server was restored from a backup of just before", n.Key, latest.UTC().Format(time.RFC3339), at), nil
	}
	return "", nil
}
