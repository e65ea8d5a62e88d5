package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	// conflictsShown is how many versions a message has.
	conflictsShown = 10
)

// absentSettles is how long a source that numbers its versions must say that it has none of
// a name, though it counts so many, before EDEKs of that name are re-encrypted: longer than
// Hadoop's KMS keeps what it has read (hadoop.kms.cache.timeout.ms). It is a variable for
// tests.
var absentSettles = 10 * time.Minute

// conflicts are the versions of migrated keys that have the name of another version at
// the source, which has rolled its key since. An EDEK tells its version by that name
// alone, so what comes out of such an EDEK here may be no DEK.
type conflicts struct {
	// known is by version, with the URI of the source. It has versions of keys that were
	// deleted here, too: these may come back, and no version of another key gets their names.
	known atomic.Pointer[map[string]string]
	// here are those of known that a key has now, or that may have been used.
	here atomic.Pointer[map[string]string]
	// rolled are migrated keys of sources whose version names are no numbers, which count
	// more versions there than were migrated, as each source last told.
	rolled atomic.Pointer[[]rolledKey]

	mu     sync.Mutex                 // held while sources are compared
	last   map[string]map[string]bool // by source: the versions in conflict, as it last told; nil: not read yet
	probed sync.Map                   // [2]string of source and version: it has it
	absent sync.Map                   // [2]string likewise: since when it says, each time, that it does not
	used   sync.Map                   // versions in conflict of whose keys it is known that one was used
}

// rolledKey is a migrated key that its source has rolled since. Its versions have other
// names than ours, so its EDEKs open through the source; but something uses the source.
type rolledKey struct {
	key, source    string
	counted, since int
}

func (k rolledKey) String() string {
	return fmt.Sprintf("key %s of %s (%d versions when it was migrated, %d more now)",
		claviger.Printable(k.key), k.source, k.counted, k.since)
}

// WatchSources compares the migrated keys with their sources, now and then, until ctx
// ends.
func (r *Ring) WatchSources(ctx context.Context) {
	if len(r.sources) == 0 && r.origins.history == nil {
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
	for _, s := range r.sources {
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
				"version", claviger.Printable(v), "source", here[v], "cure", r.conflictCure(ctx, v))
		}
	}
	r.setRolled(rolled)
	return errors.Join(errs...)
}

// withBefore adds the keys of a source that was not read whole, as it told of them before.
func withBefore(now, before []rolledKey, uri string) []rolledKey {
	for _, k := range before {
		again := func(n rolledKey) bool { return n.source == uri && n.key == k.key }
		if k.source == uri && !slices.ContainsFunc(now, again) {
			now = append(now, k)
		}
	}
	return now
}

// setRolled publishes the keys that were rolled at their sources, and logs new ones.
func (r *Ring) setRolled(all []rolledKey) {
	c := &r.conflicts
	slices.SortStableFunc(all, func(a, b rolledKey) int { return strings.Compare(a.source, b.source) })
	before := load(&c.rolled)
	for _, k := range all {
		if !slices.Contains(before, k) {
			r.log.Warn("a key was rolled at its source since it was migrated, so something uses the source",
				"key", claviger.Printable(k.key), "source", k.source, "migrated", k.counted,
				"more now", k.since, "cure", rolledCure)
		}
	}
	c.rolled.Store(&all)
}

// rolledCure says what to do about a key that was rolled at its source, where the names
// of versions are no numbers.
const rolledCure = "look whether HDFS, or another cluster, is pointed at the source " +
	"(hadoop.security.key.provider.path), point it here, stop rolls at the source " +
	"and re-encrypt the key's zones; claviger migrate finish asks whether that was done"

