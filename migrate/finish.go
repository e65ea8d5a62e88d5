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

// FinishOptions are the operator's statements and the state of the configuration.
type FinishOptions struct {
	// Since is the start of the time in which no version of a source may have been used.
	Since time.Time
	// EDEKsDone is the operator's statement that every EDEK is re-encrypted or deleted, in snapshots and copies
	// too.
	EDEKsDone bool
	// Verdict has the last recorded verdict decide in place of EDEKsDone.
	Verdict bool
	// SourceGone is the operator's statement that the source cannot be read any more. Keys that it got since
	// the run are lost.
	SourceGone bool
	// SourceRolled is the operator's statement that the versions which the source rolled since the run are
	// known, and that their EDEKs are re-encrypted too.
	SourceRolled bool
	// NotRestarted describes servers that still run with other sources than the configuration names.
	NotRestarted []string
	// Get returns the value of a property that somebody has set, and the place ("/etc/kms/kms-site.xml:12").
	// Built-in defaults do not count. Nil leaves the properties unchecked.
	Get func(name string) (value, where string, ok bool)
}

// Ending is the result of Finish.
type Ending struct {
	Format string    `json:"format"` // "claviger migrate finish 1"
	At     time.Time `json:"at"`
	Since  time.Time `json:"since"`
	// Refusals are the reasons why the source is still needed; without any, it is not needed.
	Refusals []string `json:"refusals"`
	// Properties are the properties to remove or restore, in the procedure's order.
	Properties []Property `json:"properties"`
	// Leftovers are the files that the procedure has left on this host: copies of the source's secrets, and
	// others. The caller of Finish finds them.
	Leftovers []Leftover `json:"leftovers,omitempty"`
	// NotReached are the EDEKs that the re-encryption of zones does not change, in words. EDEKsDone does not cover
	// them.
	NotReached []string `json:"notReached"`
	// EDEKs says what shows that no EDEK needs the source; nil if that is a refusal.
	EDEKs *EDEKProof `json:"edeks,omitempty"`
	// Finished: nothing is left to do, and the journal records the end.
	Finished bool `json:"finished"`
	// Compared is the time of the last comparison with the source's keys; nil: none since the run.
	Compared *time.Time `json:"compared,omitempty"`
	// Deleted are keys that were migrated and deleted here since. Their EDEKs open nowhere once the source has
	// gone.
	Deleted []string `json:"deleted,omitempty"`
	Remarks []string `json:"remarks,omitempty"`
}

// NotReached names the places of EDEKs other than the extended attributes of HDFS' files. No image shows them.
var NotReached = []string{
	"ORC files with encrypted columns: the key version is in the file's footer; rewrite the files (INSERT " +
		"OVERWRITE, CTAS)",
	"Ozone: its own database keeps the EDEKs of an encrypted bucket; copy the bucket's keys into a new bucket",
	"copies outside of HDFS: backups, and trees that distcp has copied from /.reserved/raw; copy them again, from " +
		"re-encrypted files",
}

// notInSnapshots is advice for a migration that ends by the operator's statement. A verdict counts the EDEKs of
// snapshots itself.
const notInSnapshots = "snapshots from before the re-encryption: delete them"

// Leftover is a file or folder on this host that is not needed after a migration.
type Leftover struct {
	Path   string `json:"path"`
	What   string `json:"what"`
	Secret bool   `json:"secret"` // it is known to be a copy of secrets; else it is a guess
	// Shredded: this call overwrote and removed it.
	Shredded bool `json:"shredded,omitempty"`
	// Remaining are the parts that remain, with the reasons.
	Remaining []string `json:"left,omitempty"`
}

// Property is a property of the clean-up.
type Property struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"` // as it is now
	Where string `json:"where,omitempty"` // file and line that set it
	Want  string `json:"want"`            // "removed", or the value to restore
	Done  bool   `json:"done"`
}

