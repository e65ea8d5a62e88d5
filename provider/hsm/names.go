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

// lostNames remembers which key names that the store does not have were looked for on
// the token, and what was found.
type lostNames struct {
	mu    sync.Mutex
	asked map[string]lostName
}

type lostName struct {
	until time.Time
	label string // of a version that the token holds and the store has lost; "": there is none
}

func (l *lostNames) get(key string) (label string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.asked[key]
	return n.label, time.Now().Before(n.until)
}

func (l *lostNames) note(key, label string, last time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked == nil || len(l.asked) >= absentMost {
		l.asked = map[string]lostName{}
	}
	l.asked[key] = lostName{time.Now().Add(last), label}
}

// noKey is what a name is answered with that the store does not have: kind KeyNotFound,
// unless the token holds versions of it that the store has lost: then Unavailable, for
// the store may have them again. The token is asked once a minute a name. Where it
// cannot be asked, what surveys have seen counts: names of sources come here, too, and
// are served while the token is away.
func (p *Provider) noKey(ctx context.Context, op, key string) error {
	none := claviger.E(op, claviger.KeyNotFound, key, nil)
	if p.searches.turns == nil { // a command, which sees what is unknown by itself
		return none
	}
	label, ok := p.names.get(key)
	if !ok {
		next, err := p.store.NextNumber(ctx, key)
		if err != nil {
			return err
		}
		seen := p.unknownOf(key)
		switch label, err = p.lostVersion(ctx, key, next, seen); {
		case err == nil:
		case label != "" || len(seen) > 0:
			return claviger.Errorf(op, claviger.Unavailable, key, "the metastore does not know the key, and whether "+
				"the token still holds versions of it that it has lost cannot be found out: %w", err)
		default:
			return none
		}
	}
	if label == "" {
		return none
	}
	return claviger.Errorf(op, claviger.Unavailable, key,
		"%w: the token holds %s, and metastore %s does not know the key, so it is older than the token; restore the "+
			"newest one, or have the key's records made anew by claviger hsm adopt", provider.ErrLost, label,
		p.store.URI())
}

// ifLost is noKey for what answers without an error where there is no key.
func (p *Provider) ifLost(ctx context.Context, op, key string) error {
	if err := p.noKey(ctx, op, key); !claviger.Is(err, claviger.KeyNotFound) {
		return err
	}
	return nil
}

// lostVersion looks for a version of a key that the store has lost, "" where there is
// none: among seen, and under the number that the store would give next, where a key is
// that was made after the store was copied. A label beside an error is of a version
// that the token holds.
func (p *Provider) lostVersion(ctx context.Context, key string, next int, seen []string) (label string, err error) {
	within, cancel := context.WithTimeout(ctx, searchWait)
	defer cancel()
	turn, err := p.turn(within, key)
	if err != nil {
		return "", err
	}
	defer turn.end()
	if label, ok := p.names.get(key); ok {
		return label, nil
	}
	if err := turn.begin(); err != nil {
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
				p.names.note(key, "", nameRetry) // a token that hangs is not waited for each time
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
			p.names.note(key, label, absentFor)
		}
		return label, err
	}
	p.names.note(key, "", absentFor)
	return "", nil
}

// nameRetry is for how long a name counts as absent after the token could not be asked.
const nameRetry = 5 * time.Second

// anyLost tells whether one of the objects is a version that the store does not know and
// never gave that number itself: what it has numbered, and does not have, was deleted.
func (p *Provider) anyLost(ctx context.Context, found []pkcs11.KeyInfo) (bool, error) {
	marked, err := p.mark(ctx, found)
	if err != nil {
		return false, err
	}
	for _, o := range marked {
		if o.Mark != Unknown {
			continue
		}
		p.noteUnknown(o)
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

// unknownOf returns the labels of a key's versions that the store does not know, as far
// as surveys and searches have found any.
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
