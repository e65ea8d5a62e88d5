package migrate

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger"
)

// sinceRun is the change of a migrated key's versions at the source since the journal recorded them. Versions change
// if HDFS was pointed back to the source, or if another cluster uses the source.
type sinceRun struct {
	recorded, now int      // the source's counts of versions
	made, lost    []string // names, if the source shows them and the journal has them
	// allowed: the new versions have numbers that are free here, or an operator has said that EDEKs of them are ours.
	allowed bool
	decided []string // the new versions, by number, whose EDEKs are the target's, as an operator has said
	// newCreated is the creation time of the source's key if that is another key than the migrated key; zero if it is
	// the same key. oldCreated is the creation time of the migrated key, and is set only with newCreated.
	oldCreated, newCreated time.Time
}

// sinceRun compares the source's metadata with the journal's record of a key that was taken over; nil: nothing
// has changed.
func (e *Engine) sinceRun(it *Item, atSource *claviger.Metadata, names []string) *sinceRun {
	if it.State != Done || len(it.TargetVersions) == 0 || atSource == nil {
		return nil
	}
	s := &sinceRun{recorded: it.Source.Versions, now: atSource.Versions}
	if it.recreated(atSource) {
		s.oldCreated, s.newCreated = it.Source.Created, atSource.Created
		return s
	}
	if len(it.SourceVersions) > 0 && len(names) > 0 {
		s.made, s.lost = without(names, it.SourceVersions, it.Folded), without(it.SourceVersions, names, it.Folded)
	}
	if s.recorded == s.now && len(s.made) == 0 && len(s.lost) == 0 {
		return nil
	}
	for n := s.recorded; it.numbered() && n < s.now; n++ {
		if name := claviger.VersionName(it.Key, strconv.Itoa(n)); e.cfg.Ours[name] {
			s.decided = append(s.decided, name)
		}
	}
	s.allowed = s.now > s.recorded && len(s.lost) == 0 && (it.First > it.Source.Versions || e.allOurs(it, s))
	return s
}

// recreated reports whether the source's key of the name is another key than the recorded key. The creation time shows
// that, because nobody can choose it.
func (it *Item) recreated(atSource *claviger.Metadata) bool {
	return !it.Source.Created.Equal(fieldsOf(atSource).Created)
}

// allOurs reports whether an operator has decided about the EDEKs of each new version of the source whose name a
// version here has too. The source opens the EDEKs of the other versions.
func (e *Engine) allOurs(it *Item, s *sinceRun) bool {
	for n := s.recorded; it.numbered() && n < s.now; n++ {
		name := claviger.VersionName(it.Key, strconv.Itoa(n))
		if slices.Contains(it.TargetVersions, name) && !e.cfg.Ours[name] {
			return false
		}
	}
	return it.numbered()
}

// without returns the entries of a list that are not among others. folded ignores case.
func without(list, others []string, folded bool) []string {
	among := func(v string) bool {
		return slices.ContainsFunc(others, func(o string) bool {
			return o == v || folded && claviger.FoldName(o) == claviger.FoldName(v)
		})
	}
	return slices.DeleteFunc(slices.Clone(list), among)
}

// String returns the text for an operator: the change, and the cure.
func (s *sinceRun) String() string {
	if !s.newCreated.IsZero() {
		return fmt.Sprintf("the source has another key of that name, made %s: the migrated key, made %s, was deleted "+
			"there, and EDEKs of its versions there open nowhere; do not delete the key here; if the "+
			"source's key is used, copy the files of its zones, through the source, to zones with a key of another "+
			"name, and delete it at the source",
			s.newCreated.UTC().Format(timeFormat), s.oldCreated.UTC().Format(timeFormat))
	}
	var parts []string
	if n := max(s.now-s.recorded, len(s.made)); n > 0 {
		parts = append(parts, fmt.Sprintf("rolled at the source since the migration: %d more%s", n, inBrackets(s.made)))
	}
	if n := max(s.recorded-s.now, len(s.lost)); n > 0 {
		parts = append(parts, fmt.Sprintf("the source has lost %d versions since the migration%s: EDEKs of them open "+
			"nowhere; was its store restored from an older backup? Restore a newer one there", n, inBrackets(s.lost)))
	}
	text := strings.Join(parts, "; ")
	switch {
	case s.now <= s.recorded && len(s.made) == 0:
	case s.allowed && len(s.decided) > 0:
		text += fmt.Sprintf("; %s says that EDEKs of%s are this server's: an EDEK that the source made under that "+
			"name opens here to a wrong DEK, so send no such EDEK to this server", PropOurs, inBrackets(s.decided))
	case s.allowed:
		text += ", whose numbers are free here"
	default:
		text += "; only the source opens EDEKs of it, and something may still use the source: check whether HDFS " +
			"uses it (hadoop.security.key.provider.path), stop rolls there, and re-encrypt the key's zones again"
	}
	return text
}

// inBrackets returns the first names in brackets, or "" if there are none.
func inBrackets(names []string) string {
	if len(names) == 0 {
		return ""
	}
	shown := make([]string, len(names))
	for i, name := range names {
		shown[i] = claviger.Printable(name)
	}
	return " (" + claviger.FirstNames(shown, namedKeys) + ")"
}

// difference returns the entry for verify.
func (s *sinceRun) difference() Difference {
	return Difference{Field: "versions of the source", Source: strconv.Itoa(s.now),
		Target: strconv.Itoa(s.recorded) + " recorded"}
}

// namesNow returns the names of versions that the source lists now, for keys whose names the journal has. It
// returns none for a source that does not show them.
func (e *Engine) namesNow(ctx context.Context, sv *survey, it *Item) ([]string, error) {
	if it.State != Done || len(it.SourceVersions) == 0 || sv.namesHidden {
		return nil, nil
	}
	names, again, err := e.sourceVersions(ctx, sv, it.listed())
	sv.namesHidden = !again
	return names, err
}

// listed returns the source's spelling of the name.
func (it *Item) listed() string {
	if it.Listed != "" {
		return it.Listed
	}
	return it.Key
}
