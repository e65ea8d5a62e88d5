package authn

import (
	"crypto/sha256"
	"sync"
)

// digest is the SHA-256 of a credential. A verified credential is remembered by its digest, so the list of remembered
// credentials contains none that a client could send.
type digest [sha256.Size]byte

func digestOf(credential string) digest {
	const usual = 512 // bytes: a credential up to this length is copied to the stack, not to the heap
	return sha256.Sum256(append(make([]byte, 0, usual), credential...))
}

// rememberedLimit is the number of credentials of a kind (tokens or cookies) in each half of a remembered. An entry
// usually takes 250 bytes, and at most about 1,200, because the length of names is limited.
const rememberedLimit = 4096

// remembered maps the digests of verified credentials to their content. It has two halves of up to rememberedLimit
// entries each. A full newer half replaces the older half, whose entries are then forgotten. get copies an entry of the
// older half to the newer half, so entries in use stay.
type remembered[V any] struct {
	mu           sync.RWMutex
	newer, older map[digest]V
}

func (r *remembered[V]) get(d digest) (v V, ok bool) {
	r.mu.RLock()
	if v, ok = r.newer[d]; ok {
		r.mu.RUnlock()
		return v, true
	}
	v, ok = r.older[d]
	r.mu.RUnlock()
	if !ok {
		return v, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok = r.older[d]; ok { // nobody has removed it meanwhile
		r.store(d, v)
	}
	return v, ok
}

func (r *remembered[V]) put(d digest, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.store(d, v)
}

// store is put for a caller that holds the lock.
func (r *remembered[V]) store(d digest, v V) {
	if _, there := r.newer[d]; !there && len(r.newer) >= rememberedLimit {
		r.older, r.newer = r.newer, nil
	}
	if r.newer == nil {
		r.newer = make(map[digest]V)
	}
	r.newer[d] = v
}

// remove removes the entries that match. The caller holds the lock.
func (r *remembered[V]) remove(match func(V) bool) {
	for _, half := range []map[digest]V{r.newer, r.older} {
		for d, v := range half {
			if match(v) {
				delete(half, d)
			}
		}
	}
}