// CheckRolled names the migrated keys that their sources have rolled since, where the
// versions have other names than ours. The error is for an operator.
func (r *Ring) CheckRolled(context.Context) error {
	keys, more := load(&r.conflicts.rolled), ""
	if len(keys) == 0 {
		return nil
	}
	if n := len(keys) - conflictsShown; n > 0 {
		keys, more = keys[:conflictsShown], fmt.Sprintf(" and %d more", n)
	}
	shown := make([]string, len(keys))
	for i, k := range keys {
		shown[i] = k.String()
	}
	return claviger.Errorf("keyring.CheckRolled", claviger.Unavailable, "",
		"rolled at the source since the migration: %s%s; %s", strings.Join(shown, ", "), more, rolledCure)
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

// load returns what was published last, the zero value before that. It is not changed.
func load[T any](from *atomic.Pointer[T]) T {
	if published := from.Load(); published != nil {
		return *published
	}
	var none T
	return none
}

// stillHere returns those of the versions that a key here has, or that may have been used.
// A version stays where it cannot be read.
func (r *Ring) stillHere(ctx context.Context, versions map[string]string) (map[string]string, error) {
	here := map[string]string{}
	var errs []error
	for version, source := range versions {
		has, err := provider.MayHave(ctx, r.cfg.Primary, version)
		errs = append(errs, err)
		if !has && !r.cfg.Theirs[version] { // deleted: its EDEKs are not opened by the source
			var place string
			place, err = r.madeThere(ctx, version)
			errs = append(errs, err)
			has, err = r.mayBeOurs(ctx, version)
			has = has || place != ""
			errs = append(errs, err)
		}
		if has {
			here[version] = source
		}
	}
	return here, errors.Join(errs...)
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

// conflictsNow are the versions in conflict, with their sources. The map is not changed.
func (r *Ring) conflictsNow() map[string]string { return load(&r.conflicts.known) }

// Conflicts counts the versions in conflict of keys that are here, or that may have been used.
func (r *Ring) Conflicts() int { return len(load(&r.conflicts.here)) }

// CheckConflicts names the versions in conflict. The error is for an operator.
func (r *Ring) CheckConflicts(ctx context.Context) error {
	found := load(&r.conflicts.here)
	if len(found) == 0 {
		return nil
	}
	versions := slices.Sorted(maps.Keys(found))
	cure, more := r.conflictCure(ctx, versions[0]), ""
	if n := len(versions) - conflictsShown; n > 0 {
		versions, more = versions[:conflictsShown], fmt.Sprintf(" and %d more", n)
	}
	for i, v := range versions {
		versions[i] = claviger.Printable(v) + " of " + found[v]
	}
	return claviger.Errorf("keyring.CheckConflicts", claviger.Unavailable, "",
		"these versions are one key here and another one at the source, which was rolled after the migration: %s%s; "+
			"EDEKs of these names are not opened; %s", strings.Join(versions, ", "), more, cure)
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
		if !known && !r.hasSource(o.Source) && o.Finished.IsZero() && (o.Numbered || o.TakenOver && o.Counted > 0) {
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
		counts, err := r.counts(ctx, s, names)
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
			for _, v := range append(versions, r.madeElsewhere(all, s.URI(), key, m.Versions)...) {
				if r.sourceHas(ctx, s, key, v) {
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

// counts asks the source for the metadata of keys, which count their versions: of each by
// itself where it fails, because one key that cannot be read makes Hadoop's KMS refuse
// them all. A key that the source does not have is not in the map.
func (r *Ring) counts(ctx context.Context, s *source, names []string) (map[string]*claviger.Metadata, error) {
	var ms []*claviger.Metadata
	err := s.call(ctx, func(ctx context.Context) (err error) {
		ms, err = s.Metadata(ctx, names...)
		return err
	})
	counts := make(map[string]*claviger.Metadata, len(names))
	switch {
	case err == nil && len(ms) != len(names):
		return nil, claviger.Errorf("keyring.CompareSources", claviger.Internal, "",
			"the source %s told of %d keys where it was asked for %d", s.URI(), len(ms), len(names))
	case err == nil:
		for i, m := range ms { // a source that folds case may spell the name in another way
			if m != nil {
				counts[names[i]] = m
			}
		}
		return counts, nil
	case len(names) == 1 || noAnswer(err) || ctx.Err() != nil:
		return nil, err
	}
	var errs []error
	for _, name := range names {
		one, err := r.counts(ctx, s, []string{name})
		maps.Copy(counts, one)
		if errs = append(errs, err); err != nil && noAnswer(err) {
			break
		}
	}
	return counts, errors.Join(errs...)
}

// below returns the versions of a key here that have a number below that, those of deleted
// keys of its name among them: they may come back.
func (r *Ring) below(ctx context.Context, key string, number int) ([]string, error) {
	vs, err := r.cfg.Primary.Versions(ctx, key)
	if err != nil && !claviger.Is(err, claviger.KeyNotFound) {
		return nil, err
	}
	var all []string
	for _, v := range vs {
		v.Material.Wipe()
		all = append(all, v.Name)
	}
	if soft, ok := r.cfg.Primary.(provider.SoftDeleter); ok {
		keys, err := r.deletedOf(ctx, soft, key, "")
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			all = append(all, k.List...)
		}
	}
	return slices.DeleteFunc(all, func(version string) bool {
		n, ok := claviger.VersionNumber(version)
		return !ok || n >= number
	}), nil
}

// sourceHas reports whether the source has a version of that name. A source that counts so
// many versions and does not tell their names may name them otherwise: a Key Trustee KMS.
// A KMS is asked, in our own name, to open a made-up EDEK, which needs the right that a
// re-encryption needs; without an answer the count decides. "No" is not believed for long:
// a source of several nodes may have been asked at one that has not seen the roll yet.
func (r *Ring) sourceHas(ctx context.Context, s *source, key, version string) bool {
	asked := [2]string{s.URI(), version}
	if _, has := r.conflicts.probed.Load(asked); has {
		return true
	}
	err := s.probe(ctx, key, version)
	switch {
	case err == nil:
		r.conflicts.probed.Store(asked, true)
		r.conflicts.absent.Delete(asked)
	case claviger.Is(err, claviger.VersionNotFound):
		r.conflicts.absent.LoadOrStore(asked, time.Now())
		return false
	}
	return true
}

// probe asks the source, in our own name, for a version: a KMS to open a made-up EDEK of it.
func (s *source) probe(ctx context.Context, key, version string) error {
	return s.call(ctx, func(ctx context.Context) error {
		if s.service == nil {
			_, err := s.Version(ctx, version)
			return err
		}
		random := make([]byte, 2*claviger.IVSize)
		_, _ = rand.Read(random) // never fails: crypto/rand
		edek := claviger.EDEK{Version: version, IV: random[:claviger.IVSize], Material: random[claviger.IVSize:]}
		deks, err := s.service.Unwrap(ctx, key, "", []claviger.EDEK{edek})
		wipeAll(deks)
		return err
	})
}

// settled tells whether a source has said for long enough that it has no version of that
// name, though it counts so many.
func (r *Ring) settled(s *source, version string) bool {
	since, ok := r.conflicts.absent.Load([2]string{s.URI(), version})
	at, _ := since.(time.Time)
	return ok && time.Since(at) >= absentSettles
}

// needNotInConflict refuses a version whose name is another key's at the source, too.
func (r *Ring) needNotInConflict(ctx context.Context, op string, v *claviger.KeyVersion) error {
	source, ok := r.conflictsNow()[v.Name]
	if !ok {
		return nil
	}
	err := claviger.Errorf(op, claviger.Unavailable, v.Name, "'%s' is one key here and another one at %s, which was rolled after the "+
		"migration, so it cannot be known which of them an EDEK is of: %s", v.Name, source, r.cureHere(ctx, v.Name))
	return claviger.Answer(err, fmt.Sprintf("key version '%s' is one key here and another one at the KMS that the key was migrated from, "+
		"so nothing is opened with it; this server's log and /readyz say what to do", v.Name))
}

// needNoConflict refuses to re-encrypt EDEKs of a version of ours whose name may be
// another key's at a source: what comes out of such an EDEK here is no DEK, and to hand
// out that in its place would lose the file for good. So each source is asked, whether the
// key was migrated from it or not. A silent one stands in the way unless the key came from
// a source whose names are no numbers, as a Key Trustee KMS.
func (r *Ring) needNoConflict(ctx context.Context, op string, v *claviger.KeyVersion) error {
	if err := r.needNoKnownConflict(ctx, op, v); err != nil {
		return err
	}
	number, ok := claviger.VersionNumber(v.Name)
	if !ok || r.cfg.Ours[v.Name] {
		return nil
	}
	origins, err := r.originsOf(ctx, v)
	if err != nil {
		return err
	}
	opaque, numbered := false, false
	for _, o := range origins {
		if !o.TakenOver && o.Finished.IsZero() { // the journal's newest word
			return claviger.Errorf(op, claviger.Invalid, v.Name, "key '%s' is in conflict with the one at its source, so EDEKs of '%s' "+
				"may be of either, and are not re-encrypted: claviger migrate plan says what to do", v.Key, v.Name)
		}
		opaque = opaque || o.TakenOver && !o.Numbered
		numbered = numbered || o.Numbered
	}
	if len(r.sources) == 0 {
		return nil
	}
	return r.away(ctx, op, v.Name, func() error {
		for _, s := range r.sources {
			if slices.ContainsFunc(origins, func(o Origin) bool { return o.TakenOver && !o.Numbered && o.Source == s.URI() }) {
				continue
			}
			m, err := r.metadataAt(ctx, s, v.Key)
			if err != nil {
				if claviger.Is(err, claviger.KeyNotFound) || opaque {
					continue
				}
				return r.notKnown(op, v, s, err)
			}
			switch {
			case m.Versions <= number:
			case r.sourceHas(ctx, s, v.Key, v.Name):
				if v.Of != nil && v.Of.Created.UnixMilli() != m.Created.UnixMilli() {
					return r.otherKey(op, v, s.URI(), m)
				}
				return r.notReencrypted(ctx, op, v, s.URI())
			case numbered && !r.settled(s, v.Name):
				return claviger.Errorf(op, claviger.SourceUnreachable, v.Name, "EDEKs of '%s' are not re-encrypted yet: the source %s counts "+
					"a version of that name, and says that it has none; it is asked again, and believed after %v", v.Name, s.URI(), absentSettles)
			}
		}
		return nil
	})
}

// needNoKnownConflict is needNoConflict by what is known already. It holds for the current
// version too, whose EDEKs would be handed back as they are, and counted as re-encrypted.
func (r *Ring) needNoKnownConflict(ctx context.Context, op string, v *claviger.KeyVersion) error {
	if uri, ok := r.conflictsNow()[v.Name]; ok {
		return r.notReencrypted(ctx, op, v, uri)
	}
	return nil
}

func (r *Ring) notReencrypted(ctx context.Context, op string, v *claviger.KeyVersion, uri string) error {
	return claviger.Errorf(op, claviger.Invalid, v.Name, "'%s' is one key here and another one at %s, so its EDEKs "+
		"may be of either, and are not re-encrypted: %s", v.Name, uri, r.cureHere(ctx, v.Name))
}

// otherKey is notReencrypted where the source's key was not rolled, but is another one.
func (r *Ring) otherKey(op string, v *claviger.KeyVersion, uri string, theirs *claviger.Metadata) error {
	return claviger.Errorf(op, claviger.Invalid, v.Name, "the source %s has another key '%s', made %s, than the one here, "+
		"made %s, and both have a version '%s', so its EDEKs may be of either, and are not re-encrypted: where files are "+
		"under the source's key, copy them, through the source, to a zone with a key of another name; then delete it at "+
		"the source, or set claviger.migration.ours to %s and restart; do not delete the key here", uri, v.Key,
		preciseStamp(theirs.Created), preciseStamp(v.Of.Created), v.Name, r.oursWith(v.Name))
}

// notKnown says that a source does not tell whether it has another version of that name.
func (r *Ring) notKnown(op string, v *claviger.KeyVersion, s *source, err error) error {
	err = s.explain(err, question{what: "the metadata of key '" + v.Key + "'", name: v.Key})
	switch kind := claviger.KindOf(err); kind {
	case claviger.SourceUnreachable, claviger.SourceRefused:
		return claviger.Errorf(op, kind, v.Name, "EDEKs of '%s' are not re-encrypted while it is not known whether the source %s "+
			"has rolled its key to a version of that name: %s; a source that has gone for good must be taken out of the configuration", v.Name, s.URI(), said(err))
	}
	return err
}

// originsOf is what the journal says of where a version's key came from.
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
