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

// sinceRun is what happened to a migrated key's versions at the source since the journal recorded them. It
// changes when HDFS was pointed back to the source, or another cluster uses the source, however the source
// names its versions.
type sinceRun struct {
	recorded, now int      // how many the source counted
	made, lost    []string // names, where the source shows them and the journal has them
	allowed       bool     // numbered versions, for which there is room here, or whose EDEKs an operator called ours
	ours          []string // of those that were made, by number: an operator called their EDEKs ours
	// anew is the creation time of the source's key where that is another key than the migrated one, which was
	// made at was; zero: it is the same key.
	was, anew time.Time
}

// sinceRun compares the source's metadata with the journal's record of a key that was taken over; nil: nothing
// has changed.
func (e *Engine) sinceRun(it *Item, theirs *claviger.Metadata, names []string) *sinceRun {
	if it.State != Done || len(it.TargetVersions) == 0 || theirs == nil {
		return nil
	}
	s := &sinceRun{recorded: it.Source.Versions, now: theirs.Versions}
	if it.madeAnew(theirs) {
		s.was, s.anew = it.Source.Created, theirs.Created
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
			s.ours = append(s.ours, name)
		}
	}
	s.allowed = s.now > s.recorded && len(s.lost) == 0 && (it.First > it.Source.Versions || e.allOurs(it, s))
	return s
}

// madeAnew reports whether the source has another key of the name than the recorded one. The creation time
// shows it, since nobody can choose it.
func (it *Item) madeAnew(theirs *claviger.Metadata) bool {
	return !it.Source.Created.Equal(fieldsOf(theirs).Created)
}

// allOurs reports whether an operator has decided about the EDEKs of each version that the source numbered
// since and that was made here too. The source opens those of the other versions.
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

// String says what has changed, and what to do.
func (s *sinceRun) String() string {
	if !s.anew.IsZero() {
		return fmt.Sprintf("the source has another key of that name, made %s: the one that was migrated, made %s, "+
			"was deleted there, and EDEKs of its versions there open nowhere; do not delete the key here; if the "+
			"source's key is used, copy the files of its zones, through the source, to zones with a key of another "+
			"name, and delete it at the source",
			s.anew.UTC().Format(timeFormat), s.was.UTC().Format(timeFormat))
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
	case s.allowed && len(s.ours) > 0:
		text += fmt.Sprintf("; by %s EDEKs of%s are this server's: one that the source has made under that name "+
			"opens here to a wrong DEK, so give this server none", PropOurs, inBrackets(s.ours))
	case s.allowed:
		text += ", for which there is room here"
	default:
		text += "; EDEKs of it open through the source alone, and something uses the source that may go on: look " +
			"whether HDFS is pointed there (hadoop.security.key.provider.path), stop rolls there, and re-encrypt the " +
			"key's zones again"
	}
	return text
}

// inBrackets returns the first of names in brackets, or "".
func inBrackets(names []string) string {
	if len(names) == 0 {
		return ""
	}
	shown := make([]string, len(names))
	for i, name := range names {
		shown[i] = claviger.Printable(name)
	}
	return " (" + someNames(shown) + ")"
}

// difference returns the entry for verify.
func (s *sinceRun) difference() Difference {
	return Difference{Field: "versions of the source", Source: strconv.Itoa(s.now),
		Target: strconv.Itoa(s.recorded) + " noted"}
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
