package keytrustee

import (
	"context"
	"sync"

	"claviger"
)

// maxSeen bounds the versions that are remembered.
const maxSeen = 1 << 16

// seen are the versions that this process has had from the Key Trustee Server, with the time at
// which their key was made. EDEKs of them were handed out, and wait in the queues of NameNodes and
// in files. If such a version is not found any more, the server may have been restored from an
// older backup.
type seen struct {
	mu   sync.Mutex
	made map[string]int64
}

func (s *seen) add(version string, made int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made == nil {
		s.made = make(map[string]int64)
	}
	for other := range s.made {
		if len(s.made) < maxSeen {
			break
		}
		delete(s.made, other)
	}
	s.made[version] = made
}

// forget removes versions that this process has ended.
func (s *seen) forget(versions []versionRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range versions {
		delete(s.made, v.Name)
	}
}

func (s *seen) find(version string) (made int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	made, ok = s.made[version]
	return made, ok
}

// absent is the error for a version that the key k does not name; k is nil if there is no key. Its
// kind is VersionNotFound, which is final to clients, unless the version existed before and is not
// known to have ended, or the server is known to have lost what it acknowledged.
func (p *Provider) absent(ctx context.Context, op, name, version string, k *keyDoc) error {
	none := claviger.E(op, claviger.VersionNotFound, version, nil)
	if m := p.cfg.memory; m != nil {
		m.mu.Lock()
		why := m.why
		m.mu.Unlock()
		if why != nil {
			return claviger.Errorf(op, claviger.Unavailable, version, "whether there was such a version is not "+
				"known: %w", why)
		}
	}
	made, had := p.seen.find(version)
	if !had {
		var noted bool
		if made, noted = p.cfg.memory.acknowledged(version); !noted {
			return none
		}
	}
	docs, err := p.deletedDocs(ctx, op, name)
	if err != nil {
		return err
	}
	if k != nil {
		docs = append(docs, k)
	}
	without := false
	for _, d := range docs {
		if _, ok := d.find(version); ok {
			return none // the version was deleted
		}
		without = without || d.Created == made
	}
	const restored = "the Key Trustee Server was restored from an older backup: restore a newer one, or take " +
		"claviger trustee recover there and claviger trustee adopt here; NameNodes that have EDEKs of that version " +
		"in their queues must be restarted"
	switch {
	case without: // a version ends only with its key
		return claviger.Errorf(op, claviger.Unavailable, version, "this version was at the Key Trustee Server, which "+
			"has its key without it now: "+restored)
	case had:
		return claviger.Errorf(op, claviger.Unavailable, version, "this version was at the Key Trustee Server, which "+
			"does not have its key any more: another host of this KMS has purged the key (then a restart of this one "+
			"ends this message), or "+restored)
	}
	return none
}

// acknowledged reports whether the file remembers that the server acknowledged a version.
func (m *memory) acknowledged(version string) (made int64, ok bool) {
	if m == nil {
		return 0, false
	}
	n, err := m.load()
	if err != nil {
		return 0, false
	}
	for _, old := range append([]newest{n}, n.Before...) {
		if old.Version == version && !old.Deleted {
			return old.Made, true
		}
	}
	return 0, false
}
