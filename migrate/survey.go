package migrate

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger"
	"claviger/provider"
)

// sourceVersions reads the names of a key's versions, which are only for the report. A KMS shows them only to users
// with the right GET, together with material, which sourceVersions wipes. again is false if the source would not show
// the versions of other keys either.
func (e *Engine) sourceVersions(ctx context.Context, sv *survey, key string) (names []string, again bool, err error) {
	vs, err := e.cfg.Source.Versions(ctx, key)
	if err != nil {
		if ctx.Err() != nil {
			return nil, false, e.sourceError(ctx, "migrate.Versions", key, err)
		}
		// A key-level refusal says nothing about the next key.
		return nil, claviger.Is(err, claviger.KeyDenied), nil
	}
	_, remote := e.cfg.Source.(provider.EDEKService)
	for _, v := range vs {
		if len(v.Material) > 0 {
			v.Material.Wipe()
			sv.material = sv.material || remote
		}
		names = append(names, v.Name)
	}
	return names, true, nil
}

// keyFacts has the facts about one key of the source by which judge decides.
type keyFacts struct {
	name               string
	atSource, atTarget *claviger.Metadata // at the source and at the target; atSource is nil if it could not be read
	before             Item               // the journal's record
	known              bool               // the journal has a record
	replaced           bool               // the target's key has the name, but is not the recorded key
	adopted            bool               // an operator's adoption made the target's record
}

// keyFacts finds the journal's record of a key, and whether the target's key is the recorded one.
func (e *Engine) keyFacts(ctx context.Context, sv *survey, name string,
	atSource, atTarget *claviger.Metadata) (*keyFacts, error) {
	before, known := sv.history.items[name]
	replaced, err := e.isReplaced(ctx, before, atTarget)
	if err != nil {
		return nil, err
	}
	if was, ok := sv.history.takenOver[name]; ok && atTarget != nil && before.hides(was) {
		if gone, err := e.isReplaced(ctx, was, atTarget); err != nil {
			return nil, err
		} else if !gone {
			before, before.State = was, Done
		}
	}
	return &keyFacts{name: name, atSource: atSource, atTarget: atTarget, before: before, known: known,
		replaced: replaced, adopted: sv.adopted[name]}, nil
}

// judge decides what to do with one key.
func (e *Engine) judge(ctx context.Context, sv *survey, name string, atSource, atTarget *claviger.Metadata,
	unread error) (Item, error) {
	k, err := e.keyFacts(ctx, sv, name, atSource, atTarget)
	if err != nil {
		return Item{}, err
	}
	if unread != nil {
		return e.judgeUnread(ctx, k, unread), nil
	}
	it := Item{Key: name, State: Planned, Source: fieldsOf(atSource)}
	if other, ok := sv.history.elsewhere[name]; ok {
		decided, err := e.judgeElsewhere(ctx, sv, k, other, &it)
		if decided || err != nil {
			return it, err
		}
	}
	if k.known {
		k.continueRecord(&it)
	}
	if atTarget == nil {
		return e.judgeAbsent(ctx, k, it)
	}
	return e.judgePresent(ctx, k, it)
}

// judgeUnread decides about a key whose metadata could not be read at the source.
func (e *Engine) judgeUnread(ctx context.Context, k *keyFacts, unread error) Item {
	here := k.atTarget != nil && !k.replaced
	switch {
	case k.known && k.before.State == Done && here:
		// Only the comparison with the source is missing.
		it := k.before
		it.Why = e.whyUnread(ctx, k.name, unread)
		return it
	case k.known && !here && k.before.migrated():
		return deletedHere(k.before)
	}
	it := Item{Key: k.name, State: Unreadable, Why: e.whyUnread(ctx, k.name, unread)}
	if refused(unread) {
		it.State = Refused
	}
	return it
}

