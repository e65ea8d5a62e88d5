package keyring

import (
	"context"
	"sync"

	"claviger"
)

// keyLocks lets one management operation at a time at each key, and never lets
// one key wait for another. Readers don't take it.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	turn  chan struct{} // holds one element while somebody has the key
	users int           // who has it or waits for it
}

// lock waits for its turn at the key, or until ctx is done (kind Unavailable).
func (l *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	k := l.held[key]
	if k == nil {
		if l.held == nil {
			l.held = map[string]*keyLock{}
		}
		k = &keyLock{turn: make(chan struct{}, 1)}
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
	case k.turn <- struct{}{}:
		return func() { <-k.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, claviger.Errorf("keyring.manage", claviger.Unavailable, key, "another operation on the key is under way: %w", context.Cause(ctx))
	}
}
