package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"claviger"
	"claviger/authz"
	"claviger/shellword"
)

// mayBelongToSource reports whether a name here may belong to a key of a source, now or by the journal of a migration.
func (r *Ring) mayBelongToSource() bool { return !r.sources.none() || r.origins.history != nil }

// needFreeName refuses the name of a new key if the name may belong to another key: a key that a source has, or may
// have while it does not answer; a key in the journal of a migration that is not finished; a key with another spelling
// of the name that came from a source which ignores case. Otherwise the user who makes the new key would choose the
// rules under which the other key's EDEKs are opened. Kinds Invalid, SourceUnreachable, SourceRefused, Unavailable.
func (r *Ring) needFreeName(ctx context.Context, op, name string) error {
	if !r.mayBelongToSource() {
		return nil
	}
	here, err := r.alias(ctx, name)
	if err != nil {
		return err
	}
	if here != name {
		return claviger.Errorf(op, claviger.Invalid, name, "key '%s' cannot be made: it is another spelling of key "+
			"'%s', which was migrated from a KMS that ignores case, and EDEKs may have either "+
			"spelling; choose another name", name, here)
	}
	if err := r.waitForSource(ctx, op, name, func() error { return r.needNotAtSource(ctx, op, name) }); err != nil {
		return err
	}
	return r.needUnlisted(ctx, op, name)
}

// needNotAtSource refuses the name of a key that a source has, or may have while it does not answer.
func (r *Ring) needNotAtSource(ctx context.Context, op, name string) error {
	for _, s := range r.sources.list {
		_, err := s.metadata(ctx, name)
		switch {
		case claviger.Is(err, claviger.KeyNotFound):
		case err == nil:
			return claviger.Errorf(op, claviger.Invalid, name,
				"key '%s' is at the source %s, so only a migration can make a key of that name here: migrate the "+
					"key (claviger migrate run, claviger key migrate, or POST trustee/key/%s?trusteeOp=migrate); a "+
					"key that was migrated and deleted here comes back by trusteeOp=undelete, or may be made again "+
					"once it is deleted at the source too", name, s.URI(), name)
		default:
			err = s.explain(err, aboutMetadata(name, name))
			switch kind := claviger.KindOf(err); kind {
			case claviger.SourceUnreachable, claviger.SourceRefused:
				return claviger.Errorf(op, kind, name, "key '%s' cannot be made while it is not known whether the "+
					"source %s has a key of that name: %s", name, s.URI(), reason(err))
			}
			return err
		}
	}
	return nil
}

// needNoNewer refuses the undeletion of a migrated key whose source has another key of the name now: the rules of the
// old key would block the users of the newer key, and versions of the two keys may have the same names. A source that
// does not answer does not block the undeletion, because the migrated key came from the source.
func (r *Ring) needNoNewer(ctx context.Context, op string, deleted *claviger.Metadata) error {
	for _, s := range r.sources.list {
		s.keys.drop(deleted.Name) // the cached answer may describe the older key
		atSource, err := s.metadata(ctx, deleted.Name)
		if err != nil {
			continue
		}
		if !sameOrigin(deleted, atSource.Created, atSource.ACLName()) {
			return claviger.Errorf(op, claviger.Invalid, deleted.Name,
				"the source %s now has another key '%s', made %s, so the deleted key, which was made %s and migrated, "+
					"is not undeleted. Delete or rename the key at the source, or remove the source from the "+
					"configuration once its EDEKs are "+
					"re-encrypted", s.URI(), deleted.Name, stamp(atSource.Created), stamp(deleted.Created))
		}
	}
	return nil
}

// needUnlisted refuses a name that the journal of a migration, finished or not, has from a source that is not
// configured now. The source may be configured again, and then the rules of a key that another user made under the name
// would guard the source's versions and block their users. An administrator may free the name.
func (r *Ring) needUnlisted(ctx context.Context, op, name string) error {
	list, err := r.origins.of(ctx, name)
	if err != nil {
		return err
	}
	for _, o := range list {
		configured := r.sources.configured(o.Source)
		switch {
		case o.Key != name && !o.Folded || o.Freed || configured:
		case o.Finished.IsZero():
			return claviger.Errorf(op, claviger.Invalid, name, "by the journal of a migration that was not ended, "+
				"key '%s' is at %s, and that source is not configured now: name it in "+
				"hadoop.kms.key.provider.reencryption.source.uri again, or end the migration with claviger migrate "+
				"finish", name, o.Source)
		default:
			return claviger.Errorf(op, claviger.Invalid, name, "the name '%s' is kept for the key that %s had, whose "+
				"migration was finished at %s: its EDEKs may come back with that source; undelete the migrated key "+
				"if it was deleted here, choose another name, or ask an administrator to free the name with "+
				"claviger migrate free %s", name, o.Source, stamp(o.Finished), shellword.Quote(name))
		}
	}
	return nil
}

