package keyring

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"claviger"
)

// conflictsShown is the number of versions in a message.
const conflictsShown = 10

// conflicts are the versions of migrated keys that have the name of another version at the source, because the source
// rolled its key after the migration. An EDEK identifies its version by that name alone. So an EDEK of the other
// version would open here to a wrong DEK.
type conflicts struct {
	// known has the URI of the source, by version. It includes versions of keys that were deleted here: these keys may
	// be undeleted, and no version of another key gets the names.
	known atomic.Pointer[map[string]string]
	// here are the versions in known that a key here has now, or that may have been used.
	here atomic.Pointer[map[string]string]
	// rolled are migrated keys of sources with opaque ids. According to the last answer of its source, each of these
	// keys has more versions there than were migrated.
	rolled atomic.Pointer[[]rolledKey]

	mu   sync.Mutex                 // held while sources are compared
	last map[string]map[string]bool // by URI of the source, the versions in conflict; nil: not read yet
	used sync.Map                   // the versions in conflict whose keys have a version that was used
}

// load returns the value that was stored last; the zero value before that. The value must not be changed.
func load[T any](from *atomic.Pointer[T]) T {
	if published := from.Load(); published != nil {
		return *published
	}
	var none T
	return none
}

// conflictsNow returns the URIs of the sources of all versions in conflict, by version. The map must not be changed.
func (r *Ring) conflictsNow() map[string]string { return load(&r.conflicts.known) }

// Conflicts counts the versions in conflict that are here, or that may have been used.
func (r *Ring) Conflicts() int { return len(load(&r.conflicts.here)) }

// CheckConflicts names the versions in conflict. The error is for an operator.
func (r *Ring) CheckConflicts(ctx context.Context) error {
	found := load(&r.conflicts.here)
	if len(found) == 0 {
		return nil
	}
	versions := slices.Sorted(maps.Keys(found))
	cure := r.conflictCure(ctx, claviger.ParseVersion(versions[0]))
	for i, v := range versions {
		versions[i] = claviger.Printable(v) + " of " + found[v]
	}
	return claviger.Errorf("keyring.CheckConflicts", claviger.Unavailable, "",
		"these versions are one key here and another key at the source, which was rolled after the migration: %s; "+
			"EDEKs of these names are not opened; %s", claviger.FirstNames(versions, conflictsShown), cure)
}

// needNotInConflict refuses a version whose name another version at the source has, too.
func (r *Ring) needNotInConflict(ctx context.Context, op string, v *claviger.KeyVersion) error {
	source, ok := r.conflictsNow()[v.Name]
	if !ok {
		return nil
	}
	err := claviger.Errorf(op, claviger.Unavailable, v.Name, "'%s' is one key here and another key at %s, which was "+
		"rolled after the migration, so an EDEK may belong to either key: "+
		"%s", v.Name, source, r.cureHere(ctx, claviger.ParseVersion(v.Name)))
	return claviger.Answer(err, fmt.Sprintf("key version '%s' is one key here and another key at the KMS that the key "+
		"was migrated from, so nothing is opened with it; this server's log and /readyz say what to do", v.Name))
}

// needNoConflict refuses to re-encrypt EDEKs of a version here whose name another version at a source may have. Such
// an EDEK may open to a wrong DEK here, and a re-encrypted wrong DEK would lose the file for ever. So each source is
// checked, even if the key was not migrated from it. A source that does not answer ends the re-encryption, unless the
// key came from a source with opaque ids, such as a Key Trustee KMS.
func (r *Ring) needNoConflict(ctx context.Context, op string, v *claviger.KeyVersion) error {
	if err := r.needNoKnownConflict(ctx, op, v); err != nil {
		return err
	}
	ref := claviger.ParseVersion(v.Name)
	number, ok := ref.Number()
	if !ok || r.cfg.OwnVersions[v.Name] {
		return nil
	}
	origins, err := r.originsOf(ctx, v)
	if err != nil {
		return err
	}
	opaque, numbered := false, false
	for _, o := range origins {
		if !o.TakenOver && o.Finished.IsZero() { // the journal's newest record
			return claviger.Errorf(op, claviger.Invalid, v.Name, "key '%s' is in conflict with the key at its source, "+
				"so EDEKs of '%s' may belong to either key, and are not re-encrypted: claviger migrate plan says "+
				"what to do", v.Key, v.Name)
		}
		opaque = opaque || o.TakenOver && !o.Numbered
		numbered = numbered || o.Numbered
	}
	if r.sources.none() {
		return nil
	}
	return r.waitForSource(ctx, op, v.Name, func() error {
		for _, s := range r.sources.list {
			if slices.ContainsFunc(origins, func(o Origin) bool { return o.opaqueAt(s) }) {
				continue
			}
			m, err := s.metadata(ctx, v.Key)
			switch {
			case err != nil && (claviger.Is(err, claviger.KeyNotFound) || opaque):
			case err != nil:
				return notKnown(op, v, s, err)
			case m.Versions <= number:
			case s.mayHave(ctx, ref):
				return r.nameConflict(ctx, op, v, s, m)
			case numbered && !s.settled(ref):
				return claviger.Errorf(op, claviger.SourceUnreachable, v.Name, "EDEKs of '%s' are not re-encrypted "+
					"yet: by its count of versions the source %s has a version of that name, but it says that it has "+
					"none; this answer counts if it is still the same after %v", v.Name, s.URI(), absentSettles)
			}
		}
		return nil
	})
}

