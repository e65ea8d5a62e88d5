package keyring

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/provider"
)

const (
	// defaultCompareEvery is the longest time until a roll at a source is known here.
	defaultCompareEvery = 30 * time.Second
	// comparedAtOnce is the number of keys in one request to a source.
	comparedAtOnce = 50
)

// WatchSources compares the migrated keys with their sources, every Config.CompareEvery, until ctx ends.
func (r *Ring) WatchSources(ctx context.Context) {
	if r.sources.none() && r.origins.history == nil {
		return
	}
	tick := time.NewTicker(r.cfg.CompareEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = r.CompareSources(ctx) // another check reports a source that does not answer
		}
	}
}

// CompareSources reads from the sources how many versions they count of the keys that were migrated from them, and
// finds the version names that belong to another version there. If a source does not answer, its last answer stays in
// force.
func (r *Ring) CompareSources(ctx context.Context) error {
	c := &r.conflicts
	c.mu.Lock()
	defer c.mu.Unlock()
	byKey, err := r.origins.all(ctx)
	if err != nil {
		return err
	}
	var all []Origin
	for _, list := range byKey {
		all = append(all, list...)
	}
	var errs []error
	// The stored conflicts are read each time: another node may have other sources, and its findings count here too.
	if last, err := r.readConflicts(ctx); err == nil {
		c.last = last
	} else if errs = append(errs, err); c.last == nil {
		return err
	}
	known, err := r.inJournal(ctx, all)
	errs = append(errs, err)
	rolled, err := r.compareEach(ctx, all, known)
	errs = append(errs, err)
	// A conflict remains even if its source was removed from the configuration, or has another URI now.
	for uri, versions := range c.last {
		for v := range versions {
			if _, found := known[v]; !found {
				known[v] = uri
			}
		}
	}
	maps.DeleteFunc(known, func(v, _ string) bool { return r.cfg.OwnVersions[v] })
	here, err := r.stillHere(ctx, known)
	errs = append(errs, err)
	r.setConflicts(ctx, known, here)
	r.setRolled(rolled)
	return errors.Join(errs...)
}

// inJournal returns the versions that the journal of a migration has in conflict, with their sources.
func (r *Ring) inJournal(ctx context.Context, all []Origin) (map[string]string, error) {
	known := map[string]string{}
	var errs []error
	for _, o := range all {
		if o.Rolled == 0 || !o.Finished.IsZero() {
			continue
		}
		versions, err := r.versionsBelow(ctx, o.Key, o.Rolled)
		errs = append(errs, err)
		for _, v := range versions {
			known[v] = o.Source
		}
	}
	return known, errors.Join(errs...)
}

// compareEach compares with each source, adds the versions in conflict to known, and stores new ones. It returns the
// keys that were rolled at sources with opaque ids.
func (r *Ring) compareEach(ctx context.Context, all []Origin, known map[string]string) ([]rolledKey, error) {
	c := &r.conflicts
	var rolled []rolledKey
	var errs []error
	changed := false
	for _, s := range r.sources.list {
		now, keys, err := r.compareWith(ctx, s, all)
		rolled = append(rolled, keys...)
		if err != nil {
			errs = append(errs, err)
			rolled = withBefore(rolled, load(&c.rolled), s.URI())
		}
		// A conflict remains once it was found. Even if the source has lost the version or the key since, or is another
		// KMS now, the EDEKs still exist.
		before := len(c.last[s.URI()])
		maps.Copy(now, c.last[s.URI()])
		if len(now) > before {
			c.last[s.URI()], changed = now, true
		}
		for v := range now {
			known[v] = s.URI()
		}
	}
	if changed {
		errs = append(errs, r.writeConflicts(ctx))
	}
	return rolled, errors.Join(errs...)
}

// setConflicts stores the versions in conflict for requests, and logs the new conflicts of versions that are here.
func (r *Ring) setConflicts(ctx context.Context, known, here map[string]string) {
	before := load(&r.conflicts.here)
	r.conflicts.known.Store(&known)
	r.conflicts.here.Store(&here)
	for _, v := range slices.Sorted(maps.Keys(here)) {
		if _, logged := before[v]; !logged {
			r.log.Error("a key version here has the name of another version at its source, so "+
				"EDEKs of that name are not opened", "version", claviger.Printable(v), "source", here[v],
				"cure", r.conflictCure(ctx, claviger.ParseVersion(v)))
		}
	}
}

// compared is a key that is compared with a source.
type compared struct {
	counted int       // versions when the key was migrated
	opaque  bool      // the source names its versions by opaque ids
	made    time.Time // its creation time at the source
	any     bool      // the journal has no creation time, so any key of the name is compared
}

// toCompare returns the keys, by their names at the source, that are compared with it.
func (r *Ring) toCompare(s *source, all []Origin) map[string]compared {
	keys := map[string]compared{}
	migrated := func(o Origin) bool { return o.Numbered || o.TakenOver && o.Counted > 0 && o.Finished.IsZero() }
	for _, o := range all {
		if o.Source == s.URI() && migrated(o) {
			keys[o.Key] = compared{counted: o.Counted, opaque: !o.Numbered, made: o.Created, any: o.Created.IsZero()}
		}
	}
	for _, o := range all {
		// The source of this key is no longer configured. s may be the same source under another URI (another name of
		// the host, TLS, a port, one more node), if it has the same key.
		_, known := keys[o.Key]
		if !known && !r.sources.configured(o.Source) && o.Finished.IsZero() && migrated(o) {
			keys[o.Key] = compared{counted: o.Counted, opaque: !o.Numbered, made: o.Created}
		}
	}
	for _, o := range all { // versions that were made at a former primary may also be in conflict with the source's
		if _, known := keys[o.Key]; !known && len(o.MadeThere) > 0 && o.Source != s.URI() {
			keys[o.Key] = compared{made: o.Created}
		}
	}
	return keys
}

