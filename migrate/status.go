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

// Standing is where a migration stands, by the journal and the counters of
// source versions. It does not ask the source.
type Standing struct {
	Format string    `json:"format"` // "claviger migrate status 1"
	At     time.Time `json:"at"`
	// Runs are all runs, oldest first.
	Runs   []Run         `json:"runs"`
	Counts Counts        `json:"counts"`
	Keys   []KeyStanding `json:"keys"`
	// LastUse is when any version of a source was used last; nil: never.
	LastUse *time.Time `json:"lastUse,omitempty"`
	// Conflicts are versions here whose name is another version's at the source.
	Conflicts []VersionConflict `json:"conflicts,omitempty"`
	// Freed are the names that an administrator has freed.
	Freed []Freed `json:"freed,omitempty"`
}

// KeyStanding is one key.
type KeyStanding struct {
	Key      string           `json:"key"`
	State    State            `json:"state"`
	Run      string           `json:"run"`
	Versions []VersionMapping `json:"versions"`
	Why      string           `json:"why,omitempty"`
}

// VersionMapping is one version of the source, the version of the target that
// stands for it, and its use since.
type VersionMapping struct {
	// Source is the full name; "" where the source does not show it and nobody has
	// used it yet.
	Source string `json:"source,omitempty"`
	// Target is the version made for it; "" where there is none, as with versions
	// "current", or for one that the source has rolled to since.
	Target  string     `json:"target,omitempty"`
	LastUse *time.Time `json:"lastUse,omitempty"`
	// Decrypted and Reencrypted count EDEKs that the source has opened for us.
	Decrypted   int64 `json:"decrypted"`
	Reencrypted int64 `json:"reencrypted"`
	// Unserved counts EDEKs that were to be opened while the source was not configured.
	Unserved int64 `json:"unserved,omitempty"`
}

// Status reads the journal, the counters, and which keys are here. A server that runs writes the first use
// of a version before it answers, and later ones within about a second.
func (e *Engine) Status(ctx context.Context) (*Standing, error) {
	h, err := e.read(ctx, "")
	if err != nil {
		return nil, err
	}
	uses, err := e.cfg.Store.Uses(ctx)
	if err != nil {
		return nil, err
	}
	s := &Standing{Format: "claviger migrate status 1", At: e.now(), Runs: h.runs, Keys: []KeyStanding{}}
	s.Runs = append([]Run{}, s.Runs...)
	s.Runs = append(s.Runs, h.others...)
	slices.SortFunc(s.Runs, func(a, b Run) int { return strings.Compare(a.Name, b.Name) })
	if err := e.interrupted(ctx, s.Runs); err != nil {
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
	byKey := make(map[string][]metastore.Use)
	folded := make(map[string]string) // a key that the source has under every spelling
	for _, it := range h.items {
		if it.Folded {
			folded[claviger.FoldName(it.Key)] = it.Key
		}
	}
	for _, u := range uses {
		key, _ := claviger.KeyOfVersion(u.Version)
		if k, ok := folded[claviger.FoldName(key)]; ok {
			key = k
		}
		byKey[key] = append(byKey[key], u)
		if s.LastUse == nil || u.Last.After(*s.LastUse) {
			s.LastUse = ptr(u.Last)
		}
	}
	gone, err := e.absent(ctx, h)
	if err != nil {
		return nil, err
	}
	lost, err := e.givenUp(ctx, h)
	if err != nil {
		return nil, err
	}
	for _, a := range h.left() {
		if _, known := h.items[a.Key]; !known {
			h.order = append(h.order, a.Key)
		}
		h.items[a.Key] = elsewhereItem(a, e.whyElsewhere(a))
	}
	for _, key := range slices.Sorted(slices.Values(h.order)) {
		it := h.items[key]
		if gone[key] {
			it = freedHere(deletedHere(it), freed, s.Runs)
		} else {
			it = lostHere(it, lost)
		}
		s.Counts.add(it)
		s.Keys = append(s.Keys, KeyStanding{Key: key, State: it.State, Run: it.Run, Versions: mapping(it, byKey[key]),
			Why: it.Why})
	}
	return s, nil
}

// freedHere marks a key that was deleted here and whose name was freed since its run began:
// it is no key that the migration has brought any more.
func freedHere(it Item, freed map[string]Freed, runs []Run) Item {
	f, ok := freed[it.Key]
	if !ok || it.State != Deleted || slices.ContainsFunc(runs,
		func(r Run) bool { return r.Name == it.Run && f.At.Before(r.Started) }) {
		return it
	}
	it.State, it.Why = NameFreed, "was migrated and has been deleted here since, and its name was freed"
	return it
}

// givenUp are the versions that were made, and that an operator has given up since: the
// token does not hold them.
func (e *Engine) givenUp(ctx context.Context, h *history) (map[string]bool, error) {
	target, ok := e.cfg.Target.(interface {
		GivenUp(ctx context.Context, versions []string) ([]string, error)
	})
	if !ok {
		return nil, nil
	}
	var made []string
	for _, it := range h.items {
		made = append(made, it.TargetVersions...)
	}
	list, err := target.GivenUp(ctx, made)
	lost := make(map[string]bool, len(list))
	for _, v := range list {
		lost[v] = true
	}
	return lost, err
}

// lostHere is the item of a key of whose versions some were given up.
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
	it.Why = fmt.Sprintf("given up here, since the token does not hold it: %s; what it encrypted opens nowhere, but "+
		"for what the source can open", strings.Join(gone, ", "))
	return it
}

