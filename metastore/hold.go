package metastore

import "context"

// Holder is implemented by a store whose locks can be lost while they are held:
// one that is reached over a network.
type Holder interface {
	// Hold is Lock, or TryLock where wait is false, for who must stop where the lock
	// is lost: held ends then, with a cause of kind Unavailable that names the lock.
	// It ends with ctx, too, and at unlock.
	Hold(ctx context.Context, name string, wait bool) (held context.Context, unlock func(), ok bool, err error)
}

// Locks are the named locks of a Store.
type Locks interface {
	Lock(ctx context.Context, name string) (unlock func(), err error)
	TryLock(ctx context.Context, name string) (unlock func(), ok bool, err error)
}

// Hold takes a named lock of a store and returns the context under which to work:
// it ends where the lock is lost. ok is false where another has the lock and wait
// is false.
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
