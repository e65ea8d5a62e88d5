package keyring

import (
	"context"
	"fmt"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
)

// mayBeOwn reports whether EDEKs of that name may belong to a version that this server had, because it is not certain
// that the version was never used.
func (r *Ring) mayBeOwn(ctx context.Context, version claviger.VersionRef) (bool, error) {
	if !r.recordsUses() {
		return false, nil
	}
	if !r.used.at(version.Name()).IsZero() {
		return true, nil
	}
	return metastore.MayHaveUsed(ctx, r.cfg.Numbers, r.cfg.LastUses, version)
}

// recordsUses reports whether the store records which versions were used.
func (r *Ring) recordsUses() bool { return r.cfg.Numbers != nil && r.cfg.LastUses != nil }

// otherKeyRefusal returns the error that refuses EDEKs of a version because they may belong to another key than the
// source's key, whose metadata is sourceKey. It returns nil if no record says so, or if an operator has said that the
// EDEKs belong to the source's version. mayBeOwn is the result of Ring.mayBeOwn.
func (r *Ring) otherKeyRefusal(ctx context.Context, s *source, use string, v claviger.VersionRef,
	sourceKey *claviger.Metadata, mayBeOwn bool) (error, error) {
	if r.cfg.SourceVersions[v.Name()] {
		return nil, nil
	}
	version := v.Name()
	op, kind := "keyring.Decrypt", claviger.Unavailable
	if use == useReencrypt {
		op, kind = "keyring.Reencrypt", claviger.Invalid
	}
	made, err := r.formerPrimaryOf(ctx, v)
	if err != nil {
		return nil, err
	}
	if made != "" {
		refusal, err := r.ofTwoSources(ctx, s, use, v, made)
		if refusal != nil || err != nil {
			return refusal, err
		}
	}
	if mayBeOwn {
		err := claviger.Errorf(op, kind, version, "'%s' was deleted here after EDEKs may have been made with it, and "+
			"%s has a version of that name too, so an EDEK may belong to either key: %s",
			version, s.URI(), r.deletedCure(v))
		return claviger.Answer(err, fmt.Sprintf("key version '%s' was one key here, which was deleted, and is another "+
			"key at the KMS that the key was migrated from, so nothing is opened or re-encrypted with it; this "+
			"server's log says what to do", version)), nil
	}
	was, err := r.migratedAs(ctx, s, v, sourceKey)
	if err != nil || was.IsZero() {
		return nil, err
	}
	err = claviger.Errorf(op, kind, version, "the source %s has a key '%s' made %s, and "+
		"the key that was migrated from there was made %s: it was deleted there, and another key was made, so an "+
		"EDEK of '%s' may belong to either key. EDEKs of the older key open nowhere, unless an older backup of the "+
		"source is restored. If no file needs them, or if that source gives a key a new time "+
		"at each roll, as a Ranger KMS does on a cloud's key vault, set claviger.migration.theirs to %s "+
		"and restart: then the source opens all EDEKs of that name",
		s.URI(), sourceKey.Name, preciseStamp(sourceKey.Created), preciseStamp(was), version,
		claviger.NamesWith(r.cfg.SourceVersions, version))
	return claviger.Answer(err, fmt.Sprintf("key version '%s' may belong to either of two keys that the KMS has had "+
		"under that name, so nothing is opened or re-encrypted with it; this server's log says what to "+
		"do", version)), nil
}

// migratedAs returns the time of creation of the source's key that a migration took over under the version's name, if
// the source has another key of the name now. It returns zero if the key is the same, if the times of creation do not
// show that it is another key, and if no two keys can share the version's name.
func (r *Ring) migratedAs(ctx context.Context, s *source, v claviger.VersionRef,
	now *claviger.Metadata) (time.Time, error) {
	list, err := r.origins.of(ctx, v.Key)
	if _, numbered := v.Number(); err != nil || !numbered {
		return time.Time{}, err
	}
	var was time.Time
	for _, o := range list {
		apart := madeApart(o.Created, now.Created)
		switch {
		case o.Key != v.Key && !o.Folded:
		case o.Source == s.URI():
			if !o.TakenOver && o.Rolled == 0 || o.Freed || !apart {
				return time.Time{}, nil
			}
			return o.Created, nil
		case r.sources.configured(o.Source) || !o.Finished.IsZero() || !o.TakenOver:
		case !apart: // it may be the same source under another URI
			return time.Time{}, nil
		default:
			was = o.Created
		}
	}
	return was, nil
}

