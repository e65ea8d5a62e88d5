package keyring

import (
	"context"
	"maps"
	"time"

	"claviger"
	"claviger/audit"
	"claviger/authz"
	"claviger/provider"
	"claviger/trace"
)

// Version has the facts about a version that an operator may see.
type Version struct {
	provider.VersionFacts
	// LastUse is the time of its last use, to the minute; zero: no use is known.
	LastUse time.Time
}

// Description has all facts about a key, without its material.
type Description struct {
	claviger.Metadata
	Deleted time.Time // zero: not deleted
	List    []Version // oldest first
	// UsesSince is the time at which the record of uses began: a version without a recorded use may have been used
	// before. Zero: uses are not recorded.
	UsesSince time.Time
}

// Describe describes the key of that name. If the caller may undelete or purge, Describe also describes the deleted
// keys of that name, in the order of their deletion. It needs the rights that Metadata needs. Deleted keys that the
// caller may not read are left out; if no other key is left, the kind is KeyDenied. Kinds Denied, KeyDenied,
// KeyNotFound.
func (r *Ring) Describe(ctx context.Context, c claviger.Caller, key string) (_ []Description, err error) {
	ctx, span := trace.Start(ctx, "keyring.Describe")
	defer span.EndWith(&err)
	q, err := r.enter(ctx, &c, audit.GetMetadata, &key, authz.GetMetadata)
	if err != nil {
		return nil, err
	}
	list, err := r.describeLive(ctx, &q, key)
	if err != nil {
		return nil, err
	}
	if r.primary.keepsDeleted() && (q.has(authz.Undelete) || q.has(authz.Purge)) {
		deleted, err := r.primary.deletedOf(ctx, key, "")
		if err != nil {
			return nil, err
		}
		var refused error
		for _, k := range deleted {
			if refused = q.needKey(ctx, &k.Metadata, authz.KeyRead); refused != nil {
				continue
			}
			facts := make([]provider.VersionFacts, len(k.List))
			for i, name := range k.List {
				facts[i].Name = name
			}
			d, err := r.withUses(ctx, k.Metadata, facts)
			if err != nil {
				return nil, err
			}
			d.Deleted = k.Since
			list = append(list, d)
		}
		if len(list) == 0 && refused != nil {
			return nil, refused
		}
	}
	if len(list) == 0 {
		return nil, claviger.E("keyring.Describe", claviger.KeyNotFound, key, nil)
	}
	q.ok(ctx, key, "")
	return list, nil
}

// describeLive describes the key that exists now, if there is one.
func (r *Ring) describeLive(ctx context.Context, q *request, key string) ([]Description, error) {
	for range readings {
		m, err := r.metadataNow(ctx, key)
		if m == nil || err != nil {
			return nil, err
		}
		if err := q.needKey(ctx, m, authz.KeyRead); err != nil {
			return nil, err
		}
		facts, err := r.primary.describe(ctx, key)
		if err != nil {
			return nil, err
		}
		// The facts of the versions must be those of the key whose rules were checked.
		if again, err := r.metadataNow(ctx, key); err != nil {
			return nil, err
		} else if !sameKey(m, again) {
			continue
		}
		d, err := r.withUses(ctx, *m, facts)
		return []Description{d}, err
	}
	return nil, claviger.Errorf("keyring.Describe", claviger.Unavailable, key, "the key was deleted and made again %d "+
		"times while it was read", readings)
}

// withUses adds when each version was last used.
func (r *Ring) withUses(ctx context.Context, m claviger.Metadata, facts []provider.VersionFacts) (Description, error) {
	d := Description{Metadata: m, List: make([]Version, len(facts))}
	d.Attributes = maps.Clone(m.Attributes)
	names := make([]string, len(facts))
	for i, f := range facts {
		d.List[i].VersionFacts, names[i] = f, f.Name
	}
	if r.cfg.LastUses == nil {
		return d, nil
	}
	times, since, err := r.cfg.LastUses.LastUses(ctx, names...)
	if err != nil {
		return d, err
	}
	d.UsesSince = since
	for i := range d.List {
		d.List[i].LastUse = times[i]
		if at := r.used.at(names[i]); at.After(times[i]) {
			d.List[i].LastUse = at // not written to the store yet
		}
	}
	return d, nil
}
