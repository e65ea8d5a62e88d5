package migrate

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
	"claviger/shellword"
)

// naming is how a source names versions.
type naming int

const (
	unknown  naming = iota // not shown; treated as numbered, which is safe in both cases
	numbered               // NAME@N, as a Java KMS, a Ranger KMS and ours do
	opaque                 // as a Key Trustee KMS
)

// number stores in it how many versions the target makes of a key, and their lowest number. NAME@(versions-1) must be
// the current version for clients. No version of ours may have the name of a version at the source, because an EDEK
// has only the name of its version.
//
// A key of a source that numbers versions gets, by default, one fresh version with the next number, or with a
// number that leaves room for rolls at the source (Config.Gap). Other keys get as many versions as the source
// counts, from 0 on.
func (e *Engine) number(ctx context.Context, sv *survey, it *Item, atSource *claviger.Metadata) {
	count := atSource.Versions
	if first := atSource.Versions; e.naming(ctx, sv, it) != opaque {
		if first <= claviger.MaxVersion-e.cfg.Gap-e.cfg.MaxVersions {
			first += e.cfg.Gap
		}
		it.First = max(first, it.First)
		count = 1
	}
	switch e.cfg.Versions {
	case All:
		count = atSource.Versions
	case Current:
		count = 1
	}
	if it.State == Done || it.Retaken || it.State == Importing && it.Count > 0 {
		return // the versions that were made, or begun, are counted already
	}
	it.Count = count
	if it.State == Planned && count > e.cfg.MaxVersions {
		it.State = Unsupported
		it.Why = fmt.Sprintf("the source counts %d versions, but at most %d are made of one key; use --versions "+
			"current", atSource.Versions, e.cfg.MaxVersions)
	}
}

// naming finds out how the source names a key's versions: from the list of its versions, else from those of another
// key, else by a probe for the version that would be the current one.
func (e *Engine) naming(ctx context.Context, sv *survey, it *Item) naming {
	if len(it.SourceVersions) > 0 {
		sv.naming = opaque
		if namesAreNumbers(it.SourceVersions) {
			sv.naming = numbered
		}
		return sv.naming
	}
	if sv.naming == unknown && sv.probes < maxProbes {
		sv.probes++
		sv.naming = e.probeNaming(ctx, it.Key, it.Source.Versions)
	}
	return sv.naming
}

// maxProbes is the number of keys that probeNaming may probe.
const maxProbes = 5

// probeNaming lets the source open a random EDEK of NAME@(versions-1). That needs only the right to open old EDEKs, and
// reveals no DEK.
func (e *Engine) probeNaming(ctx context.Context, key string, versions int) naming {
	service, ok := e.cfg.Source.(provider.EDEKService)
	if !ok {
		return unknown
	}
	random := make([]byte, 2*claviger.IVSize)
	_, _ = rand.Read(random) // never fails: crypto/rand
	edek := claviger.EDEK{Version: claviger.VersionName(key, strconv.Itoa(versions-1)), IV: random[:claviger.IVSize],
		Material: random[claviger.IVSize:]}
	deks, err := service.Unwrap(ctx, key, "", []claviger.EDEK{edek})
	for _, d := range deks {
		d.Wipe()
	}
	switch {
	case err == nil:
		return numbered
	case claviger.Is(err, claviger.VersionNotFound):
		return opaque
	}
	return unknown
}

func namesAreNumbers(versions []string) bool {
	return !slices.ContainsFunc(versions, func(v string) bool { _, ok := claviger.VersionNumber(v); return !ok })
}

// countOf returns the metadata's count for a key that has these versions.
func countOf(versions []string) int {
	if len(versions) == 0 {
		return 0
	}
	newest := versions[len(versions)-1]
	key, _ := claviger.KeyOfVersion(newest)
	return claviger.CountVersions(newest[min(len(key)+1, len(newest)):], len(versions))
}

// skip reserves the numbers that a source has used, also for keys that are not taken over. Old EDEKs keep
// naming these numbers after the source has gone, and a key that is made here later must not answer to them.
func (e *Engine) skip(ctx context.Context, it Item) error {
	if it.First == 0 {
		return nil
	}
	next, err := e.cfg.Store.NextNumber(ctx, it.Key)
	if err != nil || next >= it.First {
		return err
	}
	return e.cfg.Store.SkipNumbers(ctx, it.Key, min(it.First, claviger.MaxVersion))
}

