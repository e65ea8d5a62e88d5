package keyring

import (
	"context"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/metastore"
	"claviger/provider"
	"claviger/trace"
)

// DeletedKey is a deleted key that can come back, and when it was last used.
type DeletedKey struct {
	provider.Deleted
	// LastUse is the time of the last recorded use of a version of the key; zero: no use is recorded. Uses of another
	// node in the last minute, or of a node that could not write, are not recorded: see Purge. If the key is older than
	// the record of uses, LastUse is the latest possible time.
	LastUse time.Time
}

// Deleted returns the deleted keys that can be undeleted and that the caller may manage, in the order of their
// deletion. Kinds Denied, Unsupported.
func (r *Ring) Deleted(ctx context.Context, c claviger.Caller) (_ []DeletedKey, err error) {
	ctx, span := trace.Start(ctx, "keyring.Deleted")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GetDeletedKeys, nil, authz.Undelete, authz.Purge)
	if err != nil {
		return nil, err
	}
	soft, err := r.primary.softDeleter("keyring.Deleted", "")
	if err != nil {
		return nil, err
	}
	keys, err := soft.Deleted(ctx)
	if err != nil {
		return nil, err
	}
	list := []DeletedKey{}
	for _, k := range keys {
		if !q.mayManage(k.ACLName()) {
			continue
		}
		last, err := r.lastUse(ctx, k)
		if err != nil {
			return nil, err
		}
		list = append(list, DeletedKey{k, last})
	}
	q.ok(ctx, "", "")
	return list, nil
}

// Undelete brings back a deleted key. key is its name, and version the full name of one of its versions. If version is
// "", Undelete brings back the key of that name that was deleted last, among those that the caller may manage. Kinds
// Denied, KeyDenied, KeyNotFound, KeyExists, Unsupported.
func (r *Ring) Undelete(ctx context.Context, c claviger.Caller, key, version string) (err error) {
	const op = "keyring.Undelete"
	ctx, span := trace.Start(ctx, op)
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.UndeleteKey, &key, authz.Undelete)
	if err != nil {
		return err
	}
	soft, err := r.primary.softDeleter(op, key)
	if err != nil {
		return err
	}
	unlock, err := r.manage.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := r.primary.deletedOf(ctx, key, version)
	if err != nil {
		return err
	}
	if keys, err = q.manageable(ctx, keys); err != nil {
		return err
	}
	if len(keys) == 0 {
		return q.noDeleted(ctx, op, key, version)
	}
	last := &keys[len(keys)-1]
	// The source may have a key of that name. If a migration made the deleted key, the source's key is the same key.
	// If not, it is another key, and then the name is not free.
	origins, err := r.origins.of(ctx, last.Name)
	if err != nil {
		return err
	}
	migrated := slices.ContainsFunc(origins, func(o Origin) bool { return o.madeHere(&last.Metadata) })
	if migrated {
		err = r.waitForSource(ctx, op, key, func() error {
			if err := r.needNoNewer(ctx, op, &last.Metadata); err != nil {
				return err
			}
			// The source may have rolled to a version of the key a moment ago. A source that does not answer does not
			// stop the undeletion.
			_ = r.CompareSources(ctx)
			return nil
		})
	} else {
		err = r.needFreeName(ctx, op, key)
	}
	if err != nil {
		return err
	}
	defer r.forget(key)
	if err := soft.Undelete(ctx, key, newestOf(last)); err != nil {
		return err
	}
	q.did.version = newestOf(last)
	q.ok(ctx, key, "")
	return nil
}

// Purge destroys a deleted key. key is its name, and version the full name of one of its versions. If version is "",
// Purge destroys the only deleted key of that name that the caller may manage. A key counts as used until its deletion,
// and for some time after it if nodes serve it from memory, unless it is certain that none of its versions was ever
// used. Kinds: Invalid if the last use is within Config.PurgeMinUnused, if no version is given and there are several
// keys, or if this host's clock is behind a store without a clock; Unavailable if Config.Clock shows in another way
// that a clock is wrong; and those of Undelete.
func (r *Ring) Purge(ctx context.Context, c claviger.Caller, key, version string) error {
	return r.purge(ctx, c, key, version, false)
}

// PurgeAll is Purge of all deleted keys of that name that the caller may manage.
func (r *Ring) PurgeAll(ctx context.Context, c claviger.Caller, key string) error {
	return r.purge(ctx, c, key, "", true)
}