// Finish decides whether the source may go. If so it lists the properties to remove. Once they are gone it
// writes the end into the journal; later calls find the migration finished.
func (e *Engine) Finish(ctx context.Context, o FinishOptions) (*Ending, error) {
	f := &Ending{Format: "claviger migrate finish 1", At: e.now(), Since: o.Since.UTC(), Refusals: []string{},
		Properties: []Property{}, NotReached: append(slices.Clone(NotReached), notInSnapshots)}
	h, err := e.read(ctx, "")
	if err != nil {
		return nil, err
	}
	e.refuseNotHere(f, h)
	last := h.last()
	if last == nil {
		return f, nil
	}
	unlock, ok, err := e.cfg.Store.TryLock(ctx, LockName)
	if err != nil {
		return nil, err
	}
	if !ok {
		f.refuse(migratingNow)
		return f, nil
	}
	defer unlock()
	if err := e.refusals(ctx, f, h, o); err != nil {
		return nil, err
	}
	if len(f.Refusals) > 0 || !f.cleanedUp(o) {
		return f, nil
	}
	f.Finished = true
	if last.State == Finished {
		return f, e.settleConflicts(ctx) // a call that was killed may have left them
	}
	last.Completed, last.EDEKs, last.NotUsedSince = last.Ended, f.EDEKs, &f.Since
	last.State, last.Ended = Finished, ptr(e.now())
	if err := e.putRun(ctx, *last); err != nil {
		return nil, err
	}
	// The operator has decided about all conflicts, so no property needs to name them any more.
	return f, e.settleConflicts(ctx)
}

// migratingNow says that another process holds the lock LockName.
const migratingNow = "a process is migrating now"

// refuseNotHere adds a reason for each key that runs have taken over into other targets only, or a reason if nothing
// was migrated.
func (e *Engine) refuseNotHere(f *Ending, h *history) {
	for _, a := range h.onlyElsewhere() {
		f.refuse("key %s is not here: %s", claviger.Printable(a.Key), e.whyElsewhere(a))
	}
	if h.last() == nil && len(f.Refusals) == 0 {
		f.refuse("nothing was migrated: the journal of this metastore has no run")
	}
}

// refuse adds a reason why the source is still needed.
func (f *Ending) refuse(format string, args ...any) {
	f.Refusals = append(f.Refusals, fmt.Sprintf(format, args...))
}

// cleanedUp lists the properties of the clean-up, and reports whether all of them are as they should be.
func (f *Ending) cleanedUp(o FinishOptions) bool {
	if o.Get == nil {
		return false
	}
	f.Properties = cleanup(o.Get)
	return !slices.ContainsFunc(f.Properties, func(p Property) bool { return !p.Done })
}

// refusals adds all reasons why the source is still needed.
func (e *Engine) refusals(ctx context.Context, f *Ending, h *history, o FinishOptions) error {
	if err := e.refuseRun(ctx, f, h.last(), &o); err != nil {
		return err
	}
	f.refuseNotRestarted(o.NotRestarted)
	if err := e.compareSource(ctx, f, h, o); err != nil {
		return err
	}
	if err := e.refuseKeys(ctx, f, h); err != nil {
		return err
	}
	last := h.last()
	f.Compared = last.Compared
	if f.Compared == nil && last.State != Finished && !o.SourceGone && e.cfg.Source == nil {
		f.refuse("the keys here were not compared with the source's keys since the run: name the source by %s "+
			"again, and call claviger migrate finish once before you remove the source from the configuration. If "+
			"the source is gone for good, confirm that by --source-gone: keys that were made there since the run "+
			"are lost with it", propSource)
	}
	if err := e.refuseUses(ctx, f, h, o.Since); err != nil {
		return err
	}
	return e.refuseEDEKs(ctx, f, h, o)
}

// refuseNotRestarted adds a reason for each server that runs with other sources than the configuration names.
func (f *Ending) refuseNotRestarted(servers []string) {
	for _, server := range servers {
		f.refuse("%s runs with other sources than kms-site.xml has now, and still uses them: restart it first", server)
	}
}

// refuseRun adds reasons that the last run and the clocks give. After an earlier Finish it changes the options:
// only uses since then count.
func (e *Engine) refuseRun(ctx context.Context, f *Ending, last *Run, o *FinishOptions) error {
	clocks, err := e.cfg.Store.Clocks(ctx)
	if err != nil {
		return err
	}
	if err := clocks.Check(); err != nil {
		f.refuse("the time of the last use of a source is not certain: %v", err)
	}
	if last.State == Finished && last.Ended != nil {
		if last.Ended.After(clocks.Latest().Add(metastore.ClockMargin)) {
			f.refuse("the last run ended at %s, which is in the future, so a clock was ahead then: until that time it "+
				"is not certain which uses of a source came later", last.Ended.UTC().Format(time.RFC3339))
		}
		// An earlier call decided by a verdict or the operator's statement; only what came later counts.
		o.EDEKsDone, o.Verdict = true, false
		if last.Ended.After(o.Since) {
			o.Since = *last.Ended
			f.Since = o.Since.UTC()
		}
	}
	if last.State != Complete && last.State != Finished {
		state := last.State
		if state == Running {
			state = Interrupted // we hold the lock, so no process is running it
		}
		f.refuse("the last run (%s) is %s: run the migration again", last.Name, state)
	}
	return nil
}

