package hsm

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"claviger"
	"claviger/pkcs11"
	"claviger/provider"
)

// missingNames remembers for which key names the token was searched, and what was found. The store does not have these
// names.
type missingNames struct {
	mu    sync.Mutex
	byKey map[string]missingName
}

type missingName struct {
	until time.Time
	label string // of a version that the token holds and the store has lost; "" if there is none
}

func (l *missingNames) get(key string) (label string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.byKey[key]
	return n.label, time.Now().Before(n.until)
}

func (l *missingNames) put(key, label string, ttl time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byKey == nil || len(l.byKey) >= maxMissing {
		l.byKey = map[string]missingName{}
	}
	l.byKey[key] = missingName{time.Now().Add(ttl), label}
}

// missingKey returns the error for a key name that the store does not have. Its kind is KeyNotFound, unless the token
// holds versions of the key that the store has lost: then it is Unavailable, because the store may get them back. The
// token is searched once a minute for each name. If the token does not answer, the last surveys decide: keys of sources
// must be served even then, and missingKey is called for their names too.
func (p *Provider) missingKey(ctx context.Context, op, key string) error {
	none := claviger.E(op, claviger.KeyNotFound, key, nil)
	if p.searches.slots == nil { // in a command, which lists unknown objects itself
		return none
	}
	label, ok := p.missingNames.get(key)
	if !ok {
		next, err := p.store.NextNumber(ctx, key)
		if err != nil {
			return err
		}
		seen := p.unknownOf(key)
		switch label, err = p.lostVersion(ctx, key, next, seen); {
		case err == nil:
		case label != "" || len(seen) > 0:
			return claviger.Errorf(op, claviger.Unavailable, key, "the metastore does not know the key, and the "+
				"token does not answer whether it holds versions that the metastore has lost: %w", err)
		default:
			return none
		}
	}
	if label == "" {
		return none
	}
	return claviger.Errorf(op, claviger.Unavailable, key,
		"%w: the token holds %s, and metastore %s does not know the key, so the metastore is older than the "+
			"token; restore the newest metastore, or make the key's records again with claviger hsm adopt",
		provider.ErrLost, label, p.store.URI())
}

// errorIfLost is missingKey for calls that return no error if there is no key.
func (p *Provider) errorIfLost(ctx context.Context, op, key string) error {
	if err := p.missingKey(ctx, op, key); !claviger.Is(err, claviger.KeyNotFound) {
		return err
	}
	return nil
}

// lostVersion searches the token for a version of a key that the store has lost. It tries the labels in seen, and the
// number that the store would give next: a key that was made after the store was copied has that number. It returns ""
// if there is none. A label that comes with an error is of a version that the token holds.
func (p *Provider) lostVersion(ctx context.Context, key string, next int, seen []string) (label string, err error) {
	within, cancel := context.WithTimeout(ctx, searchWait)
	defer cancel()
	slot, err := p.acquireSearchSlot(within, key)
	if err != nil {
		return "", err
	}
	defer slot.release()
	if label, ok := p.missingNames.get(key); ok {
		return label, nil
	}
	if err := slot.count(); err != nil {
		return "", err
	}
	labels := seen
	if first := claviger.VersionName(key, fmt.Sprint(next)); !slices.Contains(labels, first) {
		labels = append(slices.Clone(labels), first)
	}
	for _, label := range labels {
		found, err := p.tok.FindLabel(within, label)
		if err != nil {
			if ctx.Err() == nil && len(seen) == 0 {
				p.missingNames.put(key, "", nameRetry) // so that not every request waits for a token that hangs
			}
			return "", err
		}
		if len(found) == 0 {
			continue
		}
		lost, err := p.anyLost(within, found)
		if err == nil && !lost {
			continue
		}
		if err == nil {
			p.missingNames.put(key, label, missingTTL)
		}
		return label, err
	}
	p.missingNames.put(key, "", missingTTL)
	return "", nil
}

// nameRetry is how long a name counts as missing after the token did not answer.
const nameRetry = 5 * time.Second

// anyLost reports whether one of the objects is a version that the store has lost: the store does not know it and never
// gave that number itself. If the store gave the number, the version was deleted.
func (p *Provider) anyLost(ctx context.Context, found []pkcs11.KeyInfo) (bool, error) {
	marked, err := p.markFound(ctx, found)
	if err != nil {
		return false, err
	}
	for _, o := range marked {
		if o.Mark != Unknown {
			continue
		}
		p.recordUnknown(o)
		n, numbered := claviger.VersionNumber(o.Label)
		if !numbered {
			return true, nil
		}
		if given, err := p.store.Numbered(ctx, o.Key(), n); err != nil || !given {
			return err == nil, err
		}
	}
	return false, nil
}

// unknownOf returns the labels of a key's versions that surveys and searches have found and the store does not know.
func (p *Provider) unknownOf(key string) (labels []string) {
	p.survey.mu.Lock()
	defer p.survey.mu.Unlock()
	for _, o := range p.survey.unknown {
		if o.Key() == key {
			labels = append(labels, o.Label)
		}
	}
	slices.Sort(labels)
	return labels
}
