package keyring

import (
	"context"
	"fmt"
	"slices"

	"claviger"
)

// formerPrimaryOf returns the URI of a former primary in which a migration made the version; "" if no migration made
// the version, or if no two keys can share the version's name.
func (r *Ring) formerPrimaryOf(ctx context.Context, v claviger.VersionRef) (string, error) {
	if !v.Valid() {
		return "", nil
	}
	list, err := r.origins.of(ctx, v.Key)
	if err != nil {
		return "", err
	}
	for _, o := range list {
		if slices.Contains(o.MadeThere, v.Name()) {
			return o.Source, nil
		}
	}
	return "", nil
}

// ofTwoSources returns the reason why s does not open EDEKs of a version that was made at formerPrimary: another source
// has a version of that name too, or, for a re-encryption, may have one. A decrypt does not wait for a source that does
// not answer; its last answer counts, as for versions that are here.
func (r *Ring) ofTwoSources(ctx context.Context, s *source, use string, v claviger.VersionRef,
	formerPrimary string) (refusal, err error) {
	if s.URI() != formerPrimary {
		return r.duplicateError(use, v, formerPrimary, s.URI()), nil // if s has it
	}
	if uri, known := r.conflictsNow()[v.Name()]; known {
		return r.duplicateError(use, v, formerPrimary, uri), nil
	}
	number, _ := v.Number()
	list, err := r.origins.of(ctx, v.Key)
	if err != nil {
		return nil, err
	}
	for _, other := range r.sources.list {
		if other == s || slices.ContainsFunc(list, func(o Origin) bool { return o.opaqueAt(other) }) {
			continue
		}
		m, err := other.metadata(ctx, v.Key)
		switch {
		case claviger.Is(err, claviger.KeyNotFound):
		case err != nil && use == useReencrypt:
			return nil, other.explain(err, aboutMetadata(v.Key, v.Name()))
		case err != nil, m.Versions <= number:
		case other.mayHave(ctx, v):
			return r.duplicateError(use, v, formerPrimary, other.URI()), nil
		case use == useReencrypt && !other.settled(v):
			return nil, claviger.Errorf("keyring.Reencrypt", claviger.SourceUnreachable, v.Name(), "EDEKs of '%s' are "+
				"not re-encrypted yet: by its count of versions the source %s has a version of that name, but it says "+
				"that it has none; this answer counts if it is still the same after %v", v.Name(),
				other.URI(), absentSettles)
		}
	}
	return nil, nil
}

// duplicateError returns the error for EDEKs of a version that was made at a former primary and that a source has too.
func (r *Ring) duplicateError(use string, v claviger.VersionRef, formerPrimary, source string) error {
	version := v.Name()
	op, kind := "keyring.Decrypt", claviger.Unavailable
	if use == useReencrypt {
		op, kind = "keyring.Reencrypt", claviger.Invalid
	}
	err := claviger.Errorf(op, kind, version, "'%s' is one key in %s, into which the key was migrated, and another "+
		"key at %s, so an EDEK may belong to either key: "+
		"%s", version, formerPrimary, source, r.duplicateCure(v, formerPrimary))
	return claviger.Answer(err,
		fmt.Sprintf("key version '%s' is one key in the place where a migration made it, and another "+
			"key at the KMS that the key was migrated from, so nothing is opened or "+
			"re-encrypted with it; this server's log says what to do", version))
}

// duplicateCure returns the cure of duplicateError, for an operator.
func (r *Ring) duplicateCure(v claviger.VersionRef, formerPrimary string) string {
	return fmt.Sprintf("stop rolls at the source. Copy the files that were made while the server had its keys in %s, "+
		"through a server that has its keys there and does not have the source; then set claviger.migration.theirs "+
		"to %s and restart: then the source opens all EDEKs of that name", formerPrimary,
		claviger.NamesWith(r.cfg.SourceVersions, v.Name()))
}

// madeElsewhere returns the versions of a key whose numbers are below number, and that migrations made in other
// places than the source with that URI.
func madeElsewhere(all []Origin, uri, key string, number int) []string {
	var names []string
	for _, o := range all {
		if o.Key != key || o.Source == uri {
			continue
		}
		for _, v := range o.MadeThere {
			if n, ok := claviger.VersionNumber(v); ok && n < number && !slices.Contains(names, v) {
				names = append(names, v)
			}
		}
	}
	return names
}