// refuseKeys adds a reason for each key that is not taken over, and for each version here that is not usable or
// in conflict.
func (e *Engine) refuseKeys(ctx context.Context, f *Ending, h *history) error {
	f.refuseUnsettled(h)
	if err := e.notUsable(ctx, f, h); err != nil {
		return err
	}
	return e.refuseConflicts(ctx, f)
}

// refuseUnsettled adds a reason for each key that is not taken over.
func (f *Ending) refuseUnsettled(h *history) {
	for _, key := range h.order {
		it := h.items[key]
		if it.State.settled() || it.State == Elsewhere { // Finish has refused keys that are elsewhere
			continue
		}
		if it.Why == "" { // the run ended before it began this key
			it.Why = "run the migration again"
		}
		f.refuse("key %s is %s: %s", claviger.Printable(key), it.State, it.Why)
	}
}

// refuseConflicts adds a reason for each version here that is in conflict.
func (e *Engine) refuseConflicts(ctx context.Context, f *Ending) error {
	conflicts, err := e.conflicts(ctx)
	if err != nil {
		return err
	}
	for _, c := range conflicts {
		f.refuse("version %s: %s", claviger.Printable(c.Version), c.Why)
	}
	return nil
}

// refuseUses adds a reason for each version of a source that was used after since, and for each used key that
// was never migrated.
func (e *Engine) refuseUses(ctx context.Context, f *Ending, h *history, since time.Time) error {
	uses, err := e.cfg.Store.Uses(ctx)
	if err != nil {
		return err
	}
	missed := map[string]bool{}
	for _, u := range uses {
		used := u.Last.UTC().Format(time.RFC3339)
		key, _ := claviger.KeyOfVersion(u.Version)
		if u.Source == h.last().Source && !h.knows(key) && u.Op != unserved && !missed[key] {
			missed[key] = true
			f.refuse("%s was used at %s (%s) at %s, and key %s was never migrated: name that KMS by %s again, and "+
				"run the migration again", claviger.Printable(u.Version), u.Source, u.Op, used,
				claviger.Printable(key), propSource)
		}
		if !u.Last.After(since) {
			continue
		}
		if u.Op == unserved {
			f.refuse("%s was requested at %s, after %s, and %s, which may have it, was not configured: something "+
				"still needs it; name that KMS by %s again",
				u.Version, used, since.UTC().Format(time.RFC3339), u.Source, propSource)
			continue
		}
		f.refuse("%s was used at %s (%s) at %s, after %s: something still needs it", u.Version, u.Source, u.Op, used,
			since.UTC().Format(time.RFC3339))
	}
	return nil
}

// unserved is the operation of a use for which no source was called (package keyring).
const unserved = "unserved"

// compareSource adds a refusal for each key of the source that is not here, and for each key whose versions
// differ from those of the run. It records a missing key in the journal, so that the key stays known after the
// source has left the configuration, and nobody can make a key of its name. If it finds nothing, it records the
// time of the comparison.
func (e *Engine) compareSource(ctx context.Context, f *Ending, h *history, o FinishOptions) error {
	if e.cfg.Source == nil {
		return nil
	}
	sv, err := e.survey(ctx, "migrate.Finish")
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return err
	default:
		f.refuse("it is not known whether the source has new keys, because it cannot be read: %s. If the source is "+
			"gone for good, remove %s from the configuration, and confirm it by --source-gone", claviger.Reason(err),
			propSource)
		return nil
	}
	if err := e.recordDuplicates(ctx, sv.duplicates); err != nil { // refuseKeys refuses them with the other conflicts
		return err
	}
	last, all := h.last(), len(sv.duplicates) == 0
	if n := h.countTakenOver(); n > 0 &&
		!slices.ContainsFunc(sv.items, func(it Item) bool { return h.items[it.Key].State.settled() }) {
		f.refuse("the source lists none of the %d keys that were migrated from %s: is it that KMS? Name the right "+
			"KMS by %s; if it is gone for good, remove the property, and confirm it by --source-gone", n, last.Source,
			propSource)
		last.Compared = nil
		return e.putRun(ctx, *last)
	}
	for _, it := range sv.unlistedSince() {
		if before := h.items[it.Key]; before.State.settled() {
			continue // the next run records that both sides have deleted it
		}
		h.items[it.Key] = it
		if err := e.putItem(ctx, last.Name, it); err != nil {
			return err
		}
	}
	for i, it := range sv.items {
		same, err := e.compareKey(ctx, f, h, o, sv, i, it)
		if err != nil {
			return err
		}
		all = all && same
	}
	if last.Compared = nil; all {
		last.Compared = ptr(e.now())
	}
	return e.putRun(ctx, *last)
}