// nameConflict returns the error that refuses EDEKs of a version whose name the source has too, for its key sourceKey.
func (r *Ring) nameConflict(ctx context.Context, op string, v *claviger.KeyVersion, s *source,
	sourceKey *claviger.Metadata) error {
	if v.Of != nil && v.Of.Created.UnixMilli() != sourceKey.Created.UnixMilli() {
		return r.otherKey(op, v, s.URI(), sourceKey)
	}
	return r.notReencrypted(ctx, op, v, s.URI())
}

// needNoKnownConflict is needNoConflict without a request to a source. It is for the current version, whose EDEKs would
// be returned unchanged, and counted as re-encrypted.
func (r *Ring) needNoKnownConflict(ctx context.Context, op string, v *claviger.KeyVersion) error {
	if uri, ok := r.conflictsNow()[v.Name]; ok {
		return r.notReencrypted(ctx, op, v, uri)
	}
	return nil
}

// notReencrypted returns the error for a version whose name the source at uri uses too.
func (r *Ring) notReencrypted(ctx context.Context, op string, v *claviger.KeyVersion, uri string) error {
	return claviger.Errorf(op, claviger.Invalid, v.Name, "'%s' is one key here and another key at %s, so its EDEKs "+
		"may belong to either key, and are not re-encrypted: %s", v.Name, uri,
		r.cureHere(ctx, claviger.ParseVersion(v.Name)))
}

// otherKey is notReencrypted for a source's key that was not rolled, but is another key.
func (r *Ring) otherKey(op string, v *claviger.KeyVersion, uri string, sourceKey *claviger.Metadata) error {
	return claviger.Errorf(op, claviger.Invalid, v.Name, "the source %s has a key '%s', made %s, that is not "+
		"the key here, made %s. Both have a version '%s', so its EDEKs may belong to either key, and are not "+
		"re-encrypted: if files are under the source's key, copy them, through the source, to a zone with a key of "+
		"another name; then delete the key at the source, or set claviger.migration.ours to %s and restart; do not "+
		"delete the key here", uri, v.Key,
		preciseStamp(sourceKey.Created), preciseStamp(v.Of.Created), v.Name,
		r.ownVersionsWith(claviger.ParseVersion(v.Name)))
}

// notKnown returns the error for a version if it is not known whether a source has another version of its name.
func notKnown(op string, v *claviger.KeyVersion, s *source, err error) error {
	err = s.explain(err, aboutMetadata(v.Key, v.Key))
	switch kind := claviger.KindOf(err); kind {
	case claviger.SourceUnreachable, claviger.SourceRefused:
		return claviger.Errorf(op, kind, v.Name, "EDEKs of '%s' are not re-encrypted "+
			"while it is not known whether the source %s has rolled its key to a version of that name: %s; if the "+
			"source is gone for good, remove it from the configuration", v.Name, s.URI(), reason(err))
	}
	return err
}

// originsOf returns the journal's records of the migration that made a version's key.
func (r *Ring) originsOf(ctx context.Context, v *claviger.KeyVersion) ([]Origin, error) {
	if v.Of == nil || r.origins.history == nil {
		return nil, nil
	}
	list, err := r.origins.of(ctx, v.Key)
	if err != nil {
		return nil, err
	}
	var origins []Origin
	for _, o := range list {
		if sameOrigin(v.Of, o.Created, o.ACLName) {
			origins = append(origins, o)
		}
	}
	return origins, nil
}