// absent are the keys that the journal has as done, and the target has no more. One whose
// name another key has now is among them.
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
			another, err := e.another(ctx, h.items[names[i]], m)
			if err != nil {
				return nil, err
			}
			gone[names[i]] = m == nil || another
		}
	}
	return gone, nil
}

// another tells whether m, a key of the target or nil, has the name of the key that was taken
// over as it, and is another key: that one was deleted since. It has none of its versions
// then, since no version's number comes twice.
func (e *Engine) another(ctx context.Context, it Item, m *claviger.Metadata) (bool, error) {
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

// interrupted changes the state of runs that the journal has as running, where no
// process holds the lock: it was killed, and no later one has gone on.
func (e *Engine) interrupted(ctx context.Context, runs []Run) error {
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

// mapping puts the source's versions beside the target's, oldest first. With
// one version for many, it stands for the newest.
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
		if i < 0 { // one whose place among the others we do not know
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

// Verification compares the target with the live source.
type Verification struct {
	Format string    `json:"format"` // "claviger migrate verify 1"
	At     time.Time `json:"at"`
	Source string    `json:"source"`
	Target string    `json:"target"`
	Keys   []KeyDiff `json:"keys"`
	// Same and Different count keys.
	Same      int `json:"same"`
	Different int `json:"different"`
	// OnlyTarget are keys that the source does not list. Those that were made here are
	// no difference; those that were migrated are, and are among Keys too.
	OnlyTarget []string `json:"onlyTarget,omitempty"`
}

// KeyDiff is one key of the source.
type KeyDiff struct {
	Key         string       `json:"key"`
	Same        bool         `json:"same"`
	Differences []Difference `json:"differences,omitempty"`
	// Remarks are what an auditor may ask about and is no difference.
	Remarks []string `json:"remarks,omitempty"`
}

// Empty tells that nothing was compared, which is no agreement.
func (v *Verification) Empty() bool { return len(v.Keys) == 0 }

// Verify compares each key's name, cipher, length, description, attributes and
// time of creation, and what the source lists of its versions now with what the journal
// noted at the run. It looks whether every version that was made for it is still there. It
// has the target encrypt with every version, for what the metastore counts may not be on
// this token, or not be shown to this user.
// It changes nothing.
func (e *Engine) Verify(ctx context.Context) (*Verification, error) {
	const op = "migrate.Verify"
	if e.cfg.Source == nil {
		return nil, e.noSource(ctx, op)
	}
	sv, err := e.look(ctx, op)
	if err != nil {
		return nil, err
	}
	v := &Verification{Format: "claviger migrate verify 1", At: e.now(), Source: e.cfg.Source.URI(),
		Target: e.cfg.Target.URI(), Keys: []KeyDiff{}, OnlyTarget: sv.onlyTarget}
	var here []string
	for i, it := range sv.items {
		if sv.unread[i] == nil && sv.ours[i] != nil {
			here = append(here, it.Key)
		}
	}
	have, bad, err := e.tryKeys(ctx, here)
	if err != nil {
		return nil, err
	}
	conflicts, err := e.conflicts(ctx)
	if err != nil {
		return nil, err
	}
	for i, it := range sv.items {
		d := KeyDiff{Key: it.Key}
		theirs, ours := sv.theirs[i], sv.ours[i]
		switch {
		case sv.unread[i] != nil:
			d.Differences = []Difference{{Field: "key", Source: "not readable: " +
				e.whyUnread(ctx, it.Key, sv.unread[i]), Target: presence(ours)}}
		case ours == nil:
			d.Differences = []Difference{{Field: "key", Source: "there", Target: presence(nil)}}
			if it.State == Elsewhere {
				d.Remarks = append(d.Remarks, it.Why)
			}
		default:
			now, err := e.namesNow(ctx, sv, &it)
			if err != nil {
				return nil, err
			}
			d.Differences = compare(fieldsOf(theirs), fieldsOf(ours))
			both := VersionConflict{Version: e.collision(ctx, it, theirs, have[it.Key])}
			if both.Version != "" {
				both.Why = e.whyCollision(ctx, both.Version)
			}
			for _, c := range sv.twice {
				if key, _ := claviger.KeyOfVersion(c.Version); key == it.Key && both.Version == "" {
					both = c
				}
			}
			d.verifyVersions(it, theirs, have[it.Key], bad, both, e.sinceRun(&it, theirs, now))
		}
		for _, c := range conflicts { // found by a server, though the source may count fewer versions now
			if key, _ := claviger.KeyOfVersion(c.Version); key == it.Key && len(d.Differences) == 0 {
				d.Differences = append(d.Differences,
					Difference{Field: "version " + c.Version, Source: "was another key's", Target: presence(ours)})
				d.Remarks = append(d.Remarks, c.Why)
			}
		}
		v.add(d)
	}
	// The list of names, against the journal: what was taken over must still be there,
	// or old EDEKs of it open nowhere.
	for _, it := range sv.gone {
		if it.State != Done {
			continue
		}
		here := "none"
		if _, found := slices.BinarySearch(sv.onlyTarget, it.Key); found {
			here = "there"
		}
		v.add(KeyDiff{Key: it.Key,
			Differences: []Difference{{Field: "key", Source: "no longer listed (old EDEKs of it open nowhere)",
				Target: here}}})
	}
	return v, nil
}

func (v *Verification) add(d KeyDiff) {
	if d.Same = len(d.Differences) == 0; d.Same {
		v.Same++
	} else {
		v.Different++
	}
	v.Keys = append(v.Keys, d)
}

func presence(m *claviger.Metadata) string {
	if m == nil {
		return "none"
	}
	return "there"
}

// verifyVersions compares the versions: names are those of the target, bad says why
// some of them cannot be used, both is one that the source has too, and since is what
// became of the source's.
func (d *KeyDiff) verifyVersions(it Item, theirs *claviger.Metadata, names []string, bad map[string]string,
	both VersionConflict,
	since *sinceRun) {
	for _, name := range names {
		if why := bad[name]; why != "" {
			d.Differences = append(d.Differences, Difference{Field: "version " + name, Source: "its own",
				Target: "not usable (" + why + ")"})
		}
	}
	for _, name := range it.TargetVersions {
		if !slices.Contains(names, name) {
			d.Differences = append(d.Differences, Difference{Field: "version " + name, Source: "made by " + it.Run,
				Target: "none"})
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
			if !since.allowed && since.anew.IsZero() { // else the time of creation differs
				d.Differences = append(d.Differences, since.difference())
			}
		}
		return
	}
	if made := len(names); made != theirs.Versions {
		d.Differences = append(d.Differences, Difference{Field: "versions", Source: fmt.Sprint(theirs.Versions),
			Target: fmt.Sprint(made)})
	}
}

// verifyMade demands the versions that were to be made of a key. Why they are fewer than
// the source has is no difference.
func (d *KeyDiff) verifyMade(it Item, have int) {
	made := len(it.TargetVersions)
	if made != it.Count {
		d.Differences = append(d.Differences, Difference{Field: "versions", Source: fmt.Sprintf("%d were to be made",
			it.Count), Target: fmt.Sprint(made)})
	}
	if made == 1 && it.Source.Versions > 1 {
		d.Remarks = append(d.Remarks, fmt.Sprintf("one version was made for %d: %s", it.Source.Versions,
			claviger.Printable(it.TargetVersions[0])))
	}
	if n := have - made; n > 0 {
		d.Remarks = append(d.Remarks, fmt.Sprintf("rolled here since: %d more", n))
	}
}
