package metastore

import "context"

// Holder is implemented by a store that can lose a lock while it is held, because the store is reached over a
// network.
type Holder interface {
	// Hold is Lock, or TryLock where wait is false, for work that must stop when the lock
	// is lost: held ends then, with a cause of kind Unavailable that names the lock.
	// It also ends with ctx, and at unlock.
	Hold(ctx context.Context, name string, wait bool) (held context.Context, unlock func(), ok bool, err error)
}

// Locks are the named locks of a Store.
type Locks interface {
	Lock(ctx context.Context, name string) (unlock func(), err error)
	TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error)
}

// Hold takes a named lock of a store and returns the context for the work under it, which ends when the lock is
// lost. ok is false where the lock is taken and wait is false.
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
