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

// newestFile is a file in the .keytrustee folder. It has the newest changes that the Key Trustee Server acknowledged to
// this host. With them the KMS notices a server that was restored from an older backup. The file belongs to this host,
// and must not be copied to another.
const newestFile = "newest.json"

// skew is the largest difference of the clocks of two hosts of one KMS. A change of another host may have a time that
// is too early by skew.
const skew = 2 * trustee.MaxSkew

// newest is a remembered change.
type newest struct {
	// N orders the changes of this host. A change of a key has a higher number than the change on which it is based.
	// Times cannot order them, because a clock may have been ahead.
	N       uint64    `json:"n,omitempty"`
	Key     string    `json:"key"`
	Label   string    `json:"label"`
	UUID    string    `json:"uuid"`
	At      time.Time `json:"at"`                // zero if this host's clock was ahead
	Deleted bool      `json:"deleted,omitempty"` // the key was purged, so the server need not have it
	// Version was the key's newest version at that time. Made is the creation time of the key. Other hosts may add
	// versions, but cannot remove one.
	Version string `json:"version,omitempty"`
	Made    int64  `json:"made,omitempty"`
	// Before has the newest changes of other keys, newest first.
	Before []newest `json:"before,omitempty"`
}

// maxOthers is the number of remembered changes of other keys. With them, a change that is made after an older backup
// was restored does not hide the loss.
const maxOthers = 15

// memory stores the newest changes in newestFile. A nil memory stores nothing.
type memory struct {
	folder *trustee.Folder

	mu   sync.Mutex
	last newest
	read bool   // the file was read into last
	n    uint64 // number of the change that was begun last

	checked time.Time // time of the last full check of the server
	loss    error     // result of the checks; nil if the server lost nothing
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
	m.read = true // the next change rewrites an unreadable file
	if err == nil {
		m.last = n
	}
	return m.last, err
}

// begin returns the number of a new change. Call it after reading the key, and before sending the change to the Key
// Trustee Server.
func (m *memory) begin() uint64 {
	if m == nil {
		return 0
	}
	_, _ = m.load() // checkAtStart has reported an unreadable file
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, old := range append([]newest{m.last}, m.last.Before...) {
		m.n = max(m.n, old.N)
	}
	m.n++
	return m.n
}

// remember stores an acknowledged change. It returns the stored changes whose time is in the future of n. The time of n
// is right, because the Key Trustee Server refuses requests of a wrong clock.
func (m *memory) remember(n newest) (future []newest, err error) {
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
			return nil, nil // a newer change was acknowledged first
		case old.Key == n.Key && n.Deleted && !old.Deleted && old.Made != n.Made:
			return nil, nil // n purged a deleted key, and old belongs to the newer key of its name
		case old.Key == n.Key:
			continue
		}
		old.Before = nil
		if old.inFuture(n.At) {
			future = append(future, old)
			old.At = time.Time{} // erase the wrong time, so that no check uses it
		}
		all = append(all, old)
	}
	slices.SortStableFunc(all, func(a, b newest) int { return cmp.Compare(b.N, a.N) })
	m.last = all[0]
	m.last.Before = all[1:min(len(all), 1+maxOthers)]
	text, err := json.Marshal(m.last)
	if err == nil {
		err = m.folder.WriteFile(newestFile, text)
	}
	return future, err
}

// inFuture reports whether the time of a change is in the future of now, the right time. Then the clock was ahead, and
// the time of the change means nothing.
func (n *newest) inFuture(now time.Time) bool { return n.At.After(now.Add(skew)) }

// rememberPut remembers change number n, which put a deposit with that label.
func (p *Provider) rememberPut(n uint64, k *keyDoc, label, uuid string) {
	p.remember(newest{N: n, Key: k.Name, Label: label, UUID: uuid, At: p.cfg.Now().UTC(),
		Version: k.Versions[len(k.Versions)-1].Name, Made: k.Created})
}

// checkEvery is the shortest time between two full checks by Check.
const checkEvery = time.Minute

// checkRegularly fails if the Key Trustee Server lost a remembered change. It asks the server at most once in
// checkEvery, and returns the last result between.
func (p *Provider) checkRegularly(ctx context.Context) error {
	m := p.cfg.memory
	if m == nil {
		return nil
	}
	m.mu.Lock()
	due := time.Since(m.checked) >= checkEvery
	if due {
		m.checked = time.Now()
	}
	loss := m.loss
	m.mu.Unlock()
	if !due {
		return loss
	}
	n, err := m.load()
	if err == nil {
		_, err = p.findLoss(ctx, append([]newest{n}, n.Before...)...)
	}
	return p.recordCheck(err)
}

// recordCheck stores the result of a full check, and returns it. If the server did not answer the check, the earlier
// result stays. After a loss it wipes the material in memory, because the server may have lost its versions.
func (p *Provider) recordCheck(err error) error {
	m := p.cfg.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if claviger.Is(err, claviger.Unavailable) {
		return m.loss // requests for keys report that the server does not answer
	}
	m.loss = err
	if err != nil {
		p.kept.clear()
	}
	return err
}

