package keytrustee

import (
	"context"
	"sync"

	"claviger"
)

// maxSeen bounds the number of versions in seenVersions.
const maxSeen = 1 << 16

// seenVersions has the versions that this process got from the Key Trustee Server, with the creation time of their key.
// EDEKs of these versions are in files and in the queues of NameNodes. If the server lacks such a version later, the
// server may have been restored from an older backup.
type seenVersions struct {
	mu   sync.Mutex
	made map[string]int64 // creation time of the key, in milliseconds since 1970, by full version name
}

func (s *seenVersions) add(version string, made int64) {
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

// forget removes versions that this process has purged.
func (s *seenVersions) forget(versions []versionRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range versions {
		delete(s.made, v.Name)
	}
}

func (s *seenVersions) find(version string) (made int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	made, ok = s.made[version]
	return made, ok
}

// absent returns the error for a version that is not in the document k of its key; k is nil if there is no key. The
// kind is VersionNotFound only if no loss of the version is possible, because clients give up on this kind. It is
// Unavailable if the version existed and was not deleted, or if the server lost acknowledged changes.
func (p *Provider) absent(ctx context.Context, op, name, version string, k *keyDoc) error {
	none := claviger.E(op, claviger.VersionNotFound, version, nil)
	if m := p.cfg.memory; m != nil {
		m.mu.Lock()
		loss := m.loss
		m.mu.Unlock()
		if loss != nil {
			return claviger.Errorf(op, claviger.Unavailable, version, "the version may have existed: %w", loss)
		}
	}
	made, read := p.seen.find(version)
	if !read {
		var acknowledged bool
		if made, acknowledged = p.cfg.memory.acknowledged(version); !acknowledged {
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
	keyExists := false
	for _, d := range docs {
		if _, ok := d.find(version); ok {
			return none // the version was deleted
		}
		keyExists = keyExists || d.Created == made
	}
	const restored = "the Key Trustee Server was restored from an older backup: restore a newer backup, or run " +
		"claviger trustee recover on the server and claviger trustee adopt here. Restart the NameNodes that have " +
		"EDEKs of this version in their queues"
	switch {
	case keyExists: // only the purge of its key removes a version
		return claviger.Errorf(op, claviger.Unavailable, version, "the Key Trustee Server had this version, and now "+
			"has its key without it: "+restored)
	case read:
		return claviger.Errorf(op, claviger.Unavailable, version, "the Key Trustee Server had this version, and now "+
			"does not have its key: another host of this KMS has purged the key (then a restart of this process ends "+
			"this message), or "+restored)
	}
	return none
}

// acknowledged reports whether the server acknowledged the version, as far as the stored changes show. made is the
// creation time of its key.
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
