package migrate

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"claviger"
	"claviger/metastore"
)

// Holder says which KMS has a key, or a version of it.
type Holder string

// The holders. Nobody is for names that are unknown here and to the journal.
const (
	Here      Holder = "here"      // also a deleted key that can be undeleted
	AtSource  Holder = "source"    // a source has it, or may have it
	Destroyed Holder = "destroyed" // it was made here and has been destroyed since
	Nobody    Holder = "nobody"
)

// EDEKFacts are the facts about the names in a census, from the journal, the keys here and the counters of uses.
type EDEKFacts struct {
	At time.Time
	// Run is the last run; nil: there is none. Its state Running means that its process was killed.
	Run *Run
	// RunEnded is when the last run had taken over all keys; zero: it has not.
	RunEnded time.Time
	// TakenOver has when each key was taken over, by its folded name (claviger.FoldName).
	TakenOver map[string]time.Time
	// Versions are the known versions of sources, oldest first for each key.
	Versions []SourceVersion
	// Keys and EDEKs have the holder of each key and version that EDEKFacts was called with.
	Keys, EDEKs map[string]Holder
	// Names are the keys here, without deleted ones.
	Names []string
	// LastUse is the last use of any version of a source; nil: none is known.
	LastUse *metastore.Use
	// Conflicts are names of versions that are one key here and another one at a source.
	Conflicts []VersionConflict
	// Clocks is the reason why the times of uses are not certain; nil if they are certain.
	Clocks error
	// Images are the newest images that verdicts have counted, by the id of the namespace.
	Images map[uint32]SeenImage
	// Journal is the digest of the journal's keys and versions.
	Journal string
}

// SourceVersion is a version of a source.
type SourceVersion struct {
	Key string // as it is named here
	VersionMapping
}

// EDEKFacts returns the facts for the keys of zones, and the versions of EDEKs, that a census has found.
func (e *Engine) EDEKFacts(ctx context.Context, keys, versions []string) (*EDEKFacts, error) {
	h, err := e.read(ctx, "")
	if err != nil {
		return nil, err
	}
	f := &EDEKFacts{At: e.now(), Keys: map[string]Holder{}, EDEKs: map[string]Holder{}, Journal: e.digest(h),
		TakenOver: map[string]time.Time{}}
	if f.Run = h.last(); f.Run != nil {
		f.RunEnded = f.Run.complete()
	}
	if f.Names, err = e.cfg.Target.Keys(ctx); err != nil {
		return nil, err
	}
	slices.Sort(f.Names)
	holders := &holders{e: e, h: h, names: f.Names, versions: map[string]map[string]bool{}}
	for _, key := range keys {
		if f.Keys[key], err = holders.key(ctx, key); err != nil {
			return nil, err
		}
	}
	for _, v := range versions {
		if f.EDEKs[v], err = holders.version(ctx, v); err != nil {
			return nil, err
		}
	}
	if f.Conflicts, err = e.conflicts(ctx); err != nil {
		return nil, err
	}
	clocks, err := e.cfg.Store.Clocks(ctx)
	if err != nil {
		return nil, err
	}
	f.Clocks = clocks.Check()
	if f.Images, err = e.seenImages(ctx); err != nil {
		return nil, err
	}
	return f, e.addUses(ctx, f, h)
}

// lastUse returns the latest of the uses, or nil.
func lastUse(uses []metastore.Use) (last *metastore.Use) {
	for i := range uses {
		if last == nil || uses[i].Last.After(last.Last) {
			last = &uses[i]
		}
	}
	return last
}

// complete returns when the run had taken over all keys; zero: it has not.
func (r *Run) complete() time.Time {
	switch {
	case r.Completed != nil:
		return *r.Completed
	case (r.State == Complete || r.State == Finished) && r.Ended != nil:
		return *r.Ended
	}
	return time.Time{}
}

// addUses adds the versions of the sources, with their uses, and those of f.EDEKs that a source has.
func (e *Engine) addUses(ctx context.Context, f *EDEKFacts, h *history) error {
	uses, err := e.cfg.Store.Uses(ctx)
	if err != nil {
		return err
	}
	f.LastUse = lastUse(uses)
	byKey := usesByKey(uses, h)
	more := map[string][]string{}
	for _, v := range slices.Sorted(maps.Keys(f.EDEKs)) {
		if f.EDEKs[v] == AtSource {
			key := h.spelled(claviger.ParseVersion(v).Key)
			more[key] = append(more[key], v)
		}
	}
	for _, key := range slices.Sorted(slices.Values(h.order)) {
		it := h.items[key]
		it.SourceVersions = it.sourceNames()
		if it.Ended != nil {
			f.TakenOver[claviger.FoldName(key)] = *it.Ended
		}
		f.addKey(key, mapping(it, byKey[key]), more[key])
		delete(byKey, key)
		delete(more, key)
	}
	rest := slices.Concat(slices.Collect(maps.Keys(byKey)), slices.Collect(maps.Keys(more)))
	slices.Sort(rest)
	for _, key := range slices.Compact(rest) { // used, or named by an EDEK, and never migrated
		f.addKey(key, mapping(Item{}, byKey[key]), more[key])
	}
	return nil
}

