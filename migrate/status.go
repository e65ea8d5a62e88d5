package migrate

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/metastore"
)

// StatusReport is the state of a migration according to the journal and the counters of uses. It needs no source.
type StatusReport struct {
	Format string    `json:"format"` // "claviger migrate status 1"
	At     time.Time `json:"at"`
	// Runs are all runs, oldest first.
	Runs   []Run       `json:"runs"`
	Counts Counts      `json:"counts"`
	Keys   []KeyStatus `json:"keys"`
	// LastUse is the time at which any version of a source was last used; nil: never.
	LastUse *time.Time `json:"lastUse,omitempty"`
	// Conflicts are versions of the target whose names belong to other versions at the source.
	Conflicts []VersionConflict `json:"conflicts,omitempty"`
	// Freed are the names that an administrator has freed.
	Freed []Freed `json:"freed,omitempty"`
}

// KeyStatus is the state of one key.
type KeyStatus struct {
	Key      string           `json:"key"`
	State    State            `json:"state"`
	Run      string           `json:"run"`
	Versions []VersionMapping `json:"versions"`
	Why      string           `json:"why,omitempty"`
}

// VersionMapping is a version of the source, the version of the target that replaces it, and the uses of the source's
// version.
type VersionMapping struct {
	// Source is the full name; "" if the source does not show it and nobody used it yet.
	Source string `json:"source,omitempty"`
	// Target is the version that was made for it. It is "" if none was made: with versions "current", or for a
	// version to which the source rolled later.
	Target  string     `json:"target,omitempty"`
	LastUse *time.Time `json:"lastUse,omitempty"`
	// Decrypted and Reencrypted count EDEKs that the source opened for us.
	Decrypted   int64 `json:"decrypted"`
	Reencrypted int64 `json:"reencrypted"`
	// Unserved counts requests to open EDEKs while the source was not configured.
	Unserved int64 `json:"unserved,omitempty"`
}

// Status reads the journal, the counters, and which keys are here. A running server records the first use of a
// version before it answers, and later uses within about a second.
func (e *Engine) Status(ctx context.Context) (*StatusReport, error) {
	h, err := e.read(ctx, "")
	if err != nil {
		return nil, err
	}
	uses, err := e.cfg.Store.Uses(ctx)
	if err != nil {
		return nil, err
	}
	s := &StatusReport{Format: "claviger migrate status 1", At: e.now(), Runs: []Run{}, Keys: []KeyStatus{}}
	s.Runs = append(append(s.Runs, h.runs...), h.otherRuns...)
	slices.SortFunc(s.Runs, func(a, b Run) int { return strings.Compare(a.Name, b.Name) })
	if err := e.markInterrupted(ctx, s.Runs); err != nil {
		return nil, err
	}
	freed, err := freedNames(ctx, e.cfg.Store)
	if err != nil {
		return nil, err
	}
	s.Freed = slices.SortedFunc(maps.Values(freed), func(a, b Freed) int { return strings.Compare(a.Key, b.Key) })
	if s.Conflicts, err = e.conflicts(ctx); err != nil {
		return nil, err
	}
	for _, u := range uses {
		if s.LastUse == nil || u.Last.After(*s.LastUse) {
			s.LastUse = ptr(u.Last)
		}
	}
	return s, e.addKeys(ctx, s, h, usesByKey(uses, h), freed)
}

// usesByKey groups the uses by key. If the source answers to every spelling of a key's name, uses with any spelling
// belong to that key.
func usesByKey(uses []metastore.Use, h *history) map[string][]metastore.Use {
	folded := make(map[string]string) // keys whose source answers to every spelling
	for _, it := range h.items {
		if it.Folded {
			folded[claviger.FoldName(it.Key)] = it.Key
		}
	}
	byKey := make(map[string][]metastore.Use)
	for _, u := range uses {
		key, _ := claviger.KeyOfVersion(u.Version)
		if k, ok := folded[claviger.FoldName(key)]; ok {
			key = k
		}
		byKey[key] = append(byKey[key], u)
	}
	return byKey
}