// compareWith returns the versions here that the source has too, of keys that were migrated from it, and the keys that
// it has rolled since, if its ids are opaque. It returns what it found even with an error.
func (r *Ring) compareWith(ctx context.Context, s *source, all []Origin) (map[string]bool, []rolledKey, error) {
	found := map[string]bool{}
	var rolled []rolledKey
	keys := r.toCompare(s, all)
	var errs []error
	for names := range slices.Chunk(slices.Sorted(maps.Keys(keys)), comparedAtOnce) {
		counts, err := s.counts(ctx, names)
		if err != nil {
			errs = append(errs, err)
			if noAnswer(err) {
				break
			}
		}
		for _, key := range names {
			m, c := counts[key], keys[key]
			if m == nil || m.Versions <= c.counted {
				continue
			}
			// A key that was made again at the source is not the migrated key. Otherwise any user who may make keys
			// there could block the migrated key.
			if !c.any && c.made.UnixMilli() != m.Created.UnixMilli() {
				continue
			}
			if c.opaque {
				rolled = append(rolled, rolledKey{key, s.URI(), c.counted, m.Versions - c.counted})
				continue
			}
			versions, err := r.versionsBelow(ctx, key, m.Versions)
			errs = append(errs, err)
			for _, v := range append(versions, madeElsewhere(all, s.URI(), key, m.Versions)...) {
				if s.mayHave(ctx, claviger.ParseVersion(v)) {
					found[v] = true
				}
			}
			errs = append(errs, r.skipNumbers(ctx, key, m.Versions))
		}
	}
	return found, rolled, errors.Join(errs...)
}

// skipNumbers keeps the next roll here from taking a number that the source has used.
func (r *Ring) skipNumbers(ctx context.Context, key string, next int) error {
	if r.cfg.Numbers == nil {
		return nil
	}
	if now, err := r.cfg.Numbers.NextNumber(ctx, key); err != nil || now >= next {
		return err
	}
	return r.cfg.Numbers.SkipNumbers(ctx, key, min(next, claviger.MaxVersion))
}

// versionsBelow returns the versions of a key here whose numbers are below number. It includes versions of deleted keys
// of the name, because these keys may come back.
func (r *Ring) versionsBelow(ctx context.Context, key string, number int) ([]string, error) {
	all, err := r.primary.versionNames(ctx, key)
	if err != nil && !claviger.Is(err, claviger.KeyNotFound) {
		return nil, err
	}
	deleted, err := r.primary.deletedOf(ctx, key, "")
	if err != nil {
		return nil, err
	}
	for _, k := range deleted {
		all = append(all, k.List...)
	}
	return slices.DeleteFunc(all, func(version string) bool {
		n, ok := claviger.VersionNumber(version)
		return !ok || n >= number
	}), nil
}

// stillHere returns the versions that a key here has, or that may have been used. A version that cannot be read counts
// as here.
func (r *Ring) stillHere(ctx context.Context, versions map[string]string) (map[string]string, error) {
	here := map[string]string{}
	var errs []error
	for version, source := range versions {
		has, err := provider.MayHave(ctx, r.primary.Provider, version)
		errs = append(errs, err)
		if !has && !r.cfg.SourceVersions[version] { // deleted: its EDEKs are not opened by the source
			v := claviger.ParseVersion(version)
			var place string
			place, err = r.formerPrimaryOf(ctx, v)
			errs = append(errs, err)
			has, err = r.mayBeOwn(ctx, v)
			has = has || place != ""
			errs = append(errs, err)
		}
		if has {
			here[version] = source
		}
	}
	return here, errors.Join(errs...)
}

// readConflicts reads the conflicts that earlier processes and other nodes have found. The source may not answer now.
func (r *Ring) readConflicts(ctx context.Context) (map[string]map[string]bool, error) {
	last := map[string]map[string]bool{}
	if r.cfg.Settings == nil {
		maps.Copy(last, r.conflicts.last)
		return last, nil
	}
	lists, err := metastore.Conflicts(ctx, r.cfg.Settings)
	if err != nil {
		return nil, err
	}
	for uri, versions := range lists {
		last[uri] = make(map[string]bool, len(versions))
		for _, v := range versions {
			last[uri][v] = true
		}
	}
	return last, nil
}

// writeConflicts stores the versions in conflict, for later processes and other nodes.
func (r *Ring) writeConflicts(ctx context.Context) error {
	if r.cfg.Settings == nil {
		return nil
	}
	lists := make(map[string][]string, len(r.conflicts.last))
	for uri, versions := range r.conflicts.last {
		lists[uri] = slices.Sorted(maps.Keys(versions))
	}
	return metastore.SetConflicts(ctx, r.cfg.Settings, lists)
}