// compareKey is compareSource for one key, sv.items[i]. same is false if it added a refusal, or if Finish has
// added one for the key.
func (e *Engine) compareKey(ctx context.Context, f *Ending, h *history, o FinishOptions, sv *survey, i int,
	it Item) (same bool, err error) {
	before, known := h.items[it.Key]
	names, err := e.namesNow(ctx, sv, &it)
	if err != nil {
		return false, err
	}
	since := e.sinceRun(&it, sv.atSource[i], names)
	switch {
	case it.State == Elsewhere:
		return false, nil // Finish has added the refusal
	case !known:
		it.Why = "is at the source and was not migrated: run the migration again"
		f.refuse("key %s %s", claviger.Printable(it.Key), it.Why)
		return false, e.putItem(ctx, h.last().Name, it)
	case before.State.settled() && !it.State.settled():
		f.refuse("key %s is %s now: %s", claviger.Printable(it.Key), it.State, it.Why)
		return false, nil
	case since != nil && !since.allowed && !o.SourceRolled:
		f.refuse("key %s: %s; then confirm it by --source-rolled", claviger.Printable(it.Key), since)
		return false, nil
	case since != nil && len(since.decided) > 0:
		f.Remarks = append(f.Remarks, fmt.Sprintf("key %s: %s", claviger.Printable(it.Key), since))
	}
	return true, nil
}

// knows reports whether the journal has a key, in any spelling to which its source answers.
func (h *history) knows(key string) bool {
	if _, ok := h.items[key]; ok {
		return true
	}
	for _, it := range h.items {
		if it.Listed == key || it.Folded && claviger.FoldName(it.Key) == claviger.FoldName(key) {
			return true
		}
	}
	return false
}

// countTakenOver returns the number of keys that were taken over from a source.
func (h *history) countTakenOver() (n int) {
	for _, it := range h.items {
		if it.State == Done {
			n++
		}
	}
	return n
}

// notUsable adds a refusal for each version of a migrated key with which the target does not encrypt. It
// collects the keys that were deleted since.
func (e *Engine) notUsable(ctx context.Context, f *Ending, h *history) error {
	var keys []string
	for _, key := range slices.Sorted(slices.Values(h.order)) {
		if st := h.items[key].State; st == Done || st == Deleted {
			keys = append(keys, key)
		}
	}
	have, bad, err := e.tryKeys(ctx, keys)
	if err != nil {
		return err
	}
	f.Deleted = slices.DeleteFunc(keys, func(key string) bool { return len(have[key]) > 0 })
	for i, version := range slices.Sorted(maps.Keys(bad)) {
		if i == refusedVersions {
			f.refuse("%d more versions cannot be used here", len(bad)-i)
			break
		}
		f.refuse("version %s cannot be used here: %s", claviger.Printable(version), bad[version])
	}
	return nil
}

// refusedVersions bounds how many unusable versions a report names.
const refusedVersions = 16

// cleanup checks the properties of the procedure's steps 11 to 14.
func cleanup(get func(string) (string, string, bool)) []Property {
	property := func(name, want string, done func(value string, set bool) bool) Property {
		value, where, set := get(name)
		return Property{Name: name, Value: value, Where: where, Want: want, Done: done(strings.TrimSpace(value), set)}
	}
	gone := func(_ string, set bool) bool { return !set }
	off := func(value string, set bool) bool { return !set || strings.EqualFold(value, "false") }
	ps := []Property{
		property(propInitiate, "false, or removed", off),
		property(propTrustee, "removed", gone),
		property(propSource, "removed", gone),
		property(propReencrypt, "removed", off), // false is as good as gone
	}
	// The provider list keeps its first entry only.
	uri := property(propProvider, "", func(value string, _ bool) bool {
		_, more, _ := strings.Cut(value, ",")
		return strings.TrimSpace(more) == ""
	})
	first, _, _ := strings.Cut(uri.Value, ",")
	uri.Want = strings.TrimSpace(first)
	return append(ps, uri)
}