// judgeElsewhere decides about a key that a run into another target took over. If decided is false, the other
// rules decide; then judgeElsewhere may have set it.First, the lowest number of the new versions.
func (e *Engine) judgeElsewhere(ctx context.Context, sv *survey, k *keyFacts, other otherTakeover,
	it *Item) (decided bool, err error) {
	rolled := ""
	if v := e.rolledInto(ctx, other, k.atSource); v != "" {
		rolled = e.whyRolledInto(v, other)
		sv.duplicates = append(sv.duplicates, VersionConflict{v, e.cfg.Source.URI(), rolled})
	}
	if k.atTarget != nil {
		v, err := e.duplicateVersion(ctx, other)
		if err != nil || v == "" {
			return false, err
		}
		it.State, it.Why = Conflict, e.whyDuplicate(ctx, v, other)
		sv.duplicates = append(sv.duplicates, VersionConflict{v, other.target, it.Why})
		return true, nil
	}
	if k.known && (k.before.migrated() || k.before.State == Importing) {
		return false, nil
	}
	s := e.asSource(other)
	if s == nil {
		it.State, it.Why = Elsewhere, e.whyElsewhere(other)
		if rolled != "" {
			it.Why += "; " + rolled
		}
		return true, nil
	}
	it.First, err = lowestNumber(ctx, s, other)
	return false, err
}

// continueRecord copies from the journal's record of an earlier run into it, the item of this run.
func (k *keyFacts) continueRecord(it *Item) {
	it.SourceVersions, it.Started = k.before.SourceVersions, k.before.Started
	if countOf(it.SourceVersions) != k.atSource.Versions {
		it.SourceVersions = nil // the source rolled the key since
	}
	if k.before.State == Importing {
		it.State, it.Count, it.First = Importing, k.before.Count, k.before.First
	}
}

// judgeAbsent decides about a key that the target does not have.
func (e *Engine) judgeAbsent(ctx context.Context, k *keyFacts, it Item) (Item, error) {
	// If the source rolled the key to a number that the key had here, the key had to be deleted here. It is
	// taken over again, unless it can be undeleted and was used.
	again := e.collision(ctx, k.before, k.atSource, k.before.TargetVersions) != ""
	if k.known && k.before.migrated() && !again {
		return deletedHere(k.before), nil
	}
	if again {
		switch used, err := e.deletedUsed(ctx, k.name, k.before.TargetVersions); {
		case err != nil:
			return it, err
		case used != "":
			return e.collided(ctx, k.before, k.atSource, used), nil
		}
	}
	if why := e.unsupported(k.atSource); why != "" {
		it.State, it.Why = Unsupported, why
	}
	return it, nil
}

// judgePresent decides about a key that the target has.
func (e *Engine) judgePresent(ctx context.Context, k *keyFacts, it Item) (Item, error) {
	if k.known && !k.replaced {
		before := k.before
		if before.State == Conflict && before.Rolled > 0 && before.recreated(k.atSource) {
			return before, nil // EDEKs still exist of the version to which the older key was rolled
		}
		if before.State == Done && !k.adopted {
			return e.judgeTakenOver(ctx, k, it)
		}
	}
	if diffs := compare(fieldsOf(k.atSource), fieldsOf(k.atTarget)); len(diffs) > 0 {
		if k.adopted {
			return e.readopt(ctx, it, diffs)
		}
		return conflict(it, diffs, "a key of that name is here already", cureRename), nil
	}
	// Both keys are the same: either a process imported the key and was killed before it recorded that, or the
	// source has two addresses.
	it.Retaken = it.State == Importing && k.before.Retaken
	return e.adopt(ctx, it, k.known)
}

// judgeTakenOver decides about a key that an earlier run took over and that the target still has.
func (e *Engine) judgeTakenOver(ctx context.Context, k *keyFacts, it Item) (Item, error) {
	before := k.before
	before.Why, before.Rolled = "", 0
	here := before.TargetVersions
	if k.atSource.Versions > before.Source.Versions { // rolls here may have reached the same numbers
		vs, err := e.cfg.Target.Versions(ctx, k.name)
		if err != nil {
			return before, err
		}
		here = append(slices.Clone(here), namesOf(vs)...)
	}
	if v := e.collision(ctx, before, k.atSource, here); v != "" {
		return e.collided(ctx, before, k.atSource, v, here...), nil
	}
	if since := e.sinceRun(&before, k.atSource, nil); since != nil {
		before.Why = since.String()
		if !since.newCreated.IsZero() {
			return before, nil // the key here is still the recorded one
		}
	}
	if diffs := compare(before.Source, fieldsOf(k.atSource)); len(diffs) > 0 {
		return conflict(it, diffs, "at the source it is another key than the one that was migrated", cureRename), nil
	}
	return before, nil
}

// deletedHere returns the item of a key that was migrated and is no longer here.
func deletedHere(it Item) Item {
	if it.State == Done {
		it.State = Deleted
		it.Why = "was migrated and has been deleted here since, so it is not taken over again; undelete it here, or " +
			"delete it at the source too: then the name is free"
	}
	return it
}