// addKeys adds the state of each key to s.
func (e *Engine) addKeys(ctx context.Context, s *StatusReport, h *history, uses map[string][]metastore.Use,
	freed map[string]Freed) error {
	gone, err := e.absent(ctx, h)
	if err != nil {
		return err
	}
	lost, err := e.givenUp(ctx, h)
	if err != nil {
		return err
	}
	for _, a := range h.onlyElsewhere() {
		if _, known := h.items[a.Key]; !known {
			h.order = append(h.order, a.Key)
		}
		h.items[a.Key] = itemElsewhere(a, e.whyElsewhere(a))
	}
	for _, key := range slices.Sorted(slices.Values(h.order)) {
		it := h.items[key]
		if gone[key] {
			it = freedHere(deletedHere(it), freed, s.Runs)
		} else {
			it = lostHere(it, lost)
		}
		s.Counts.add(it)
		s.Keys = append(s.Keys, KeyStatus{Key: key, State: it.State, Run: it.Run, Versions: mapping(it, uses[key]),
			Why: it.Why})
	}
	return nil
}

// freedHere returns the item of a key. Its state is NameFreed if the key was deleted here and its name was freed after
// the run of the key began. The migration no longer counts such a key as done.
func freedHere(it Item, freed map[string]Freed, runs []Run) Item {
	f, ok := freed[it.Key]
	if !ok || it.State != Deleted || slices.ContainsFunc(runs,
		func(r Run) bool { return r.Name == it.Run && f.At.Before(r.Started) }) {
		return it
	}
	it.State, it.Why = NameFreed, "was migrated and has been deleted here since, and its name was freed"
	return it
}

// givenUp returns the versions that were made and that an operator has given up since, because the token does not
// have them.
func (e *Engine) givenUp(ctx context.Context, h *history) (map[string]bool, error) {
	target, ok := e.cfg.Target.(interface {
		GivenUp(ctx context.Context, versions []string) ([]string, error)
	})
	if !ok {
		return nil, nil
	}
	var versions []string
	for _, it := range h.items {
		versions = append(versions, it.TargetVersions...)
	}
	list, err := target.GivenUp(ctx, versions)
	lost := make(map[string]bool, len(list))
	for _, v := range list {
		lost[v] = true
	}
	return lost, err
}

// lostHere returns the item with the versions of the key that were given up.
func lostHere(it Item, lost map[string]bool) Item {
	var gone []string
	for _, v := range it.TargetVersions {
		if lost[v] {
			gone = append(gone, claviger.Printable(v))
		}
	}
	if len(gone) == 0 || it.State != Done {
		return it
	}
	if len(gone) == len(it.TargetVersions) {
		it.State = Lost
	}
	it.Why = fmt.Sprintf("given up here, because the token does not have it: %s; EDEKs of it open nowhere, "+
		"except those that the source can open", strings.Join(gone, ", "))
	return it
}

// absent returns the keys that the journal has as done and that the target no longer has, even if another key has
// the name now.
func (e *Engine) absent(ctx context.Context, h *history) (map[string]bool, error) {
	var done []string
	for _, key := range h.order {
		if h.items[key].State == Done {
			done = append(done, key)
		}
	}
	gone := make(map[string]bool)
	for names := range slices.Chunk(done, metadataBatch) {
		ms, err := e.cfg.Target.Metadata(ctx, names...)
		if err != nil {
			return nil, err
		}
		for i, m := range ms {
			replaced, err := e.isReplaced(ctx, h.items[names[i]], m)
			if err != nil {
				return nil, err
			}
			gone[names[i]] = m == nil || replaced
		}
	}
	return gone, nil
}

// isReplaced reports whether m, the target's key of that name, is another key than the recorded one, which was deleted.
// m is nil if the target has no key. The new key has none of the recorded versions, because a number is never used
// twice.
func (e *Engine) isReplaced(ctx context.Context, it Item, m *claviger.Metadata) (bool, error) {
	if m == nil || len(it.TargetVersions) == 0 || fieldsOf(m).Created.Equal(it.Source.Created) {
		return false, nil
	}
	versions, err := e.cfg.Target.Versions(ctx, it.Key)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(versions, func(v claviger.KeyVersion) bool {
		return slices.Contains(it.TargetVersions, v.Name)
	}), nil
}

// markInterrupted corrects the state of runs that the journal has as running while no process holds the lock. The
// process of such a run was killed, and no later process has continued the run.
func (e *Engine) markInterrupted(ctx context.Context, runs []Run) error {
	if !slices.ContainsFunc(runs, func(r Run) bool { return r.State == Running }) {
		return nil
	}
	busy, err := e.busy(ctx)
	if err != nil || busy {
		return err
	}
	for i := range runs {
		if runs[i].State == Running {
			runs[i].State = Interrupted
		}
	}
	return nil
}

