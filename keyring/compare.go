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
	// defaultCompareEvery is how long a roll at a source may stay unknown here.
	defaultCompareEvery = 30 * time.Second
	// comparedAtOnce is how many keys a source is asked for in one question.
	comparedAtOnce = 50
)

// WatchSources compares the migrated keys with their sources, now and then, until ctx
// ends.
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
			_ = r.CompareSources(ctx) // a source that does not answer has a check of its own
		}
	}
}

// CompareSources asks the sources how many versions they count of the keys that were
// migrated from them, and finds the version names that are another key there. What a
// source does not tell now is believed as it told it before.
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
	known := map[string]string{}
	var errs []error
	// Read each time: another node may have other sources, and what it found stands here too.
	if last, err := r.readConflicts(ctx); err == nil {
		c.last = last
	} else if errs = append(errs, err); c.last == nil {
		return err
	}
	changed := false
	for _, o := range all {
		if o.Rolled > 0 && o.Finished.IsZero() { // the journal has it so
			versions, err := r.below(ctx, o.Key, o.Rolled)
			errs = append(errs, err)
			for _, v := range versions {
				known[v] = o.Source
			}
		}
	}
	var rolled []rolledKey
	for _, s := range r.sources.list {
		now, keys, err := r.compareWith(ctx, s, all)
		rolled = append(rolled, keys...)
		if err != nil {
			errs = append(errs, err)
			rolled = withBefore(rolled, load(&c.rolled), s.URI())
		}
		// What was found stays: the source may have lost the version since, or the key, and
		// may be another KMS today. The EDEKs in question are still there.
		before := len(c.last[s.URI()])
		maps.Copy(now, c.last[s.URI()])
		if len(now) > before {
			c.last[s.URI()], changed = now, true
		}
		for v := range now {
			known[v] = s.URI()
		}
	}
	// So it does where its source is taken out of the configuration, or named by another URI.
	for uri, versions := range c.last {
		for v := range versions {
			if _, told := known[v]; !told {
				known[v] = uri
			}
		}
	}
	if changed {
		errs = append(errs, r.writeConflicts(ctx))
	}
	maps.DeleteFunc(known, func(v, _ string) bool { return r.cfg.Ours[v] })
	here, err := r.stillHere(ctx, known)
	errs = append(errs, err)
	before := load(&c.here)
	c.known.Store(&known)
	c.here.Store(&here)
	for _, v := range slices.Sorted(maps.Keys(here)) {
		if _, told := before[v]; !told {
			r.log.Error("a key version here has the name of another one at its source, so EDEKs of that name are not opened",
				"version", claviger.Printable(v), "source", here[v], "cure", r.conflictCure(ctx, claviger.ParseVersion(v)))
		}
	}
	r.setRolled(rolled)
	return errors.Join(errs...)
}

// compareWith returns the versions here that the source has too, of keys that were
// migrated from it, and the keys that it has rolled since where it does not number them.
// What was found stands beside an error.
func (r *Ring) compareWith(ctx context.Context, s *source, all []Origin) (map[string]bool, []rolledKey, error) {
	found := map[string]bool{}
	var rolled []rolledKey
	counted := map[string]int{} // when the key was migrated
	opaque := map[string]bool{}
	made := map[string]time.Time{} // by the source, where the journal has it
	for _, o := range all {
		if o.Source == s.URI() && (o.Numbered || o.TakenOver && o.Counted > 0 && o.Finished.IsZero()) {
			counted[o.Key], opaque[o.Key] = o.Counted, !o.Numbered
			if !o.Created.IsZero() {
				made[o.Key] = o.Created
			}
		}
	}
	for _, o := range all {
		// A key of a source that is configured no more: this one may be the same under another
		// URI (another name of the host, TLS, a port, one more node), if it has the very key.
		_, known := counted[o.Key]
		if !known && !r.sources.configured(o.Source) && o.Finished.IsZero() && (o.Numbered || o.TakenOver && o.Counted > 0) {
			counted[o.Key], opaque[o.Key], made[o.Key] = o.Counted, !o.Numbered, o.Created
		}
	}
	for _, o := range all { // what was made at a former primary stands against a source's, too
		if _, known := counted[o.Key]; !known && len(o.MadeThere) > 0 && o.Source != s.URI() {
			counted[o.Key], made[o.Key] = 0, o.Created
		}
	}
	var errs []error
	for names := range slices.Chunk(slices.Sorted(maps.Keys(counted)), comparedAtOnce) {
		counts, err := s.counts(ctx, names)
		if err != nil {
			errs = append(errs, err)
			if noAnswer(err) {
				break
			}
		}
		for _, key := range names {
			m := counts[key]
			if m == nil || m.Versions <= counted[key] {
				continue
			}
			// A key that was made anew there is not the one that was migrated. Else any user who may
			// make keys there could close the migrated key to its users.
			if created, ok := made[key]; ok && created.UnixMilli() != m.Created.UnixMilli() {
				continue
			}
			if opaque[key] {
				rolled = append(rolled, rolledKey{key, s.URI(), counted[key], m.Versions - counted[key]})
				continue
			}
			versions, err := r.below(ctx, key, m.Versions)
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

// below returns the versions of a key here that have a number below that, those of deleted
// keys of its name among them: they may come back.
func (r *Ring) below(ctx context.Context, key string, number int) ([]string, error) {
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

// stillHere returns those of the versions that a key here has, or that may have been used.
// A version stays where it cannot be read.
func (r *Ring) stillHere(ctx context.Context, versions map[string]string) (map[string]string, error) {
	here := map[string]string{}
	var errs []error
	for version, source := range versions {
		has, err := provider.MayHave(ctx, r.primary.Provider, version)
		errs = append(errs, err)
		if !has && !r.cfg.Theirs[version] { // deleted: its EDEKs are not opened by the source
			v := claviger.ParseVersion(version)
			var place string
			place, err = r.madeThere(ctx, v)
			errs = append(errs, err)
			has, err = r.mayBeOurs(ctx, v)
			has = has || place != ""
			errs = append(errs, err)
		}
		if has {
			here[version] = source
		}
	}
	return here, errors.Join(errs...)
}

// readConflicts is what the sources told an earlier process, or another node: a source
// may be silent now.
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

// writeConflicts keeps what the sources have told.
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