// adopt returns an item that is done, for a key that the target has.
func (e *Engine) adopt(ctx context.Context, it Item, known bool) (Item, error) {
	vs, err := e.cfg.Target.Versions(ctx, it.Key)
	if err != nil {
		return it, err
	}
	it.Adopted = !known || it.State != Importing || it.Retaken
	it.State = Done
	if !known || it.Count == 0 {
		it.Count = len(vs)
	}
	it.Count = min(it.Count, len(vs))
	it.TargetVersions = append(it.TargetVersions, namesOf(vs)[:it.Count]...)
	ended := e.now()
	it.Ended = &ended
	return it, nil
}

// namesOf returns the names of versions, and wipes their material.
func namesOf(vs []claviger.KeyVersion) []string {
	var names []string
	for _, v := range vs {
		v.Material.Wipe()
		names = append(names, v.Name)
	}
	return names
}

// unsupported returns the reason why the target cannot hold the key, or "".
func (e *Engine) unsupported(m *claviger.Metadata) string {
	algorithm, _, _ := strings.Cut(m.Cipher, "/")
	switch {
	case !strings.EqualFold(algorithm, "AES"):
		return fmt.Sprintf("cipher %q: only AES keys can be made; copy the zone's files into a new zone with an AES "+
			"key (distcp)", m.Cipher)
	case m.BitLength != 128 && m.BitLength != 192 && m.BitLength != 256:
		return fmt.Sprintf("length %d: AES keys have 128, 192 or 256 bits; copy the zone's files into a new zone "+
			"(distcp)", m.BitLength)
	case m.Versions < 1:
		return fmt.Sprintf("the source counts %d versions, but a key has at least one: look at the key there (hadoop "+
			"key list -metadata)", m.Versions)
	case m.Versions > claviger.MaxVersion:
		return fmt.Sprintf("the source counts %d versions, and no version can have a higher number: copy the zone's "+
			"files into a new zone (distcp)", m.Versions)
	}
	return ""
}

// cureRename is the cure for two keys of one name.
const cureRename = "rename the zone's key, or delete the key that nobody uses, before the next run"

// conflict returns the item of a key whose metadata differ. what is the reason in words.
func conflict(it Item, diffs []Difference, what, cure string) Item {
	var parts []string
	for _, d := range diffs {
		parts = append(parts, fmt.Sprintf("%s %s at the source, %s here", d.Field, d.Source, d.Target))
	}
	it.State = Conflict
	it.Why = fmt.Sprintf("%s, but with other metadata: %s; %s", what, strings.Join(parts, "; "), cure)
	return it
}

// Difference is a field of a key that differs between the sides. The values are texts for the report.
type Difference struct {
	Field  string `json:"field"`
	Source string `json:"source"`
	Target string `json:"target"`
}

// compare returns the differences. It leaves out the number of versions, which rolls at the target increase.
func compare(source, target Fields) []Difference {
	var d []Difference
	add := func(field, s, t string) { d = append(d, Difference{field, s, t}) }
	if source.Cipher != target.Cipher {
		add("cipher", strconv.Quote(source.Cipher), strconv.Quote(target.Cipher))
	}
	if source.Length != target.Length {
		add("length", strconv.Itoa(source.Length), strconv.Itoa(target.Length))
	}
	if s, t := quoteOrNone(source.Description), quoteOrNone(target.Description); s != t {
		add("description", s, t)
	}
	if !source.Created.Equal(target.Created) {
		add("created", source.Created.UTC().Format(timeFormat), target.Created.UTC().Format(timeFormat))
	}
	for _, name := range slices.Sorted(maps.Keys(source.Attributes)) {
		if v, ok := target.Attributes[name]; !ok {
			add("attribute "+strconv.Quote(name), strconv.Quote(source.Attributes[name]), "none")
		} else if v != source.Attributes[name] {
			add("attribute "+strconv.Quote(name), strconv.Quote(source.Attributes[name]), strconv.Quote(v))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(target.Attributes)) {
		if _, ok := source.Attributes[name]; !ok {
			add("attribute "+strconv.Quote(name), "none", strconv.Quote(target.Attributes[name]))
		}
	}
	return d
}

// timeFormat has milliseconds, as creation times have.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

func quoteOrNone(s *string) string {
	if s == nil {
		return "none"
	}
	return strconv.Quote(*s)
}

func ptr(t time.Time) *time.Time { return &t }