// mapping pairs the source's versions with the target's, oldest first. A single version of the target is paired
// with the source's newest.
func mapping(it Item, uses []metastore.Use) []VersionMapping {
	n := max(len(it.SourceVersions), it.Source.Versions, len(it.TargetVersions))
	ms := make([]VersionMapping, n)
	shift := max(it.Source.Versions, len(it.TargetVersions)) - len(it.TargetVersions)
	for i := range ms {
		if i < len(it.SourceVersions) {
			ms[i].Source = it.SourceVersions[i]
		}
		if j := i - shift; j >= 0 && j < len(it.TargetVersions) {
			ms[i].Target = it.TargetVersions[j]
		}
	}
	for _, u := range uses {
		i := slices.IndexFunc(ms, func(m VersionMapping) bool { return m.Source == u.Version })
		if i < 0 { // its place among the others is not known
			ms = append(ms, VersionMapping{Source: u.Version})
			i = len(ms) - 1
		}
		m := &ms[i]
		if m.LastUse == nil || u.Last.After(*m.LastUse) {
			m.LastUse = ptr(u.Last)
		}
		switch u.Op {
		case "reencrypt":
			m.Reencrypted += u.Count
		case unserved:
			m.Unserved += u.Count
		default:
			m.Decrypted += u.Count
		}
	}
	return ms
}

// Verification is the comparison of the target with the live source.
type Verification struct {
	Format string    `json:"format"` // "claviger migrate verify 1"
	At     time.Time `json:"at"`
	Source string    `json:"source"`
	Target string    `json:"target"`
	Keys   []KeyDiff `json:"keys"`
	// Same and Different count keys.
	Same      int `json:"same"`
	Different int `json:"different"`
	// OnlyTarget are keys that the source does not list. A key that was made here is not a difference. A migrated
	// key is a difference, and Keys has it too.
	OnlyTarget []string `json:"onlyTarget,omitempty"`
}

// KeyDiff is the comparison of one key.
type KeyDiff struct {
	Key         string       `json:"key"`
	Same        bool         `json:"same"`
	Differences []Difference `json:"differences,omitempty"`
	// Remarks are facts for an auditor that are not differences.
	Remarks []string `json:"remarks,omitempty"`
}

// Empty reports whether no key was compared. Then nothing is proved.
func (v *Verification) Empty() bool { return len(v.Keys) == 0 }

// Verify compares each key's name, cipher, length, description, attributes and creation time, and the source's
// versions with the journal's record of the run. It checks that every version that was made still exists, and
// that the target encrypts with it: a key that the metastore counts may be missing on this token, or hidden
// from this user. It changes nothing.
func (e *Engine) Verify(ctx context.Context) (*Verification, error) {
	const op = "migrate.Verify"
	if e.cfg.Source == nil {
		return nil, e.noSource(ctx, op)
	}
	sv, err := e.survey(ctx, op)
	if err != nil {
		return nil, err
	}
	v := &Verification{Format: "claviger migrate verify 1", At: e.now(), Source: e.cfg.Source.URI(),
		Target: e.cfg.Target.URI(), Keys: []KeyDiff{}, OnlyTarget: sv.onlyTarget}
	var here []string
	for i, it := range sv.items {
		if sv.unread[i] == nil && sv.atTarget[i] != nil {
			here = append(here, it.Key)
		}
	}
	f := targetFacts{}
	if f.versions, f.unusable, err = e.tryKeys(ctx, here); err != nil {
		return nil, err
	}
	if f.conflicts, err = e.conflicts(ctx); err != nil {
		return nil, err
	}
	for i := range sv.items {
		d, err := e.verifyKey(ctx, sv, i, &f)
		if err != nil {
			return nil, err
		}
		v.add(d)
	}
	v.addUnlisted(sv)
	return v, nil
}

// targetFacts holds the facts that Verify found at the target.
type targetFacts struct {
	versions  map[string][]string // by key
	unusable  map[string]string   // by version, the reason
	conflicts []VersionConflict   // that a server has found
}

