package keyring

import (
	"context"
	"fmt"
	"slices"

	"claviger"
	"claviger/authz"
	"claviger/secret"
)

// mayBeForeign reports whether a source may have the version, after the primary returned err for it. A result "no
// source has the version" is not cached: a source may roll to the version a moment later, and a client does not retry
// after "not found". waitForSource limits such requests.
func (r *Ring) mayBeForeign(err error, v claviger.VersionRef) bool {
	return claviger.Is(err, claviger.VersionNotFound) && !r.sources.none() && v.Valid() && !r.cfg.OwnVersions[v.Name()]
}

// decryptForeign opens an EDEK of the version v, which only a source may have. The rules of the key are checked before
// the call to the source.
func (r *Ring) decryptForeign(ctx context.Context, q *request, named *string, v claviger.VersionRef,
	e claviger.EDEK) (secret.Bytes, error) {
	if r.cfg.KeyAuthorization {
		if err := r.needBelongs(ctx, v.Name(), v.Key, named); err != nil {
			return nil, err
		}
		if err := q.needOwnKey(ctx, v.Key, authz.KeyDecryptEEK); err != nil {
			return nil, err
		}
	}
	guard := func(m *claviger.Metadata) error { return q.needKey(ctx, m, authz.KeyDecryptEEK) }
	var deks []secret.Bytes
	err := r.waitForSource(ctx, "keyring.Decrypt", v.Name(), func() (err error) {
		deks, err = r.openAtSource(ctx, q, useDecrypt, v, q.caller.Short, guard, []claviger.EDEK{e})
		return err
	})
	if err != nil {
		secret.WipeAll(deks...)
		return nil, err
	}
	return deks[0], nil
}

// needOwnKey checks the rules of this KMS's own key of a name, if there is such a key. These rules guard a source's key
// of that name in addition to the source's rules.
func (q *request) needOwnKey(ctx context.Context, key string, right authz.KeyOp) error {
	ownKey, err := q.ring.metadataHere(ctx, key)
	if err != nil {
		return err
	}
	return q.needKey(ctx, ownKey, right)
}

// openAtSource finds the source that has the version v of all the EDEKs, and lets it open them on behalf of the user as
// ("": in our own name), unless guard refuses the source's key.
func (r *Ring) openAtSource(ctx context.Context, q *request, use string, v claviger.VersionRef, as string,
	guard func(*claviger.Metadata) error, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	mayBeOwn, err := r.mayBeOwn(ctx, v)
	if err != nil {
		return nil, err
	}
	formerPrimary, err := r.formerPrimaryOf(ctx, v)
	if err != nil {
		return nil, err
	}
	var deks []secret.Bytes
	s, err := r.sources.find(v.Name(), aboutVersion(v.Name(), as), func(s *source) error {
		if r.cfg.SourceVersions[v.Name()] && s.URI() == formerPrimary {
			// An operator has said that EDEKs of the name belong to another source's version.
			return claviger.E("keyring.source", claviger.VersionNotFound, v.Name(), nil)
		}
		m, err := s.guarded(ctx, v.Key, guard)
		if err != nil {
			return err
		}
		refusal, err := r.otherKeyRefusal(ctx, s, use, v, m, mayBeOwn)
		switch {
		case err != nil:
			return ruleError{err}
		case refusal != nil:
			err = refuseIfThere(ctx, s, v, refusal)
		default:
			deks, err = s.open(ctx, v, as, edeks)
		}
		return r.checkAbsence(ctx, s, v, err)
	})
	if err != nil {
		return nil, err
	}
	q.did.addSource(s.URI())
	r.sources.homes.put(v.Name(), s)
	r.usage.add(s.URI(), v.Name(), use, len(edeks))
	return deks, nil
}

// checkAbsence gets the result err of a lookup of a version at a source. "No such version" is not final if the
// source's count of versions includes it: one node of the source may not have seen the roll yet, and another node has
// the version. Then the kind is SourceUnreachable, until the answer is settled. Otherwise checkAbsence returns err
// unchanged.
func (r *Ring) checkAbsence(ctx context.Context, s *source, v claviger.VersionRef, err error) error {
	if err == nil {
		s.absent.Delete(v.Name())
		return nil
	}
	number, ok := v.Number()
	if !ok || !notFound(err) {
		return err
	}
	list, readErr := r.origins.of(ctx, v.Key)
	if readErr != nil {
		return ruleError{readErr}
	}
	if slices.ContainsFunc(list, func(o Origin) bool { return o.opaqueAt(s) }) {
		return err // the source's key has no numbered versions
	}
	s.keys.drop(v.Key) // the cached answer may be older than a roll or a deletion
	m, again := s.metadata(ctx, v.Key)
	switch {
	case again != nil:
		return again
	case m.Versions <= number || s.settled(v):
		return err
	}
	s.recordAbsent(v)
	err = claviger.Errorf("keyring.source", claviger.SourceUnreachable, v.Name(), "this KMS does not have key version "+
		"'%s', and the source %s counts %d versions of the key, but says that it has none of that name: another node "+
		"of the source may have it. This answer counts if it is still the same after %v; if all nodes of the source "+
		"give it, the source has lost the version: restore it there from a backup",
		v.Name(), s.URI(), m.Versions, absentSettles)
	return ruleError{claviger.Answer(err, fmt.Sprintf("the KMS that may hold key version '%s' should have a "+
		"version of that name, but says now that it has none; try again", v.Name()))}
}

// versionAtSource returns a version that the primary does not know, without material, even if the source shows the
// material.
func (r *Ring) versionAtSource(ctx context.Context, q *request,
	version claviger.VersionRef) (*claviger.KeyVersion, error) {
	missing := claviger.E("keyring.Version", claviger.VersionNotFound, version.Name(), nil)
	if !r.mayBeForeign(missing, version) {
		return nil, nil
	}
	if r.cfg.KeyAuthorization {
		if err := q.needOwnKey(ctx, version.Key, authz.KeyRead); err != nil {
			return nil, err
		}
	}
	var v claviger.KeyVersion
	var s *source
	guard := func(m *claviger.Metadata) error { return q.needKey(ctx, m, authz.KeyRead) }
	err := r.waitForSource(ctx, "keyring.Version", version.Name(), func() (err error) {
		s, err = r.sources.find(version.Name(), aboutVersion(version.Name(), ""), func(s *source) error {
			if _, err := s.guarded(ctx, version.Key, guard); err != nil {
				return err
			}
			err := s.call(ctx, func(ctx context.Context) (err error) {
				v, err = s.Version(ctx, version.Name())
				return err
			})
			return r.checkAbsence(ctx, s, version, err)
		})
		return err
	})
	if claviger.Is(err, claviger.VersionNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v.Material = nil // not wiped, because the source may still use it
	q.did.addSource(s.URI())
	q.ok(ctx, v.Key, "")
	return &v, nil
}