// addKey adds the versions of a key: those of the mapping that have names, and more. A key without any has one entry
// without a name.
func (f *EDEKFacts) addKey(key string, known []VersionMapping, more []string) {
	n := len(f.Versions)
	for _, m := range known {
		if m.Source != "" {
			f.Versions = append(f.Versions, SourceVersion{key, m})
		}
	}
	for _, v := range more {
		if !slices.ContainsFunc(f.Versions[n:], func(s SourceVersion) bool { return s.Source == v }) {
			f.Versions = append(f.Versions, SourceVersion{key, VersionMapping{Source: v}})
		}
	}
	if len(f.Versions) == n {
		f.Versions = append(f.Versions, SourceVersion{Key: key})
	}
}

// sourceNames returns the names of the source's versions. If the source numbers them, they are known also if it does
// not show them.
func (it *Item) sourceNames() []string {
	if len(it.SourceVersions) > 0 || it.First == 0 {
		return it.SourceVersions
	}
	key, n := it.Key, it.Source.Versions
	if it.Listed != "" {
		key = it.Listed
	}
	var names []string
	for i := max(0, n-maxNamed); i < n; i++ {
		names = append(names, claviger.VersionName(key, strconv.Itoa(i)))
	}
	return names
}

// maxNamed bounds how many versions of a key are named that the source does not show.
const maxNamed = 1000

// spelled returns the journal's spelling of a key's name, or the name itself if the journal does not know it.
func (h *history) spelled(name string) string {
	if _, ok := h.items[name]; ok {
		return name
	}
	for key, it := range h.items {
		if it.Listed == name || it.Folded && claviger.FoldName(key) == claviger.FoldName(name) {
			return key
		}
	}
	return name
}

// holders finds out which KMS has a key or a version.
type holders struct {
	e     *Engine
	h     *history
	names []string // of keys here, sorted
	// versions are the versions here of each key that was read.
	versions map[string]map[string]bool
}

// key returns the holder of a zone's key.
func (s *holders) key(ctx context.Context, name string) (Holder, error) {
	spelled := s.h.spelled(name)
	here, err := s.versionsHere(ctx, spelled)
	if err != nil {
		return "", err
	}
	_, elsewhere := s.h.elsewhere[spelled]
	_, journal := s.h.items[spelled]
	if _, found := slices.BinarySearch(s.names, spelled); found || len(here) > 0 {
		return Here, nil
	}
	if journal || elsewhere {
		return AtSource, nil
	}
	next, err := s.e.cfg.Store.NextNumber(ctx, spelled)
	if err != nil || next == 0 {
		return Nobody, err
	}
	return Destroyed, nil
}

// version returns the holder of an EDEK's version. A version of a source's key that was never made here counts as the
// source's, also if the source was never known to have it.
func (s *holders) version(ctx context.Context, name string) (Holder, error) {
	if s.e.cfg.Theirs[name] {
		return AtSource, nil
	}
	ref := claviger.ParseVersion(name)
	key := s.h.spelled(ref.Key)
	here, err := s.versionsHere(ctx, key)
	if err != nil || here[claviger.VersionName(key, ref.ID)] {
		return Here, err
	}
	it, journal := s.h.items[key]
	_, elsewhere := s.h.elsewhere[key]
	n, isNumber := ref.Number()
	if isNumber && !elsewhere && (!journal || n >= it.Source.Versions) {
		made, err := s.e.cfg.Store.Numbered(ctx, key, n)
		if err != nil || made {
			return Destroyed, err
		}
	}
	if journal || elsewhere {
		return AtSource, nil
	}
	return Nobody, nil
}

// versionsHere returns the versions that a key has here, and those of deleted keys of the same name.
func (s *holders) versionsHere(ctx context.Context, key string) (map[string]bool, error) {
	if known, ok := s.versions[key]; ok {
		return known, nil
	}
	versions := map[string]bool{}
	if _, found := slices.BinarySearch(s.names, key); found {
		list, err := s.e.cfg.Target.Versions(ctx, key)
		if err != nil && !claviger.Is(err, claviger.KeyNotFound) {
			return nil, err
		}
		for _, v := range list {
			versions[v.Name] = true
		}
	}
	deleted, err := s.e.cfg.Store.DeletedKeys(ctx, key)
	if err != nil {
		return nil, err
	}
	for _, k := range deleted {
		for _, v := range k.List {
			versions[claviger.VersionName(key, v.ID)] = true
		}
	}
	s.versions[key] = versions
	return versions, nil
}

// OldVersion is a version of a key here that a newer one has replaced.
type OldVersion struct {
	Version, Key string
	Replaced     time.Time // when the next version was made
	// LastUse is the last recorded use, or the time since which uses are recorded, if that is later.
	LastUse time.Time
}

// OldVersion returns the facts about a version that may be purged. Its errors have the kind KeyNotFound,
// VersionNotFound, Invalid for the newest version, or Unsupported if the target cannot purge one version.
func (e *Engine) OldVersion(ctx context.Context, version string) (*OldVersion, error) {
	target, ok := e.cfg.Target.(interface {
		Replaced(ctx context.Context, version string) (time.Time, error)
	})
	if !ok {
		return nil, claviger.Errorf("migrate.OldVersion", claviger.Unsupported, version,
			"%s cannot destroy one version of a key; only an HSM can", e.cfg.Target.URI())
	}
	at, err := target.Replaced(ctx, version)
	if err != nil {
		return nil, err
	}
	last, since, err := e.cfg.Store.LastUses(ctx, version)
	if err != nil {
		return nil, err
	}
	v := &OldVersion{Version: version, Key: claviger.ParseVersion(version).Key, Replaced: at, LastUse: since}
	if last[0].After(since) {
		v.LastUse = last[0]
	}
	return v, nil
}
