package keytrustee

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/trustee"
)

// newestFile is in the .keytrustee folder. It remembers the newest change that the Key Trustee
// Server acknowledged to this host, so that the KMS notices a server that was restored from an
// older backup. It belongs to this host and is never copied.
const newestFile = "newest.json"

// skew is how far the clocks of two hosts of one KMS may differ: a change of another host may look
// that much older than it is.
const skew = 2 * trustee.MaxSkew

// newest is the change that is remembered.
type newest struct {
	// N orders the changes of this host: a change has a higher number than the change of the same
	// key that it was made on. Times do not order them, because a clock may have been ahead.
	N       uint64    `json:"n,omitempty"`
	Key     string    `json:"key"`
	Label   string    `json:"label"`
	UUID    string    `json:"uuid"`
	At      time.Time `json:"at"`                // zero if this host's clock was ahead
	Deleted bool      `json:"deleted,omitempty"` // the key was purged, and must not be found
	// Version is the key's newest version at that time, and Made when the key was made. Other hosts
	// add versions and remove none.
	Version string `json:"version,omitempty"`
	Made    int64  `json:"made,omitempty"`
	// Before are the newest changes of other keys, newest first.
	Before []newest `json:"before,omitempty"`
}

// others is how many changes of other keys are remembered: a change after the restoration of an
// older backup must not hide what was lost.
const others = 15