func (r *Ring) purge(ctx context.Context, c claviger.Caller, key, version string, all bool) (err error) {
	const op = "keyring.Purge"
	ctx, span := trace.Start(ctx, op)
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.PurgeKey, &key, authz.Purge)
	if err != nil {
		return err
	}
	soft, err := r.primary.softDeleter(op, key)
	if err != nil {
		return err
	}
	unlock, err := r.manage.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := r.primary.deletedOf(ctx, key, version)
	if err != nil {
		return err
	}
	if len(keys) == 0 { // an interrupted purge may have left parts of a key, which have only the name
		if err := q.needKey(ctx, &claviger.Metadata{Name: key}, authz.KeyManagement); err != nil {
			return err
		}
	}
	if keys, err = q.manageable(ctx, keys); err != nil {
		return err
	}
	if len(keys) > 1 && version == "" && !all {
		return claviger.Errorf(op, claviger.Invalid, key, "%d deleted keys have the name '%s': name the one to purge "+
			"by a version of it (claviger key purge --key-version, trusteeOp=purgeVersion), or say that all are meant "+
			"(--all, trusteeOp=purge&all=true); the newest versions are %s", len(keys), key, newest(keys))
	}
	versions := make([]string, len(keys))
	for i := range keys {
		if err := r.needUnused(ctx, op, &keys[i]); err != nil {
			return err
		}
		versions[i] = newestOf(&keys[i])
	}
	if err := r.mayDestroy(ctx, true); err != nil {
		return err
	}
	defer r.forget(key)
	if err := soft.Purge(ctx, key, versions...); err != nil {
		if len(keys) == 0 && claviger.Is(err, claviger.KeyNotFound) {
			return q.noDeleted(ctx, op, key, version)
		}
		return err
	}
	if n := len(versions); n > 0 {
		q.did.version = versions[n-1]
	}
	q.ok(ctx, key, "")
	return nil
}

// needUnreservedName refuses a new key the name of a deleted key that the caller may not manage: the deleted key could
// not be undeleted while a new key has its name. Call it after a reading that found no key of the name. Then a key that
// is deleted meanwhile is among the deleted keys that are read here.
func (q *request) needUnreservedName(ctx context.Context, op, name string) error {
	if !q.ring.cfg.KeyAuthorization {
		return nil
	}
	keys, err := q.ring.primary.deletedOf(ctx, name, "")
	if err != nil {
		return err
	}
	for _, k := range keys {
		if !q.mayManage(k.ACLName()) {
			// Only for the audit line: the text of this error has the ACL name.
			_ = q.needKey(ctx, &k.Metadata, authz.KeyManagement)
			return claviger.Errorf(op, claviger.KeyDenied, name, "User [%s] is not authorized to create key '%s': the "+
				"name is kept for a deleted key. Choose another name, or have a user who may manage the deleted key "+
				"create this one, or purge the deleted one", q.caller.Short, name)
		}
	}
	return nil
}

// manageable returns the deleted keys that the caller may manage. Kind KeyDenied if the caller may manage none of them.
func (q *request) manageable(ctx context.Context, keys []provider.Deleted) ([]provider.Deleted, error) {
	var own []provider.Deleted
	for _, k := range keys {
		if q.mayManage(k.ACLName()) {
			own = append(own, k)
		}
	}
	if len(keys) > 0 && len(own) == 0 {
		return nil, q.needKey(ctx, &keys[len(keys)-1].Metadata, authz.KeyManagement)
	}
	return own, nil
}

// OtherDeletedError is the error if no deleted key of a name has the version of the request. It names the newest
// versions of the deleted keys, for a caller who may manage these keys.
type OtherDeletedError struct{ requested, newest string }

func (e *OtherDeletedError) Error() string {
	return "has the version " + e.requested + "; the deleted keys of that name have the newest versions " + e.newest
}