// collision returns a name that two different versions have, one at the source and one at the target, because the
// source rolled its key after the takeover. It returns "" if there is none, and if the source has another key of the
// name (see sinceRun). targetNames are the names at the target. collision leaves out versions whose EDEKs, by the
// operator's statement, are the target's.
func (e *Engine) collision(ctx context.Context, it Item, atSource *claviger.Metadata, targetNames []string) string {
	if !it.numbered() || it.recreated(atSource) {
		return ""
	}
	for _, v := range targetNames {
		n, ok := claviger.VersionNumber(v)
		if !ok || n >= atSource.Versions || e.cfg.Ours[v] {
			continue
		}
		// Perhaps the source does not number its versions: naming may have been unknown.
		if e.probeNaming(ctx, it.Key, n+1) != opaque {
			return v
		}
	}
	return ""
}

// numbered reports whether the source numbers its versions.
func (it *Item) numbered() bool {
	return it.First > 0 || len(it.SourceVersions) > 0 && namesAreNumbers(it.SourceVersions)
}

// collided returns the item of a key that is in conflict because of that version. here are all versions that the key
// has here.
func (e *Engine) collided(ctx context.Context, it Item, atSource *claviger.Metadata, version string,
	here ...string) Item {
	more := slices.DeleteFunc(slices.Clone(here), func(v string) bool {
		n, ok := claviger.VersionNumber(v)
		return !ok || n >= atSource.Versions
	})
	it.State, it.Why, it.Rolled = Conflict, e.whyCollision(ctx, version, more...), atSource.Versions
	return it
}

// conflictsOf returns, by key, the first conflict that a server has found.
func (e *Engine) conflictsOf(ctx context.Context) (map[string]VersionConflict, error) {
	list, err := e.conflicts(ctx)
	byKey := make(map[string]VersionConflict, len(list))
	for _, c := range list {
		key, _ := claviger.KeyOfVersion(c.Version)
		if _, known := byKey[key]; !known {
			byKey[key] = c
		}
	}
	return byKey, err
}

// VersionConflict is a version here whose name the source gave to a version of its own, after the takeover of the key.
type VersionConflict struct {
	Version string `json:"version"`
	Source  string `json:"source"`
	Why     string `json:"why"` // with the cure
}

// conflicts returns the conflicts that a server has found and recorded in the metastore, without versions whose EDEKs,
// by the operator's statement, are the target's.
func (e *Engine) conflicts(ctx context.Context) ([]VersionConflict, error) {
	bySource, err := metastore.Conflicts(ctx, e.cfg.Store)
	if err != nil {
		return nil, err
	}
	if len(bySource) == 0 {
		return nil, nil
	}
	h, err := e.read(ctx, "")
	if err != nil {
		return nil, err
	}
	var found []VersionConflict
	for _, source := range slices.Sorted(maps.Keys(bySource)) {
		for _, version := range bySource[source] {
			known := func(c VersionConflict) bool { return c.Version == version }
			if e.cfg.Ours[version] || slices.ContainsFunc(found, known) {
				continue
			}
			// A version that is missing was deleted here. Its EDEKs are the source's if it was never used, or
			// if the operator says so.
			has, _ := provider.MayHave(ctx, e.cfg.Target, version)
			key, _ := claviger.KeyOfVersion(version)
			a := h.elsewhere[key]
			elsewhere := !has && slices.Contains(a.TargetVersions, version)
			if has || !e.cfg.Theirs[version] && (elsewhere || e.mayHaveUsed(ctx, version)) {
				c := VersionConflict{version, source, e.whyCollision(ctx, version)}
				switch {
				case elsewhere:
					c.Why = e.whyRolledInto(version, a)
				case a.target == source && a.target != "":
					c.Why = e.whyDuplicate(ctx, version, a)
				}
				found = append(found, c)
			}
		}
	}
	return found, nil
}