// needSameOrigin refuses to re-encrypt EDEKs of a source's key under a key here, unless a migration made the key here
// for the source's key. The caller of a re-encryption may lack the right to decrypt, and a user who may decrypt with
// the key here can read the result.
func (r *Ring) needSameOrigin(ctx context.Context, q *request, current *claviger.KeyVersion,
	sourceKey *claviger.Metadata) error {
	ownKey := current.Of
	if ownKey == nil {
		var err error
		if ownKey, err = r.readMetadata(ctx, current.Key); err != nil {
			return err
		}
	}
	same, err := r.takenOver(ctx, ownKey, sourceKey)
	if err != nil {
		return err
	}
	if !same {
		return claviger.Errorf("keyring.Reencrypt", claviger.Invalid, current.Key,
			"EDEKs of the source's key '%s' are not re-encrypted under key '%s' of this KMS, which was not "+
				"migrated from that key: claviger migrate plan says how the two keys differ and what to do; do not "+
				"delete the key here while files are encrypted under it", sourceKey.Name, current.Key)
	}
	return q.needKey(ctx, sourceKey, authz.KeyGenerateEEK)
}

// HistoryError is the error for a version or key that is not here and was at a source, with the facts from the journal
// of a migration.
type HistoryError struct{ text string }

func (h *HistoryError) Error() string { return h.text }

// explainMissing adds the journal's facts about the key to an error "not found".
func (r *Ring) explainMissing(ctx context.Context, err error, name string) error {
	kind := claviger.KindOf(err)
	if err == nil || kind != claviger.KeyNotFound && kind != claviger.VersionNotFound || r.origins.history == nil {
		return err
	}
	key := name
	if kind == claviger.VersionNotFound {
		var e *claviger.Error
		errors.As(err, &e) // always succeeds, because KindOf took the kind from an *Error
		name = e.Key
		if k, ok := claviger.KeyOfVersion(name); ok {
			key = k
		}
	}
	list, readErr := r.origins.of(ctx, key)
	if readErr != nil || len(list) == 0 {
		return err // the journal only adds to the text
	}
	o := list[len(list)-1]
	var why string
	switch {
	case kind == claviger.VersionNotFound && r.deletedVersion(ctx, key, name):
		why = fmt.Sprintf("it is a version of key '%s' here, which was deleted: claviger key undelete brings the key "+
			"back", key)
	case kind == claviger.KeyNotFound && !o.TakenOver && o.Finished.IsZero():
		why = fmt.Sprintf("key '%s' is at %s and was not migrated yet: claviger migrate run takes it over", key,
			o.Source)
	case kind == claviger.KeyNotFound && !o.TakenOver:
		why = fmt.Sprintf("key '%s' was at %s, whose migration was finished at %s without it", key, o.Source,
			stamp(o.Finished))
	case kind == claviger.KeyNotFound:
		why = fmt.Sprintf("key '%s' was migrated from %s and has been deleted here since", key, o.Source)
	case slices.ContainsFunc(list, func(o Origin) bool { return slices.Contains(o.Made, name) }):
		why = fmt.Sprintf("it was made here for key '%s', and is gone for ever: %s never had it", key, o.Source)
	case o.Finished.IsZero() && r.sources.configured(o.Source):
		return err // the source was tried
	case o.Finished.IsZero():
		// Not a final answer, because the encrypted files exist and can be readable again.
		return claviger.Errorf("keyring.history", claviger.SourceUnreachable, name,
			"'%s' may be a version of key '%s' at %s, whose migration is not finished, and that KMS is not "+
				"configured here any more: name it in hadoop.kms.key.provider.reencryption.source.uri again, or end "+
				"the migration with claviger migrate finish", name, key, o.Source)
	default:
		why = fmt.Sprintf("it may be a version of key '%s' at %s, whose migration was finished at %s: what is "+
			"encrypted under it can be read only while that KMS is a source "+
			"(hadoop.kms.key.provider.reencryption.source.uri)", key, o.Source, stamp(o.Finished))
	}
	return claviger.E("keyring.history", kind, name, &HistoryError{why})
}

// deletedVersion reports whether a deleted key with this name has the version with this full name. It returns false if
// that is not known.
func (r *Ring) deletedVersion(ctx context.Context, key, version string) bool {
	keys, err := r.primary.deletedOf(ctx, key, version)
	return err == nil && len(keys) > 0
}
