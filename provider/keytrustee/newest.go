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

	"claviger"
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
	// Version is the key's newest version then, and Made when the key was made: other
	// hosts add versions to it and take none away.
	Version string `json:"version,omitempty"`
	Made    int64  `json:"made,omitempty"`
	// Before are the newest changes of other keys, newest first.
	Before []newest `json:"before,omitempty"`
}

// others is how many changes of other keys are remembered: a change that is made after
// the restoration of an older backup must not hide what was lost.
const others = 15

// memory of the newest change. A nil one remembers nothing.
type memory struct {
	folder *trustee.Folder

	mu   sync.Mutex
	last newest
	read bool // last is what the file holds

	asked time.Time // when the provider's Check asked last
	why   error     // what it found
}

// load reads the file, once.
func (m *memory) load() (newest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.read {
		return m.last, nil
	}
	text, err := m.folder.ReadFile(newestFile)
	if errors.Is(err, fs.ErrNotExist) {
		m.read = true
		return newest{}, nil
	}
	var n newest
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	m.read = true // the next change writes it anew
	if err == nil {
		m.last = n
	}
	return m.last, err
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
	n.Before = nil
	for _, old := range append([]newest{m.last}, m.last.Before...) {
		old.Before = nil
		if old.Key != "" && old.Key != n.Key && len(n.Before) < others {
			n.Before = append(n.Before, old)
		}
	}
	m.last = n
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return m.folder.WriteFile(newestFile, text)
}

// changed tells the memory of a change that put a deposit with that label.
func (p *Provider) changed(k *keyDoc, label, uuid string) {
	p.memorize(newest{Key: k.Name, Label: label, UUID: uuid, At: p.cfg.Now().UTC(), Version: k.Versions[len(k.Versions)-1].Name, Made: k.Created})
}

// checkEvery is how often Check asks for all changes that are remembered.
const checkEvery = time.Minute

// intact asks, now and then, whether the Key Trustee Server has what is remembered.
func (p *Provider) intact(ctx context.Context) error {
	m := p.cfg.memory
	if m == nil {
		return nil
	}
	m.mu.Lock()
	due := time.Since(m.asked) >= checkEvery
	if due {
		m.asked = time.Now()
	}
	why := m.why
	m.mu.Unlock()
	if !due {
		return why
	}
	n, err := m.load()
	if err == nil {
		_, err = p.lost(ctx, append([]newest{n}, n.Before...)...)
	}
	return p.noted(err)
}

// noted keeps what was found. Material that the server may not have any more is not
// used from memory.
func (p *Provider) noted(err error) error {
	if claviger.Is(err, claviger.Unavailable) {
		return nil // it was not found out; who asks for keys says more
	}
	p.cfg.memory.mu.Lock()
	p.cfg.memory.why = err
	p.cfg.memory.mu.Unlock()
	if err != nil {
		p.kept.clear()
	}
	return err
}

// changeable refuses a change of a key where this KMS's private key is not in its folder
// any more, and where the Key Trustee Server was restored from an older backup: it would
// hide what was lost.
func (p *Provider) changeable(ctx context.Context, op, key string) error {
	if err := p.cfg.place.check(p.cfg.Now()); err != nil {
		return claviger.E(op, claviger.Unavailable, key, err)
	}
	m := p.cfg.memory
	if m == nil {
		return nil
	}
	n, err := m.load()
	if err != nil {
		return nil //nolint:nilerr // it was said at the start
	}
	ask := []newest{n}
	for _, old := range n.Before {
		if old.Key == key {
			ask = append(ask, old)
		}
	}
	m.mu.Lock()
	why := m.why
	m.mu.Unlock()
	if why == nil {
		_, err = p.lost(ctx, ask...)
		why = p.noted(err)
	}
	if why != nil {
		return claviger.E(op, claviger.Unavailable, key, why)
	}
	return nil
}

func (p *Provider) memorize(n newest) {
	if err := p.cfg.memory.remember(n); err != nil {
		p.cfg.Log.Warn("the newest change cannot be remembered, so that a Key Trustee Server restored from an older backup might not be noticed", "err", err)
	}
}

// atStart asks for all that is remembered.
func (p *Provider) atStart(ctx context.Context) (warning string, err error) {
	m := p.cfg.memory
	n, err := m.load()
	if err != nil {
		return fmt.Sprintf("%s cannot be read (%v), so that a Key Trustee Server restored from an older backup would not be noticed", filepath.Join(m.folder.Path, newestFile), err), nil
	}
	return p.lost(ctx, append([]newest{n}, n.Before...)...)
}

// lost asks whether the Key Trustee Server has what it acknowledged to this host. The
// error says that it has not, or is of kind Unavailable; the warning, that it may not.
func (p *Provider) lost(ctx context.Context, changes ...newest) (warning string, err error) {
	for _, n := range changes {
		if n.Key == "" || n.Deleted {
			continue
		}
		text, err := p.lostChange(ctx, &n)
		if err != nil {
			return "", err
		}
		if warning == "" {
			warning = text
		}
	}
	return warning, nil
}

// lacksVersion tells whether the key is there, as the one that it was, without the
// version that was acknowledged.
func (p *Provider) lacksVersion(ctx context.Context, n *newest) (bool, error) {
	const op = "keytrustee.lost"
	if n.Version == "" {
		return false, nil
	}
	docs, err := p.deletedDocs(ctx, op, n.Key)
	if err != nil {
		return false, err
	}
	k, err := p.key(ctx, op, n.Key)
	if err != nil {
		return false, err
	}
	if k != nil {
		docs = append(docs, k)
	}
	there := false
	for _, k := range docs {
		if k.Created == n.Made {
			if _, ok := k.find(n.Version); ok {
				return false, nil
			}
			there = true
		}
	}
	return there, nil
}

func (p *Provider) lostChange(ctx context.Context, n *newest) (warning string, err error) {
	file := filepath.Join(p.cfg.memory.folder.Path, newestFile)
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
	lacks := false
	if !same {
		if lacks, err = p.lacksVersion(ctx, n); err != nil {
			return "", err
		}
	}
	switch {
	case same:
	case lacks:
		return "", fmt.Errorf("the Key Trustee Server has acknowledged version %s of key %q at %s, and has that key without it: it was restored from an older backup, and what was made or rolled since then is lost unless a newer one is restored. If it is given up, remove %s and start again",
			n.Version, n.Key, at, file)
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