// settleConflicts removes all conflicts, after the operator has decided about them.
func (e *Engine) settleConflicts(ctx context.Context) error {
	if bySource, err := metastore.Conflicts(ctx, e.cfg.Store); err != nil || len(bySource) == 0 {
		return err
	}
	return metastore.SetConflicts(ctx, e.cfg.Store, nil)
}

// mayHaveUsed reports whether EDEKs may have been made here under a version of that name. It returns true if that is
// not known.
func (e *Engine) mayHaveUsed(ctx context.Context, version string) bool {
	used, err := metastore.MayHaveUsed(ctx, e.cfg.Store, e.cfg.Store, claviger.ParseVersion(version))
	return used || err != nil
}

// keyUsed returns false only if it is certain that no version of the key here was ever used.
func (e *Engine) keyUsed(ctx context.Context, key string) bool {
	vs, err := e.cfg.Target.Versions(ctx, key)
	return err != nil || slices.ContainsFunc(namesOf(vs), func(version string) bool {
		never, err := e.cfg.Store.NeverUsed(ctx, version)
		return !never || err != nil
	})
}

// whyCollision returns the text for an operator about the version. Only a key whose versions were never used may be
// deleted: otherwise EDEKs of its versions would open nowhere, or would be treated as the source's. more are other
// versions of the key that are in conflict.
func (e *Engine) whyCollision(ctx context.Context, version string, more ...string) string {
	key, _ := claviger.KeyOfVersion(version)
	shown, name := claviger.Printable(version), claviger.Printable(key)
	why := fmt.Sprintf("rolled at the source since: %s is one key there and another key here, and an EDEK names its "+
		"version by that name alone, so no EDEK of that name is opened or re-encrypted here; ", shown)
	has, err := provider.MayHave(ctx, e.cfg.Target, version)
	switch {
	case err == nil && !has:
		return fmt.Sprintf("%sEDEKs of it may have been made here before it was deleted: bring the key back "+
			"(claviger key undelete %s), and run the migration again; if it was purged, or if no file needs the EDEKs "+
			"that were made here under %s, set %s to %s, %s",
			why, shellword.Quote(key), shown, PropTheirs, claviger.NamesWith(e.cfg.Theirs, version), thenRun)
	case !e.keyUsed(ctx, key):
		return fmt.Sprintf("%sstop rolls at the source; no version of the key was ever used here, so delete it here "+
			"(hadoop key delete) and run the migration again, which takes the next number (%s leaves room for more "+
			"rolls)", why, PropGap)
	}
	return fmt.Sprintf("%sstop rolls at the source; do not delete the key here, because EDEKs may exist under it: "+
		"roll key %s here, so that new files can be read, copy, through the source, the files that were made there "+
		"since its roll, set %s to %s, %s", why, name, PropOurs, e.oursValue(ctx, version, more), thenRun)
}

// thenRun is the step after a property was set. With SQLite, a run and a server cannot use the metastore at the same
// time.
const thenRun = "run the migration again (with a metastore in SQLite while the server is stopped), and restart every " +
	"node"

// oursValue returns the value of claviger.migration.ours that ends the conflict of a version and all other known
// conflicts of its key. more are versions here whose names the source has too.
func (e *Engine) oursValue(ctx context.Context, version string, more []string) string {
	key, _ := claviger.KeyOfVersion(version)
	more = append(slices.Clone(more), version)
	bySource, _ := metastore.Conflicts(ctx, e.cfg.Store) // an error only shortens the text
	for _, versions := range bySource {
		for _, v := range versions {
			if k, _ := claviger.KeyOfVersion(v); k == key {
				more = append(more, v)
			}
		}
	}
	return claviger.NamesWith(e.cfg.Ours, more...)
}

// deletedUsed returns one of the versions that belongs to a deleted key and may have been used, or "".
func (e *Engine) deletedUsed(ctx context.Context, key string, versions []string) (string, error) {
	keys, err := e.cfg.Store.DeletedKeys(ctx, key)
	if err != nil {
		return "", err
	}
	for _, k := range keys {
		for _, v := range k.List {
			name := claviger.VersionName(key, v.ID)
			if slices.Contains(versions, name) && !e.cfg.Theirs[name] && e.mayHaveUsed(ctx, name) {
				return name, nil
			}
		}
	}
	return "", nil
}

var _ metastore.Numbers = Store(nil)