// noDeleted is the error if no deleted key of the name has the version. It names the deleted keys that the caller may
// manage.
func (q *request) noDeleted(ctx context.Context, op, key, version string) error {
	keys, err := q.ring.primary.deletedOf(ctx, key, "")
	if err != nil {
		return err
	}
	keys = slices.DeleteFunc(keys, func(k provider.Deleted) bool { return !q.mayManage(k.ACLName()) })
	if version == "" || len(keys) == 0 {
		return claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	return claviger.E(op, claviger.KeyNotFound, key, &OtherDeletedError{version, newest(keys)})
}

// newest names deleted keys by their newest versions and the times of their deletions.
func newest(keys []provider.Deleted) string {
	list := make([]string, len(keys))
	for i := range keys {
		list[i] = newestOf(&keys[i]) + " (deleted " + stamp(keys[i].Since) + ")"
	}
	return strings.Join(list, ", ")
}

// newestOf returns the name of the newest version, which distinguishes a deleted key from other keys of its name.
func newestOf(k *provider.Deleted) string {
	if len(k.List) == 0 {
		return ""
	}
	return k.List[len(k.List)-1]
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// lastUse returns the latest time at which a use of the key is recorded, or was possible before uses were recorded.
func (r *Ring) lastUse(ctx context.Context, k provider.Deleted) (time.Time, error) {
	if r.cfg.LastUses == nil {
		return k.Since, nil // the key may have been used until its deletion
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
		last = latest(last, times[i], r.used.at(version))
	}
	return last, nil
}

// needUnused refuses to purge a deleted key that may have been used within Config.PurgeMinUnused.
//
// The first use of a version is written before its answer goes out. So it is certain that a key was never used once no
// request that found the key before its deletion can still be running.
//
// For a key that was used, the time of its deletion counts as a use: another node writes its uses once a minute, and
// loses them if it is cut off or killed. Kinds Invalid; Unavailable if the clocks differ, because the recorded times
// are then wrong. If the store has no clock, no other node can purge either, and the kind is Invalid.
func (r *Ring) needUnused(ctx context.Context, op string, k *provider.Deleted) error {
	if r.cfg.PurgeMinUnused <= 0 {
		return nil
	}
	now := time.Now()
	if r.cfg.Clock != nil {
		clocks, err := r.cfg.Clock.Clocks(ctx)
		if err != nil {
			return err
		}
		if err := clocks.Check(); err != nil {
			kind := claviger.Unavailable
			if clocks.LowerBound {
				kind = claviger.Invalid
			}
			return claviger.Errorf(op, kind, k.Name, "key '%s' is not purged: the time of its last use is not "+
				"certain: %w", k.Name, err)
		}
		now = clocks.Earliest()
	}
	created := k.Created
	if created.After(now) { // a clock was ahead; the deletion came later
		created = time.Time{}
	}
	never, err := r.neverUsedAny(ctx, k.List)
	if err != nil {
		return err
	}
	if settled := latest(k.Since, created).Add(r.servedAfterDeletion() + underWay); never &&
		r.cfg.PurgeMinUnused > settled.Sub(k.Since) {
		if !now.Before(settled) {
			return nil
		}
		return claviger.Errorf(op, claviger.Invalid, k.Name, "key '%s', deleted %s, has no recorded use, but a "+
			"request that uses it may still run: it can be purged from %s on",
			k.Name, stamp(k.Since), stamp(settled.Add(time.Second)))
	}
	last, err := r.lastUse(ctx, *k)
	if err != nil {
		return err
	}
	last = latest(last, k.Since.Add(r.servedAfterDeletion()), created)
	free := last.Add(r.cfg.PurgeMinUnused)
	if !now.Before(free) {
		return nil
	}
	wrong := ""
	if last.After(now.Add(r.servedAfterDeletion() + metastore.ClockMargin)) {
		wrong = "; that time has not come yet, so a clock was ahead when it was written: undelete the key and delete " +
			"it again to record a new time of its deletion"
	}
	return claviger.Errorf(op, claviger.Invalid, k.Name,
		"key '%s', deleted %s, may have been used until %s, which is less than %v ago (claviger.purge.min.unused): it "+
			"can be purged from %s on%s",
		k.Name, stamp(k.Since), stamp(last), r.cfg.PurgeMinUnused, stamp(free.Add(time.Second)), wrong)
}

// underWay is longer than the longest request that uses a key.
const underWay = 2 * time.Minute

// servedAfterDeletion is how long another node may serve a key after its deletion: the node may not know of the
// deletion for the lease, and a request may still be running.
func (r *Ring) servedAfterDeletion() time.Duration {
	if r.cfg.Shared == nil {
		return 0
	}
	return r.cfg.Lease + time.Minute
}

// latest returns the latest of times.
func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }
