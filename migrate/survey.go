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

// sourceVersions reads the names of a key's versions, which are only for the report. After a source that does
// not show them (a KMS shows them only to users with the right GET, together with material) it does not try
// again. It wipes material.
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

// judge decides what to do with one key.
func (e *Engine) judge(ctx context.Context, sv *survey, name string, theirs, ours *claviger.Metadata,
	unread error) (Item, error) {
	before, known := sv.history.items[name]
	another, err := e.another(ctx, before, ours)
	if err != nil {
		return before, err
	}
	if was, ok := sv.history.takenOver[name]; ok && ours != nil && before.hides(was) {
		if gone, err := e.another(ctx, was, ours); err != nil {
			return before, err
		} else if !gone {
			before, before.State = was, Done
		}
	}
	if another && unread != nil {
		ours = nil // that of the journal is not here
	}
	if unread != nil {
		if known && before.State == Done && ours != nil {
			// The key is here. Only the comparison with the source is missing.
			before.Why = e.whyUnread(ctx, name, unread)
			return before, nil
		}
		if known && ours == nil && (before.State == Done || before.State == Deleted) {
			return deletedHere(before), nil
		}
		it := Item{Key: name, State: Unreadable, Why: e.whyUnread(ctx, name, unread)}
		if refused(unread) {
			it.State = Refused
		}
		return it, nil
	}
	it := Item{Key: name, State: Planned, Source: fieldsOf(theirs)}
	if other, ok := sv.history.elsewhere[name]; ok {
		rolled := ""
		if v := e.rolledInto(ctx, other, theirs); v != "" {
			rolled = e.whyRolledInto(v, other)
			sv.twice = append(sv.twice, VersionConflict{v, e.cfg.Source.URI(), rolled})
		}
		done := known && (before.State == Done || before.State == Deleted || before.State == Importing)
		switch {
		case ours != nil:
			if v, err := e.twice(ctx, other); err != nil || v != "" {
				it.State, it.Why = Conflict, e.whyTwice(ctx, v, other)
				sv.twice = append(sv.twice, VersionConflict{v, other.target, it.Why})
				return it, err
			}
		case !done:
			s := e.asSource(other)
			if s == nil {
				it.State, it.Why = Elsewhere, e.whyElsewhere(other)
				if rolled != "" {
					it.Why += "; " + rolled
				}
				return it, nil
			}
			if it.First, err = above(ctx, s, other); err != nil {
				return it, err
			}
		}
	}
	if known {
		it.SourceVersions, it.Started = before.SourceVersions, before.Started
		if countOf(it.SourceVersions) != theirs.Versions {
			it.SourceVersions = nil // rolled there since
		}
		if before.State == Importing {
			it.State, it.Count, it.First = Importing, before.Count, before.First
		}
	}
	if ours == nil {
		// The source rolled the key afterwards, so the key could not stay. It is taken over again once it was
		// deleted here, but not while it can be undeleted and was used.
		again := e.collision(ctx, before, theirs, before.TargetVersions) != ""
		if known && (before.State == Done || before.State == Deleted) && !again {
			return deletedHere(before), nil
		}
		if again {
			switch used, err := e.shelvedUsed(ctx, name, before.TargetVersions); {
			case err != nil:
				return it, err
			case used != "":
				return e.collided(ctx, before, theirs, used), nil
			}
		}
		if why := e.unsupported(theirs); why != "" {
			it.State, it.Why = Unsupported, why
		}
		return it, nil
	}
	if known && !another && before.State == Conflict && before.Rolled > 0 && before.madeAnew(theirs) {
		return before, nil // EDEKs of the version to which the older key was rolled are there still
	}
	if known && before.State == Done && !another && !sv.adopted[name] {
		before.Why, before.Rolled = "", 0
		here := before.TargetVersions
		if theirs.Versions > before.Source.Versions { // rolls here may have come to the same names
			vs, err := e.cfg.Target.Versions(ctx, name)
			if err != nil {
				return before, err
			}
			here = append(slices.Clone(here), namesOf(vs)...)
		}
		if v := e.collision(ctx, before, theirs, here); v != "" {
			return e.collided(ctx, before, theirs, v, here...), nil
		}
		if since := e.sinceRun(&before, theirs, nil); since != nil {
			before.Why = since.String()
			if !since.anew.IsZero() {
				return before, nil // it is here, and is no other key's
			}
		}
		if diffs := compare(before.Source, fieldsOf(theirs)); len(diffs) > 0 {
			return conflict(it, diffs, "at the source it is another key than the one that was migrated",
				cureRename), nil
		}
		return before, nil
	}
	if diffs := compare(fieldsOf(theirs), fieldsOf(ours)); len(diffs) > 0 {
		if sv.adopted[name] {
			return e.readopt(ctx, it, diffs)
		}
		return conflict(it, diffs, "a key of that name is here already", cureRename), nil
	}
	// The key is here and the same. A process that was killed before it recorded this imported it, or the
	// source has two addresses.
	it.Retaken = it.State == Importing && before.Retaken
	adopted, err := e.adopt(ctx, it, known)
	return adopted, err
}

// deletedHere returns the item of a key that was migrated and is no longer here.
func deletedHere(it Item) Item {
	if it.State == Done {
		it.State = Deleted
		it.Why = "was migrated and has been deleted here since, so it is not brought back; undelete it here, or " +
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
		return fmt.Sprintf("the source counts %d versions; a key has one at least: look at it there (hadoop key list "+
			"-metadata)", m.Versions)
	case m.Versions > claviger.MaxVersion:
		return fmt.Sprintf("the source counts %d versions, and none can have a higher number: copy the zone's files "+
			"into a new zone (distcp)", m.Versions)
	}
	return ""
}

// cureRename is the cure for two keys of one name.
const cureRename = "rename the zone's key, or delete the one that nobody uses, before the next run"

func conflict(it Item, diffs []Difference, what, cure string) Item {
	var parts []string
	for _, d := range diffs {
		parts = append(parts, fmt.Sprintf("%s %s there, %s here", d.Field, d.Source, d.Target))
	}
	it.State = Conflict
	it.Why = fmt.Sprintf("%s, but with other metadata: %s; %s", what, strings.Join(parts, "; "), cure)
	return it
}

// Difference is a field of a key that differs between the sides. The values are for people.
type Difference struct {
	Field  string `json:"field"`
	Source string `json:"source"`
	Target string `json:"target"`
}

// compare returns the differences, without the number of versions, which grows by rolls at the target.
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