// memory keeps the newest change. A nil memory keeps nothing.
type memory struct {
	folder *trustee.Folder

	mu   sync.Mutex
	last newest
	read bool   // last is what the file holds
	n    uint64 // of the change that was begun last

	checked time.Time // when the provider's Check last asked the server
	why     error     // the result
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

// begin numbers a change. It is called after the key was read on which the change is made, and
// before the change is sent to the Key Trustee Server.
func (m *memory) begin() uint64 {
	if m == nil {
		return 0
	}
	_, _ = m.load() // a file that cannot be read was reported at the start
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, old := range append([]newest{m.last}, m.last.Before...) {
		m.n = max(m.n, old.N)
	}
	m.n++
	return m.n
}

// remember stores a change that was acknowledged, and returns the remembered changes that were made
// by a clock that was ahead. The Key Trustee Server refuses requests of a wrong clock, so the clock
// of n is right.
func (m *memory) remember(n newest) (ahead []newest, err error) {
	if m == nil {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	all := []newest{n}
	for _, old := range append([]newest{m.last}, m.last.Before...) {
		switch {
		case old.Key == "":
			continue
		case old.Key == n.Key && old.N > n.N:
			return nil, nil // the newer change ended first
		case old.Key == n.Key && n.Deleted && !old.Deleted && old.Made != n.Made:
			return nil, nil // a deleted key was purged, and another of its name is there
		case old.Key == n.Key:
			continue
		}
		old.Before = nil
		if old.ahead(n.At) {
			ahead = append(ahead, old)
			old.At = time.Time{} // for good: later the time would not be ahead any more
		}
		all = append(all, old)
	}
	slices.SortStableFunc(all, func(a, b newest) int { return cmp.Compare(b.N, a.N) })
	m.last = all[0]
	m.last.Before = all[1:min(len(all), 1+others)]
	text, err := json.Marshal(m.last)
	if err == nil {
		err = m.folder.WriteFile(newestFile, text)
	}
	return ahead, err
}

// ahead reports whether a change was made by a clock that was ahead of this time, which is right.
// Then the time of the change says nothing.
func (n *newest) ahead(now time.Time) bool { return n.At.After(now.Add(skew)) }

// changed records change number n, which put a deposit with that label.
func (p *Provider) changed(n uint64, k *keyDoc, label, uuid string) {
	p.memorize(newest{N: n, Key: k.Name, Label: label, UUID: uuid, At: p.cfg.Now().UTC(),
		Version: k.Versions[len(k.Versions)-1].Name, Made: k.Created})
}

// checkEvery is how often Check asks the server for all remembered changes.
const checkEvery = time.Minute

// intact checks regularly whether the Key Trustee Server has what is remembered.
func (p *Provider) intact(ctx context.Context) error {
	m := p.cfg.memory
	if m == nil {
		return nil
	}
	m.mu.Lock()
	due := time.Since(m.checked) >= checkEvery
	if due {
		m.checked = time.Now()
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

// noted stores the result of a check of everything that is remembered, and returns it. If the check
// had no result, the earlier one stays. Material that the server may have lost is not used from
// memory.
func (p *Provider) noted(err error) error {
	m := p.cfg.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if claviger.Is(err, claviger.Unavailable) {
		return m.why // requests for keys report more
	}
	m.why = err
	if err != nil {
		p.kept.clear()
	}
	return err
}

// changeable refuses a change of a key if this KMS's private key is not in its folder any more, or
// if the Key Trustee Server was restored from an older backup, because the change would hide what
// was lost.
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
		return nil //nolint:nilerr // reported at the start
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
		// If nothing of these changes is lost, others may be.
		if _, err = p.lost(ctx, ask...); err != nil {
			why = p.noted(err)
		}
	}
	if why != nil {
		return claviger.E(op, claviger.Unavailable, key, why)
	}
	return nil
}

func (p *Provider) memorize(n newest) {
	ahead, err := p.cfg.memory.remember(n)
	for _, old := range ahead {
		p.cfg.Log.Warn(p.clockWas(&old))
	}
	if err != nil {
		p.cfg.Log.Warn("the newest change cannot be remembered, so that a Key Trustee Server restored from an older "+
			"backup might not be noticed", "err", err)
	}
}

// atStart checks everything that is remembered.
func (p *Provider) atStart(ctx context.Context) (warning string, err error) {
	m := p.cfg.memory
	n, err := m.load()
	if err != nil {
		return fmt.Sprintf("%s cannot be read (%v), so that a Key Trustee Server restored from an older backup would "+
			"not be noticed", filepath.Join(m.folder.Path, newestFile), err), nil
	}
	return p.lost(ctx, append([]newest{n}, n.Before...)...)
}

// lost checks whether the Key Trustee Server has what it acknowledged to this host. The error says
// that it has not, or has kind Unavailable; the warning says that it may not.
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

// lacksVersion reports whether the key exists, as the same key, without the version that was
// acknowledged.
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

// clockWas says that a change has a time in the future.
func (p *Provider) clockWas(n *newest) string {
	return fmt.Sprintf("%s has a change of key %q at %s, which is still to come: the clock of this host was ahead "+
		"then, or is behind now. Whether the Key Trustee Server has what this change made is seen by the key's "+
		"versions alone, and not by times",
		filepath.Join(p.cfg.memory.folder.Path, newestFile), n.Key, n.At.Format(time.RFC3339))
}

func (p *Provider) lostChange(ctx context.Context, n *newest) (warning string, err error) {
	file := filepath.Join(p.cfg.memory.folder.Path, newestFile)
	// Wherever the key is now, its deposit is not older.
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
	future := n.ahead(p.cfg.Now())
	if future || n.At.IsZero() {
		at = "a time that its clock did not know"
	}
	lacks := false
	if !same {
		if lacks, err = p.lacksVersion(ctx, n); err != nil {
			return "", err
		}
	}
	switch {
	case lacks:
		return "", fmt.Errorf("the Key Trustee Server has acknowledged version %s of key %q at %s, and has that key "+
			"without it: it was restored from an older backup, and what was made or rolled since then is lost unless "+
			"a newer one is restored, or claviger trustee recover there and claviger trustee adopt here bring it "+
			"back. If it is given up, remove %s and start again",
			n.Version, n.Key, at, file)
	case !same && latest.IsZero():
		return fmt.Sprintf("key %q, which this host changed at %s, is not at the Key Trustee Server: another host "+
			"has purged it, or the server was restored from an older backup", n.Key, at), nil
	case future:
		return p.clockWas(n), nil
	case same:
	case latest.Before(n.At.Add(-skew)):
		return "",
			fmt.Errorf("the Key Trustee Server has key %q as of %s, and has acknowledged a change of it at %s: it "+
				"was restored from an older backup, and what was made or rolled since then is lost unless a newer "+
				"one is restored, or claviger trustee recover there and claviger trustee adopt here bring it "+
				"back. If it is given up, remove %s and start again",
				n.Key, latest.UTC().Format(time.RFC3339), at, file)
	case latest.Before(n.At):
		return fmt.Sprintf("the Key Trustee Server has key %q as of %s, and this host changed it at %s: another "+
			"host's clock is behind, or the server was restored from a backup of just before", n.Key,
			latest.UTC().Format(time.RFC3339), at), nil
	}
	return "", nil
}
