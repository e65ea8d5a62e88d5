package migrate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
)

// sameTarget reports whether the URI of a target in the journal and today's URI mean the same keys. Two URIs
// of HSMs always mean the same keys, because the HSM is bound to the metastore that has the journal. Two URIs of
// keystore files mean the same keys if they have the same path.
func sameTarget(then, now string) bool {
	return then == "" || keystoreFile(then) == keystoreFile(now)
}

// keystoreFile returns the path in a keystore file's URI, or "" for other URIs.
func keystoreFile(uri string) string {
	scheme, _, _ := strings.Cut(uri, ":")
	if scheme = strings.ToLower(scheme); scheme != "jceks" && scheme != "localjceks" {
		return ""
	}
	path, err := provider.UnnestPath(uri)
	if err != nil {
		return uri
	}
	return path
}

// otherTakeover is the newest record of a key that a run into another target has taken over, or has begun to take over.
type otherTakeover struct {
	Item
	target string // URI
	began  time.Time
}

// asSource returns the other target as a source, if it is configured as a source now; EDEKs of its versions open
// there. Otherwise it returns nil.
func (e *Engine) asSource(a otherTakeover) Source {
	for _, s := range append(slices.Clone(e.cfg.OtherSources), e.cfg.Source) {
		if s != nil && sameTarget(a.target, s.URI()) {
			return s
		}
	}
	return nil
}

// whyElsewhere returns the reason why a key is not here, and the cure. It calls no provider.
func (e *Engine) whyElsewhere(a otherTakeover) string {
	if e.asSource(a) != nil {
		return "was taken over into " + a.target + ", which is a source now: run the migration again"
	}
	return fmt.Sprintf("was taken over into %s at %s, so EDEKs may exist under its versions there%s, which open only "+
		"there: keep these versions, keep the key at its source, name the other target behind the first provider in "+
		"%s, and run the migration again; the versions here then get higher numbers",
		a.target, a.began.UTC().Format(time.RFC3339), inBrackets(a.TargetVersions), propProvider)
}

// lowestNumber returns the lowest number that versions here may have. The key was taken over into another target, which
// is the source s now.
func lowestNumber(ctx context.Context, s Source, a otherTakeover) (first int, err error) {
	for _, v := range a.TargetVersions {
		if n, ok := claviger.VersionNumber(v); ok {
			first = max(first, n+1)
		}
	}
	ms, err := s.Metadata(ctx, a.Key)
	if err != nil {
		return 0, fmt.Errorf("key %s was taken over into %s, but the number of its versions there cannot be read: %w",
			claviger.Printable(a.Key), a.target, err)
	}
	for _, m := range ms {
		if m != nil {
			first = max(first, m.Versions)
		}
	}
	return first, nil
}

// duplicateVersion returns a version that a key has here, and whose name a version of the key in another target has
// too. It returns "" if there is none, or if an operator has said that the EDEKs of that name are this target's.
func (e *Engine) duplicateVersion(ctx context.Context, a otherTakeover) (string, error) {
	if len(a.TargetVersions) == 0 {
		return "", nil
	}
	vs, err := e.cfg.Target.Versions(ctx, a.Key)
	if err != nil {
		return "", err
	}
	for _, name := range namesOf(vs) {
		if slices.Contains(a.TargetVersions, name) && !e.cfg.Ours[name] {
			return name, nil
		}
	}
	return "", nil
}

// rolledInto returns a version that was made for a key in another target, and whose name the source has since given to
// a version of its own. It returns "" if there is none, or if an operator has said that the version's EDEKs are the
// source's.
func (e *Engine) rolledInto(ctx context.Context, a otherTakeover, atSource *claviger.Metadata) string {
	var among []string
	for _, v := range a.TargetVersions {
		if !e.cfg.Theirs[v] {
			among = append(among, v)
		}
	}
	return e.collision(ctx, a.Item, atSource, among)
}

// whyRolledInto returns the text for an operator about a version that rolledInto found.
func (e *Engine) whyRolledInto(version string, a otherTakeover) string {
	return fmt.Sprintf("%s is one key at the source, which was rolled since, and another key in %s, into which the "+
		"key was taken over at %s, and an EDEK names its version by that name alone, so no EDEK of that name is "+
		"opened or re-encrypted here: stop rolls at the source; copy the files that were made while the server used "+
		"that other target, from a server that uses it and not the source; then set %s to %s, %s: then the source "+
		"opens all EDEKs of that name",
		claviger.Printable(version), a.target, a.began.UTC().Format(time.RFC3339), PropTheirs,
		claviger.NamesWith(e.cfg.Theirs, version), thenRun)
}

// recordDuplicates adds duplicate versions to the conflicts, so that a server opens no EDEK of these names.
func (e *Engine) recordDuplicates(ctx context.Context, duplicates []VersionConflict) error {
	if len(duplicates) == 0 {
		return nil
	}
	bySource, err := metastore.Conflicts(ctx, e.cfg.Store)
	if err != nil {
		return err
	}
	if bySource == nil {
		bySource = map[string][]string{}
	}
	changed := false
	for _, c := range duplicates {
		if !slices.Contains(bySource[c.Source], c.Version) {
			bySource[c.Source], changed = append(bySource[c.Source], c.Version), true
		}
	}
	if !changed {
		return nil
	}
	return metastore.SetConflicts(ctx, e.cfg.Store, bySource)
}

// whyDuplicate returns the text for an operator about a version that duplicateVersion found.
func (e *Engine) whyDuplicate(ctx context.Context, version string, a otherTakeover) string {
	key := claviger.Printable(a.Key)
	return fmt.Sprintf("%s is one key here and another key in %s, into which the key was taken over too, at %s, and "+
		"an EDEK names its version by that name alone: delete neither; roll key %s here, so that new files can be "+
		"read, and copy the files that were made while the server used that other target, from a server that uses it; "+
		"then set %s to %s and restart",
		claviger.Printable(version), a.target,
		a.began.UTC().Format(time.RFC3339), key, PropOurs, e.oursValue(ctx, version, nil))
}

// itemElsewhere returns the item of a key that is in another target.
func itemElsewhere(a otherTakeover, why string) Item {
	return Item{Key: a.Key, State: Elsewhere, Listed: a.Listed, Folded: a.Folded, Source: a.Source,
		SourceVersions: a.SourceVersions, Why: why}
}

// onlyElsewhere returns the keys that runs took over into another target and that no run took over here, sorted by
// name.
func (h *history) onlyElsewhere() []otherTakeover {
	var list []otherTakeover
	for _, a := range h.elsewhere {
		if st := h.items[a.Key].State; st != Done && st != Deleted && st != Importing {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(a, b otherTakeover) int { return strings.Compare(a.Key, b.Key) })
	return list
}

// originElsewhere returns the target of a run as a source, because EDEKs of the versions there open only there.
// takenOver is true if a later run has taken the key over here, with higher numbers.
func originElsewhere(a otherTakeover, takenOver bool) Origin {
	o := Origin{Key: a.Key, Source: a.target, TakenOver: takenOver, Numbered: takenOver, Metadata: a.Source,
		Folded: a.Folded}
	if a.numbered() {
		o.MadeThere = a.TargetVersions
	}
	o.Metadata.Versions = 0
	for _, v := range a.TargetVersions {
		if n, ok := claviger.VersionNumber(v); ok {
			o.Metadata.Versions = max(o.Metadata.Versions, n+1)
		}
	}
	return o
}