// checkChange fails if the key must not be changed now: because this KMS's private key is no longer in its folder, or
// because the Key Trustee Server was restored from an older backup, and a change would hide the loss.
func (p *Provider) checkChange(ctx context.Context, op, key string) error {
	if err := p.cfg.watch.check(p.cfg.Now()); err != nil {
		return claviger.E(op, claviger.Unavailable, key, err)
	}
	m := p.cfg.memory
	if m == nil {
		return nil
	}
	n, err := m.load()
	if err != nil {
		return nil //nolint:nilerr // checkAtStart has reported it
	}
	changes := []newest{n}
	for _, old := range n.Before {
		if old.Key == key {
			changes = append(changes, old)
		}
	}
	m.mu.Lock()
	loss := m.loss
	m.mu.Unlock()
	if loss == nil {
		// Record a failure only: this check covers some of the changes, so its success does not mean that none is lost.
		if _, err = p.findLoss(ctx, changes...); err != nil {
			loss = p.recordCheck(err)
		}
	}
	if loss != nil {
		return claviger.E(op, claviger.Unavailable, key, loss)
	}
	return nil
}

// remember stores an acknowledged change, and logs problems.
func (p *Provider) remember(n newest) {
	future, err := p.cfg.memory.remember(n)
	for _, old := range future {
		p.cfg.Log.Warn(p.futureWarning(&old))
	}
	if err != nil {
		p.cfg.Log.Warn("could not store the newest change, so this KMS may not notice a Key Trustee Server that was "+
			"restored from an older backup", "err", err)
	}
}

// checkAtStart checks that the Key Trustee Server has all remembered changes.
func (p *Provider) checkAtStart(ctx context.Context) (warning string, err error) {
	m := p.cfg.memory
	n, err := m.load()
	if err != nil {
		return fmt.Sprintf("%s cannot be read (%v), so this KMS will not notice a Key Trustee Server that was "+
			"restored from an older backup", filepath.Join(m.folder.Path, newestFile), err), nil
	}
	return p.findLoss(ctx, append([]newest{n}, n.Before...)...)
}

// findLoss checks whether the Key Trustee Server still has these changes. A warning means that it may have lost one. An
// error means that it has lost one; kind Unavailable means that the server did not answer.
func (p *Provider) findLoss(ctx context.Context, changes ...newest) (warning string, err error) {
	for _, n := range changes {
		if n.Key == "" || n.Deleted {
			continue
		}
		text, err := p.findLossOf(ctx, &n)
		if err != nil {
			return "", err
		}
		if warning == "" {
			warning = text
		}
	}
	return warning, nil
}

// lacksVersion reports whether the same key still exists, but without the acknowledged version.
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
	exists := false
	for _, k := range docs {
		if k.Created == n.Made {
			if _, ok := k.find(n.Version); ok {
				return false, nil
			}
			exists = true
		}
	}
	return exists, nil
}

// futureWarning returns the warning that a change has a time in the future.
func (p *Provider) futureWarning(n *newest) string {
	return fmt.Sprintf("%s has a change of key %q at %s, which is in the future: the clock of this host was ahead "+
		"then, or is behind now. To find out whether the Key Trustee Server lost this change, the KMS compares "+
		"versions and not times",
		filepath.Join(p.cfg.memory.folder.Path, newestFile), n.Key, n.At.Format(time.RFC3339))
}

// findLossOf is findLoss for one change.
func (p *Provider) findLossOf(ctx context.Context, n *newest) (warning string, err error) {
	file := filepath.Join(p.cfg.memory.folder.Path, newestFile)
	same, latest, err := p.latestDeposit(ctx, n)
	if err != nil {
		return "", err
	}
	at := n.At.Format(time.RFC3339)
	future := n.inFuture(p.cfg.Now())
	if future || n.At.IsZero() {
		at = "an unknown time (the clock was wrong)"
	}
	lacks := false
	if !same {
		if lacks, err = p.lacksVersion(ctx, n); err != nil {
			return "", err
		}
	}
	const cure = "the server was restored from an older backup. Newer keys and versions are lost unless a newer " +
		"backup is restored, or claviger trustee recover on the server and claviger trustee adopt here bring them " +
		"back. To give them up, remove %s and start again"
	switch {
	case lacks:
		return "", fmt.Errorf("the Key Trustee Server acknowledged version %s of key %q at %s, and now has the key "+
			"without this version: "+cure, n.Version, n.Key, at, file)
	case !same && latest.IsZero():
		return fmt.Sprintf("this host changed key %q at %s, and the Key Trustee Server does not have the key: another "+
			"host has purged it, or the server was restored from an older backup", n.Key, at), nil
	case future:
		return p.futureWarning(n), nil
	case same:
	case latest.Before(n.At.Add(-skew)):
		return "", fmt.Errorf("the Key Trustee Server acknowledged a change of key %q at %s, and now has the key as "+
			"it was at %s: "+cure, n.Key, at, latest.UTC().Format(time.RFC3339), file)
	case latest.Before(n.At):
		return fmt.Sprintf("this host changed key %q at %s, and the Key Trustee Server has the key as it was at %s: "+
			"the clock of another host is behind, or the server was restored from a slightly older backup", n.Key, at,
			latest.UTC().Format(time.RFC3339)), nil
	}
	return "", nil
}

// latestDeposit finds the documents of the key of n, live or deleted. It returns whether one of them is the deposit of
// n, and the time of the latest one, which is zero if there is none.
func (p *Provider) latestDeposit(ctx context.Context, n *newest) (same bool, latest time.Time, err error) {
	for _, label := range []string{keyPrefix + n.Key, deletedPrefix + n.Key + "/"} {
		err := p.list(ctx, label, false, func(d *trustee.Deposit) {
			same = same || d.UUID == n.UUID
			if (d.Label == label || deletedKeyOf(d.Label) == n.Key) && d.Created.After(latest) {
				latest = d.Created
			}
		})
		if err != nil {
			return false, time.Time{}, boxError("keytrustee.lost", n.Key, err)
		}
	}
	return same, latest, nil
}
