package keyring

import (
	"context"
	"sync"

	"claviger"
)

// keyLocks allows one management operation at a time for each key. Operations on different keys do not wait for each
// other. Readers take no lock.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	held  chan struct{} // holds one element while an operation has the lock
	users int           // operations that have the lock or wait for it
}

// lock waits for the lock of the key, or until ctx is done (kind Unavailable).
func (l *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	k := l.held[key]
	if k == nil {
		if l.held == nil {
			l.held = map[string]*keyLock{}
		}
		k = &keyLock{held: make(chan struct{}, 1)}
		l.held[key] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, key)
		}
	}
	select {
	case k.held <- struct{}{}:
		return func() { <-k.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, claviger.Errorf("keyring.manage", claviger.Unavailable, key, "another operation on the key is "+
			"under way: %w", context.Cause(ctx))
	}
}
