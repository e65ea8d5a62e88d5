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
	if s.Runs == nil {
		s.Runs = []Run{}
	}
	if err := e.interrupted(ctx, s.Runs); err != nil {
		return nil, err
	}
	freed, err := freedNames(ctx, e.cfg.Store)
	if err != nil {
		return nil, err
	}
	s.Freed = slices.SortedFunc(maps.Values(freed), func(a, b Freed) int { return strings.Compare(a.Key, b.Key) })
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
	for _, key := range slices.Sorted(slices.Values(h.order)) {
		it := h.items[key]
		if gone[key] {
			it = deletedHere(it)
		}
		s.Counts.add(it)
		s.Keys = append(s.Keys, KeyStanding{Key: key, State: it.State, Run: it.Run, Versions: mapping(it, byKey[key]), Why: it.Why})
	}
	return s, nil
}

// absent are the keys that the journal has as done, and the target has no more.
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
			if m == nil {
				gone[names[i]] = true
			}
		}
	}
	return gone, nil
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
		if u.Op == "reencrypt" {
			m.Reencrypted += u.Count
		} else {
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

// Verify compares each key's name, cipher, length, description, attributes,
// time of creation and number of versions, and looks whether every version that
// was made for it is still there. It has the target encrypt with every version, for
// what the metastore counts may not be on this token, or not be shown to this user.
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
	v := &Verification{Format: "claviger migrate verify 1", At: e.now(), Source: e.cfg.Source.URI(), Target: e.cfg.Target.URI(), Keys: []KeyDiff{}, OnlyTarget: sv.onlyTarget}
	for i, it := range sv.items {
		d := KeyDiff{Key: it.Key}
		theirs, ours := sv.theirs[i], sv.ours[i]
		switch {
		case sv.unread[i] != nil:
			d.Differences = []Difference{{Field: "key", Source: "not readable: " + e.whyUnread(ctx, it.Key, sv.unread[i]), Target: presence(ours)}}
		case ours == nil:
			d.Differences = []Difference{{Field: "key", Source: "there", Target: presence(nil)}}
		default:
			d.Differences = compare(fieldsOf(theirs), fieldsOf(ours))
			if err := e.verifyVersions(ctx, &d, it, theirs, ours); err != nil {
				return nil, err
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
		v.add(KeyDiff{Key: it.Key, Differences: []Difference{{Field: "key", Source: "no longer listed (old EDEKs of it open nowhere)", Target: here}}})
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

func (e *Engine) verifyVersions(ctx context.Context, d *KeyDiff, it Item, theirs, ours *claviger.Metadata) error {
	have, err := e.cfg.Target.Versions(ctx, it.Key)
	if err != nil {
		return err
	}
	names := make([]string, len(have))
	for i, v := range have {
		v.Material.Wipe()
		names[i] = v.Name
	}
	bad, err := e.unusable(ctx, names)
	if err != nil {
		return err
	}
	for _, name := range names {
		if why := bad[name]; why != "" {
			d.Differences = append(d.Differences, Difference{Field: "version " + name, Source: "its own", Target: "not usable (" + why + ")"})
		}
	}
	for _, name := range it.TargetVersions {
		if !slices.Contains(names, name) {
			d.Differences = append(d.Differences, Difference{Field: "version " + name, Source: "made by " + it.Run, Target: "none"})
		}
	}
	if v := collision(it, theirs, names); v != "" {
		d.Differences = append(d.Differences, Difference{Field: "version " + v, Source: "another key", Target: "another key"})
		d.Remarks = append(d.Remarks, whyCollision(v))
		return nil
	}
	if it.First > 0 && it.State == Done {
		d.verifyNumbered(it, theirs, len(have))
		return nil
	}
	made := len(have)
	if it.State == Done && len(it.TargetVersions) > 0 {
		made = len(it.TargetVersions)
		if n := len(have) - made; n > 0 {
			d.Remarks = append(d.Remarks, fmt.Sprintf("rolled here since: %d more", n))
		}
		if n := theirs.Versions - it.Source.Versions; n > 0 {
			d.Remarks = append(d.Remarks, fmt.Sprintf("rolled at the source since: %d more, opened through the source", n))
			made += n
		}
		if made < theirs.Versions && it.Count < it.Source.Versions {
			d.Remarks = append(d.Remarks, fmt.Sprintf("one version was made for %d, as --versions current asks", it.Source.Versions))
			made = theirs.Versions
		}
	}
	if made != theirs.Versions {
		d.Differences = append(d.Differences, Difference{Field: "versions", Source: fmt.Sprint(theirs.Versions), Target: fmt.Sprint(made)})
	}
	return nil
}

// verifyNumbered demands the versions that were to be made of a key whose versions
// the source numbers. Why they are fewer than there is no difference.
func (d *KeyDiff) verifyNumbered(it Item, theirs *claviger.Metadata, have int) {
	made := len(it.TargetVersions)
	if made != it.Count {
		d.Differences = append(d.Differences, Difference{Field: "versions", Source: fmt.Sprintf("%d were to be made", it.Count), Target: fmt.Sprint(made)})
	}
	if made == 1 && it.Source.Versions > 1 {
		d.Remarks = append(d.Remarks, fmt.Sprintf("one version was made for %d: %s", it.Source.Versions, claviger.Printable(it.TargetVersions[0])))
	}
	if n := have - made; n > 0 {
		d.Remarks = append(d.Remarks, fmt.Sprintf("rolled here since: %d more", n))
	}
	if n := theirs.Versions - it.Source.Versions; n > 0 {
		d.Remarks = append(d.Remarks, fmt.Sprintf("rolled at the source since: %d more", n))
	}
}

// FinishOptions is what Finish goes by.
type FinishOptions struct {
	// Since: a version of a source that was used after it keeps the source needed.
	Since time.Time
	// EDEKsDone is the operator's word that every EDEK, those in snapshots and
	// replicas included, is re-encrypted or gone.
	EDEKsDone bool
	// SourceGone is the operator's word that the source cannot be asked any more, so
	// that keys which it has got since the run are lost with it.
	SourceGone bool
	// Get returns a property of the server's configuration as somebody has set it,
	// and where ("/etc/kms/kms-site.xml:12"); built-in defaults do not count. Nil
	// leaves the properties unchecked.
	Get func(name string) (value, where string, ok bool)
}

// Ending is what Finish found.
type Ending struct {
	Format string    `json:"format"` // "claviger migrate finish 1"
	At     time.Time `json:"at"`
	Since  time.Time `json:"since"`
	// Refusals say why the source is still needed; none: it is not.
	Refusals []string `json:"refusals"`
	// Properties are those to remove or restore, in the procedure's order.
	Properties []Property `json:"properties"`
	// Leftovers are what copies of the source's secrets, and others of its files, the
	// procedure has left on this host; whoever calls Finish looks for them.
	Leftovers []Leftover `json:"leftovers,omitempty"`
	// NotReached is what the re-encryption of zones does not change, so that EDEKsDone
	// says nothing of it.
	NotReached []string `json:"notReached"`
	// Finished: nothing is left to do, and the journal says so.
	Finished bool `json:"finished"`
	// Compared is when the source was last asked whether it has keys that are not here;
	// nil: never after the run.
	Compared *time.Time `json:"compared,omitempty"`
	// Deleted are keys that were migrated and have been deleted here since. What they
	// encrypted opens nowhere once the source has gone.
	Deleted []string `json:"deleted,omitempty"`
	Remarks []string `json:"remarks,omitempty"`
}

// notReached names where EDEKs are beside the extended attributes of HDFS' files.
var notReached = []string{
	"ORC files with encrypted columns: the key version is in the file's footer; write the files anew (INSERT OVERWRITE, CTAS)",
	"Ozone: its own database keeps the EDEKs of an encrypted bucket; copy the bucket's keys into a new bucket",
	"copies outside of HDFS: backups, and trees that distcp has copied from /.reserved/raw; copy them anew, from re-encrypted files",
	"snapshots from before the re-encryption: delete them",
}

// Leftover is a file or folder on this host that nobody needs after a migration.
type Leftover struct {
	Path   string `json:"path"`
	What   string `json:"what"`
	Secret bool   `json:"secret"` // it is known to be a copy of secrets; else it is a guess
	// Shredded: it was overwritten and removed just now.
	Shredded bool `json:"shredded,omitempty"`
	// Left is what of it stays, with the reasons.
	Left []string `json:"left,omitempty"`
}

// Property is one property of the clean-up.
type Property struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"` // as it is now
	Where string `json:"where,omitempty"` // file and line that set it
	Want  string `json:"want"`            // "removed", or the value to restore
	Done  bool   `json:"done"`
}

// Finish decides whether the source may go. If so it tells the properties to
// remove, and once they are gone it writes the end into the journal; from then
// on a call finds it finished.
func (e *Engine) Finish(ctx context.Context, o FinishOptions) (*Ending, error) {
	f := &Ending{Format: "claviger migrate finish 1", At: e.now(), Since: o.Since.UTC(), Refusals: []string{}, Properties: []Property{}, NotReached: notReached}
	h, err := e.read(ctx, "")
	if err != nil {
		return nil, err
	}
	last := h.last()
	if last == nil {
		f.Refusals = append(f.Refusals, "nothing was migrated: the journal of this metastore has no run")
		return f, nil
	}
	unlock, ok, err := e.cfg.Store.TryLock(ctx, LockName)
	if err != nil {
		return nil, err
	}
	if !ok {
		f.Refusals = append(f.Refusals, "a process is migrating now")
		return f, nil
	}
	defer unlock()
	if err := e.refusals(ctx, f, h, o); err != nil {
		return nil, err
	}
	if len(f.Refusals) > 0 {
		return f, nil
	}
	left := 0
	if o.Get != nil {
		f.Properties = cleanup(o.Get)
		for _, p := range f.Properties {
			if !p.Done {
				left++
			}
		}
	}
	if left > 0 || o.Get == nil {
		return f, nil
	}
	f.Finished = true
	if last.State == Finished {
		return f, nil
	}
	last.State, last.Ended = Finished, ptr(e.now())
	return f, e.putRun(ctx, *last)
}

func (e *Engine) refusals(ctx context.Context, f *Ending, h *history, o FinishOptions) error {
	refuse := func(format string, args ...any) { f.Refusals = append(f.Refusals, fmt.Sprintf(format, args...)) }
	last := h.last()
	if last.State == Finished && last.Ended != nil {
		// It was said, and decided by, then; what counts is what came after.
		o.EDEKsDone = true
		if last.Ended.After(o.Since) {
			o.Since = *last.Ended
			f.Since = o.Since.UTC()
		}
	}
	if last.State != Complete && last.State != Finished {
		state := last.State
		if state == Running {
			state = Interrupted // the lock is ours, so no process is running it
		}
		refuse("the last run (%s) is %s: run the migration again", last.Name, state)
	}
	if err := e.compareNames(ctx, h, refuse); err != nil {
		return err
	}
	for _, key := range h.order {
		if it := h.items[key]; !it.State.settled() {
			if it.Why == "" { // a run was broken off before it
				it.Why = "run the migration again"
			}
			refuse("key %s is %s: %s", claviger.Printable(key), it.State, it.Why)
		}
	}
	if err := e.notUsable(ctx, f, h, refuse); err != nil {
		return err
	}
	if f.Compared = last.Compared; f.Compared == nil && last.State != Finished && !o.SourceGone && e.cfg.Source == nil {
		refuse("the source was not asked, since the run, whether it has got other keys: name it by %s again, and call claviger migrate finish once before it is taken out of the configuration. If it is gone for good, say so by --source-gone: keys that it has got since the run are lost with it", propSource)
	}
	uses, err := e.cfg.Store.Uses(ctx)
	if err != nil {
		return err
	}
	for _, u := range uses {
		if u.Last.After(o.Since) {
			refuse("%s was asked of %s (%s) at %s, after %s: something still needs it", u.Version, u.Source, u.Op, u.Last.UTC().Format(time.RFC3339), o.Since.UTC().Format(time.RFC3339))
		}
	}
	if !o.EDEKsDone {
		refuse("nobody has said that all EDEKs are re-encrypted: re-encrypt every zone (hdfs crypto -reencryptZone -start -path ZONE), delete snapshots from before it, then say so with --edeks-done. That reaches HDFS' files alone: neither ORC's footers, nor Ozone, nor copies outside of HDFS")
	}
	return nil
}

// compareNames refuses for each key of the source that is not here. It notes such a
// key in the journal: it is known when the source is no longer configured, and nobody
// makes a key of its name. Where there is none, the run has the time of the comparison.
func (e *Engine) compareNames(ctx context.Context, h *history, refuse func(string, ...any)) error {
	if e.cfg.Source == nil {
		return nil
	}
	sv, err := e.look(ctx, "migrate.Finish")
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return err
	default:
		refuse("the source could not be asked for keys that are new there: %s. If it is gone for good, take %s out of the configuration, and say --source-gone", claviger.Reason(err), propSource)
		return nil
	}
	last, all := h.last(), true
	for _, it := range sv.unlistedSince() {
		if before := h.items[it.Key]; before.State.settled() {
			continue // the next run notes that it has gone from both
		}
		h.items[it.Key] = it
		if err := e.putItem(ctx, last.Name, it); err != nil {
			return err
		}
	}
	for _, it := range sv.items {
		before, known := h.items[it.Key]
		switch {
		case !known:
			all = false
			refuse("key %s is at the source and was not migrated: run the migration again", claviger.Printable(it.Key))
			it.Why = "is at the source and was not migrated: run the migration again"
			if err := e.putItem(ctx, last.Name, it); err != nil {
				return err
			}
		case before.State.settled() && !it.State.settled():
			all = false
			refuse("key %s is %s now: %s", claviger.Printable(it.Key), it.State, it.Why)
		}
	}
	if last.Compared = nil; all {
		last.Compared = ptr(e.now())
	}
	return e.putRun(ctx, *last)
}

// notUsable refuses for each version of a migrated key with which the target does not
// encrypt, and notes the keys that were deleted since.
func (e *Engine) notUsable(ctx context.Context, f *Ending, h *history, refuse func(string, ...any)) error {
	var keys []string
	for _, key := range slices.Sorted(slices.Values(h.order)) {
		if st := h.items[key].State; st == Done || st == Deleted {
			keys = append(keys, key)
		}
	}
	bad, gone, err := e.unusableKeys(ctx, keys)
	if err != nil {
		return err
	}
	f.Deleted = gone
	for i, version := range slices.Sorted(maps.Keys(bad)) {
		if i == refusedVersions {
			refuse("%d more versions cannot be used here", len(bad)-i)
			break
		}
		refuse("version %s cannot be used here: %s", claviger.Printable(version), bad[version])
	}
	return nil
}

// refusedVersions bounds how many versions that cannot be used are told.
const refusedVersions = 16

// cleanup is the procedure's steps 11 to 14.
func cleanup(get func(string) (string, string, bool)) []Property {
	ask := func(name, want string, done func(value string, set bool) bool) Property {
		value, where, set := get(name)
		return Property{Name: name, Value: value, Where: where, Want: want, Done: done(strings.TrimSpace(value), set)}
	}
	gone := func(_ string, set bool) bool { return !set }
	off := func(value string, set bool) bool { return !set || strings.EqualFold(value, "false") }
	ps := []Property{
		ask(propInitiate, "false, or removed", off),
		ask(propTrustee, "removed", gone),
		ask(propSource, "removed", gone),
		ask(propReencrypt, "removed", off), // false is as good as gone
	}
	// The provider list stays, with its first entry alone.
	uri := ask(propProvider, "", func(value string, _ bool) bool {
		_, more, _ := strings.Cut(value, ",")
		return strings.TrimSpace(more) == ""
	})
	first, _, _ := strings.Cut(uri.Value, ",")
	uri.Want = strings.TrimSpace(first)
	return append(ps, uri)
}