// madeApart reports whether two creation times cannot be those of one key. A time of 0 milliseconds means that the
// source gives none. Times in whole seconds are compared by the second.
func madeApart(a, b time.Time) bool {
	x, y := a.UnixMilli(), b.UnixMilli()
	if x <= 0 || y <= 0 {
		return false
	}
	if x%1000 == 0 || y%1000 == 0 {
		return max(x-y, y-x) >= 1000
	}
	return x != y
}

// preciseStamp formats a creation time with milliseconds, because it distinguishes keys.
func preciseStamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }

// refuseIfThere returns refusal if the source has a version of that name. refusal is the error for EDEKs that may
// belong to another key than the source's. The source would open EDEKs of both keys, perhaps to a wrong DEK, so no EDEK
// is sent to it. Kind VersionNotFound if the source has no such version.
func refuseIfThere(ctx context.Context, s *source, v claviger.VersionRef, refusal error) error {
	err := s.probeVersion(ctx, v)
	if err != nil && (notFound(err) || noAnswer(err)) {
		return err
	}
	return ruleError{refusal}
}

// deletedCure returns the cure, for an operator, for a version in conflict that was used and is deleted.
func (r *Ring) deletedCure(v claviger.VersionRef) string {
	return fmt.Sprintf("bring key %s back here (claviger key undelete), and then do what the log and /readyz say. "+
		"If the key was purged, or if no file needs EDEKs that were made here with that version, set "+
		"claviger.migration.theirs to %s and restart: then the source opens all EDEKs of that name",
		claviger.Printable(v.Key), claviger.NamesWith(r.cfg.SourceVersions, v.Name()))
}

// ownVersionsWith returns the value of claviger.migration.ours that opens a version in conflict again, with all other
// versions of its key.
func (r *Ring) ownVersionsWith(v claviger.VersionRef) string {
	more := []string{v.Name()}
	for other := range load(&r.conflicts.here) {
		if claviger.ParseVersion(other).Key == v.Key {
			more = append(more, other)
		}
	}
	return claviger.NamesWith(r.cfg.OwnVersions, more...)
}

// conflictCure returns the cure, for an operator, for a version in conflict.
func (r *Ring) conflictCure(ctx context.Context, v claviger.VersionRef) string {
	has, err := provider.MayHave(ctx, r.primary.Provider, v.Name())
	if err == nil && !has {
		if uri, err := r.formerPrimaryOf(ctx, v); err == nil && uri != "" {
			return r.duplicateCure(v, uri)
		}
		return r.deletedCure(v)
	}
	return r.cureHere(ctx, v)
}

// cureHere is conflictCure of a version that is here. Only a key whose versions were never used may be deleted: EDEKs
// of a used version would open nowhere. The answer "used" is kept in memory, because for weeks each request for an old
// file may be refused with this text.
func (r *Ring) cureHere(ctx context.Context, v claviger.VersionRef) string {
	if _, used := r.conflicts.used.Load(v.Name()); !used {
		never, err := r.neverUsed(ctx, v.Key)
		if never && err == nil {
			return fmt.Sprintf("stop rolls at the source. No version of key %s was ever "+
				"used here: delete the key here and run the migration again, which takes the next number",
				claviger.Printable(v.Key))
		}
		if err == nil {
			r.conflicts.used.Store(v.Name(), true)
		}
	}
	return fmt.Sprintf("stop rolls at the source. Do not delete key %s here: EDEKs may have been made under it. Roll "+
		"it here, so that new files can be read; copy the files that were made through the source since its roll, "+
		"through the source; then set claviger.migration.ours to %s and "+
		"restart", claviger.Printable(v.Key), r.ownVersionsWith(v))
}

// neverUsed reports whether it is certain that no version of a key here was ever used.
func (r *Ring) neverUsed(ctx context.Context, key string) (bool, error) {
	names, err := r.primary.versionNames(ctx, key)
	if err != nil {
		return false, err
	}
	return r.neverUsedAny(ctx, names)
}

// neverUsedAny reports whether it is certain that none of the versions was ever used.
func (r *Ring) neverUsedAny(ctx context.Context, versions []string) (bool, error) {
	if !r.recordsUses() {
		return false, nil
	}
	for _, v := range versions {
		never, err := r.cfg.LastUses.NeverUsed(ctx, v)
		if err != nil || !never || !r.used.at(v).IsZero() {
			return false, err
		}
	}
	return true, nil
}