// verifyKey compares the key sv.items[i].
func (e *Engine) verifyKey(ctx context.Context, sv *survey, i int, f *targetFacts) (KeyDiff, error) {
	it, atSource, atTarget := sv.items[i], sv.atSource[i], sv.atTarget[i]
	d := KeyDiff{Key: it.Key}
	switch {
	case sv.unread[i] != nil:
		d.Differences = []Difference{{Field: "key", Source: "not readable: " +
			e.whyUnread(ctx, it.Key, sv.unread[i]), Target: presence(atTarget)}}
	case atTarget == nil:
		d.Differences = []Difference{{Field: "key", Source: "exists", Target: presence(nil)}}
		if it.State == Elsewhere {
			d.Remarks = append(d.Remarks, it.Why)
		}
	default:
		names, err := e.namesNow(ctx, sv, &it)
		if err != nil {
			return d, err
		}
		d.Differences = compare(fieldsOf(atSource), fieldsOf(atTarget))
		both := VersionConflict{Version: e.collision(ctx, it, atSource, f.versions[it.Key])}
		if both.Version != "" {
			both.Why = e.whyCollision(ctx, both.Version)
		}
		for _, c := range sv.duplicates {
			if key, _ := claviger.KeyOfVersion(c.Version); key == it.Key && both.Version == "" {
				both = c
			}
		}
		d.verifyVersions(it, atSource, f, both, e.sinceRun(&it, atSource, names))
	}
	for _, c := range f.conflicts { // also if the source counts fewer versions now
		if key, _ := claviger.KeyOfVersion(c.Version); key == it.Key && len(d.Differences) == 0 {
			d.Differences = append(d.Differences,
				Difference{Field: "version " + c.Version, Source: "was another key's", Target: presence(atTarget)})
			d.Remarks = append(d.Remarks, c.Why)
		}
	}
	return d, nil
}

// addUnlisted adds a difference for each key that was taken over and that the source no longer lists: old EDEKs
// of such a key open nowhere.
func (v *Verification) addUnlisted(sv *survey) {
	for _, it := range sv.gone {
		if it.State != Done {
			continue
		}
		here := "missing"
		if _, found := slices.BinarySearch(sv.onlyTarget, it.Key); found {
			here = "exists"
		}
		v.add(KeyDiff{Key: it.Key,
			Differences: []Difference{{Field: "key", Source: "no longer listed (old EDEKs of it open nowhere)",
				Target: here}}})
	}
}

func (v *Verification) add(d KeyDiff) {
	if d.Same = len(d.Differences) == 0; d.Same {
		v.Same++
	} else {
		v.Different++
	}
	v.Keys = append(v.Keys, d)
}

// presence says whether a key exists at one side.
func presence(m *claviger.Metadata) string {
	if m == nil {
		return "missing"
	}
	return "exists"
}

// verifyVersions compares the versions. both is a version whose name the source uses too (zero: none), and since
// describes the changes of the source's versions since the run.
func (d *KeyDiff) verifyVersions(it Item, atSource *claviger.Metadata, f *targetFacts, both VersionConflict,
	since *sinceRun) {
	names := f.versions[it.Key]
	for _, name := range names {
		if why := f.unusable[name]; why != "" {
			d.Differences = append(d.Differences, Difference{Field: "version " + name, Source: "none",
				Target: "not usable (" + why + ")"})
		}
	}
	for _, name := range it.TargetVersions {
		if !slices.Contains(names, name) {
			d.Differences = append(d.Differences, Difference{Field: "version " + name, Source: "none",
				Target: "missing (made by " + it.Run + ")"})
		}
	}
	if both.Version != "" {
		d.Differences = append(d.Differences, Difference{Field: "version " + both.Version, Source: "another key",
			Target: "another key"})
		d.Remarks = append(d.Remarks, both.Why)
		return
	}
	if it.State == Done && (it.First > 0 || len(it.TargetVersions) > 0) {
		d.verifyMade(it, len(names))
		if since != nil {
			d.Remarks = append(d.Remarks, since.String())
			if !since.allowed && since.newCreated.IsZero() { // else the time of creation differs
				d.Differences = append(d.Differences, since.difference())
			}
		}
		return
	}
	if n := len(names); n != atSource.Versions {
		d.Differences = append(d.Differences, Difference{Field: "versions", Source: fmt.Sprint(atSource.Versions),
			Target: fmt.Sprint(n)})
	}
}

// verifyMade checks that the versions which the run made exist. If the run was to make fewer versions than the source
// has, that is not a difference.
func (d *KeyDiff) verifyMade(it Item, have int) {
	recorded := len(it.TargetVersions)
	if recorded != it.Count {
		d.Differences = append(d.Differences, Difference{Field: "versions", Source: fmt.Sprintf("%d were to be made",
			it.Count), Target: fmt.Sprint(recorded)})
	}
	if recorded == 1 && it.Source.Versions > 1 {
		d.Remarks = append(d.Remarks, fmt.Sprintf("one version was made for %d: %s", it.Source.Versions,
			claviger.Printable(it.TargetVersions[0])))
	}
	if n := have - recorded; n > 0 {
		d.Remarks = append(d.Remarks, fmt.Sprintf("rolled here since: %d more", n))
	}
}
