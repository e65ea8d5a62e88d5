package keyring

import (
	"context"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/provider"
)

// DeletedKey is a deleted key that can come back, and when it was last used.
type DeletedKey struct {
	provider.Deleted
	// LastUse is when a version of it last wrapped or unwrapped, to the minute; zero
	// where it is known that none did. Where the key is older than the record of
	// uses, it is the latest of what is possible.
	LastUse time.Time
}

// softDeleter returns the primary, if it keeps deleted keys.
func (r *Ring) softDeleter(op, key string) (provider.SoftDeleter, error) {
	s, ok := r.cfg.Primary.(provider.SoftDeleter)
	if !ok {
		return nil, claviger.Errorf(op, claviger.Unsupported, key, "the provider %s destroys a key when it is deleted, so that there is nothing to undelete or purge", r.PrimaryURI())
	}
	return s, nil
}

// Deleted returns the deleted keys that can come back, longest deleted first.
// Kinds Denied, Unsupported.
func (r *Ring) Deleted(ctx context.Context, c claviger.Caller) ([]DeletedKey, error) {
	q, err := r.enter(ctx, &c, audit.GetDeletedKeys, nil, authz.Undelete, authz.Purge)
	if err != nil {
		return nil, err
	}
	soft, err := r.softDeleter("keyring.Deleted", "")
	if err != nil {
		return nil, err
	}
	keys, err := soft.Deleted(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]DeletedKey, len(keys))
	for i, k := range keys {
		last, err := r.lastUse(ctx, k)
		if err != nil {
			return nil, err
		}
		list[i] = DeletedKey{k, last}
	}
	q.ok(ctx, "", "")
	return list, nil
}

// Undelete brings back the key of that name that was deleted last. Kinds Denied,
// KeyDenied, KeyNotFound, KeyExists, Unsupported.
func (r *Ring) Undelete(ctx context.Context, c claviger.Caller, key string) error {
	const op = "keyring.Undelete"
	q, err := r.enter(ctx, &c, audit.UndeleteKey, &key, authz.Undelete)
	if err != nil {
		return err
	}
	soft, err := r.softDeleter(op, key)
	if err != nil {
		return err
	}
	unlock, err := r.manage.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := r.deletedOf(ctx, soft, key)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	last := &keys[len(keys)-1].Metadata
	if err := q.needKey(ctx, last, authz.KeyManagement); err != nil {
		return err
	}
	// A key that a migration made is the source's key under its rules. Any other is a
	// key under a name that may be a source's.
	if migrated, err := r.takenOver(ctx, last, nil); err != nil {
		return err
	} else if !migrated {
		if err := r.needFreeName(ctx, op, key); err != nil {
			return err
		}
	}
	defer r.forget(key)
	if err := soft.Undelete(ctx, key); err != nil {
		return err
	}
	q.ok(ctx, key, "")
	return nil
}

// Purge ends the deleted keys of that name for ever. Kind Invalid where one of
// them was used within Config.PurgeMinUnused; else those of Undelete.
func (r *Ring) Purge(ctx context.Context, c claviger.Caller, key string) error {
	const op = "keyring.Purge"
	q, err := r.enter(ctx, &c, audit.PurgeKey, &key, authz.Purge)
	if err != nil {
		return err
	}
	soft, err := r.softDeleter(op, key)
	if err != nil {
		return err
	}
	unlock, err := r.manage.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := r.deletedOf(ctx, soft, key)
	if err != nil {
		return err
	}
	if len(keys) == 0 { // what a purge that was broken off has left is asked for by the name alone
		if err := q.needKey(ctx, &claviger.Metadata{Name: key}, authz.KeyManagement); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if err := q.needKey(ctx, &k.Metadata, authz.KeyManagement); err != nil {
			return err
		}
		last, err := r.lastUse(ctx, k)
		if err != nil {
			return err
		}
		if free := last.Add(r.cfg.PurgeMinUnused); time.Now().Before(free) {
			return claviger.Errorf(op, claviger.Invalid, key,
				"key '%s', deleted %s, may have been used until %s, which is less than %v ago (claviger.purge.min.unused): it can be purged from %s on",
				key, stamp(k.Since), stamp(last), r.cfg.PurgeMinUnused, stamp(free.Add(time.Second)))
		}
	}
	defer r.forget(key)
	if err := soft.Purge(ctx, key); err != nil {
		return err
	}
	q.ok(ctx, key, "")
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (r *Ring) deletedOf(ctx context.Context, soft provider.SoftDeleter, key string) ([]provider.Deleted, error) {
	keys, err := soft.Deleted(ctx)
	if err != nil {
		return nil, err
	}
	var own []provider.Deleted
	for _, k := range keys {
		if k.Name == key {
			own = append(own, k)
		}
	}
	return own, nil
}

// lastUse returns the latest time at which a version of the key can have been used.
func (r *Ring) lastUse(ctx context.Context, k provider.Deleted) (time.Time, error) {
	if r.cfg.LastUses == nil {
		return k.Since, nil // it can have been until it was deleted
	}
	times, since, err := r.cfg.LastUses.LastUses(ctx, k.List...)
	if err != nil {
		return time.Time{}, err
	}
	var last time.Time
	if k.Created.Before(since) {
		last = since
	}
	for i, version := range k.List {
		for _, at := range []time.Time{times[i], r.used.at(version)} {
			if at.After(last) {
				last = at
			}
		}
	}
	return last, nil
}
