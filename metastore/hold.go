package metastore

import "context"

// Holder is implemented by a store that can lose a held lock, because it is reached over a network.
type Holder interface {
	// Hold is Lock, or TryLock if wait is false, for work that must stop when the lock is
	// lost. held is a context that ends when the lock is lost, with a cause of kind
	// Unavailable that names the lock. It also ends with ctx, and at unlock.
	Hold(ctx context.Context, name string, wait bool) (held context.Context, unlock func(), ok bool, err error)
}

// Locks are the named locks of a Store.
type Locks interface {
	Lock(ctx context.Context, name string) (unlock func(), err error)
	TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error)
}

// Hold takes a named lock of a store. held is the context for the work that needs the lock; it ends when the lock is
// lost. ok is false if the lock is taken and wait is false.
func Hold(ctx context.Context, s Locks, name string, wait bool) (held context.Context, unlock func(), ok bool,
	err error) {
	if h, can := s.(Holder); can {
		return h.Hold(ctx, name, wait)
	}
	if wait {
		unlock, err = s.Lock(ctx, name)
		return ctx, unlock, err == nil, err
	}
	unlock, ok, err = s.TryLock(ctx, name)
	return ctx, unlock, ok, err
}
