package migrate

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"claviger/metastore"
)

// Origin is the journal's record of one key at one source.
type Origin struct {
	Key    string
	Source string // URI
	// TakenOver: the key was made at the target. It may have been deleted there since.
	TakenOver bool
	// Metadata is the source's, at the time of planning; zero where the source did not let us read it.
	Metadata Fields
	// Numbered: versions were made, and the source numbers its own. Rolled is the source's count of versions
	// when one of them had the name of a version that was made; 0: no version had.
	Numbered bool
	Rolled   int
	// Folded: the source answers to every spelling of the name.
	Folded bool
	// Made are the full names of the versions that were made.
	Made []string
	// MadeThere are the full names of versions that a run into Source, as its target, has made, where these
	// names are numbers. Another source's versions may have the same names.
	MadeThere []string
	// Finished is the time at which the operator ended the migration; nil: it is not ended.
	Finished *time.Time
	// Freed is the time at which FreeNames freed the name; nil: the journal keeps it.
	Freed *time.Time
}

// Origins returns where the keys of a target came from: the newest record of each key at each source. target is
// a URI. Another target into which a run has taken a key is a source of the key too, since versions that were
// made there open nowhere else. Where it is one of sources, which are URIs, it gets that URI: a keystore file
// has several.
func Origins(ctx context.Context, store metastore.Journal, target string, sources ...string) ([]Origin, error) {
	names, err := store.Runs(ctx)
	if err != nil {
		return nil, err
	}
	type place struct{ key, source string }
	var list []Origin
	at := map[place]int{}
	type stay struct {
		place
		target string
	}
	elsewhere := map[stay]away{}
	taken := map[place]Item{}
	freed, err := freedNames(ctx, store)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, runPrefix) {
			continue
		}
		records, err := store.Records(ctx, name)
		if err != nil {
			return nil, err
		}
		r, items, err := decodeRun(name, records)
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			p := place{it.Key, r.Source}
			if was, ok := taken[p]; ok && it.hides(was) {
				it = was // the key here is still that one
			}
			o := Origin{Key: it.Key, Source: r.Source, TakenOver: it.State == Done || it.State == Deleted,
				Folded: it.Folded, Metadata: it.Source,
				Numbered: it.numbered() && len(it.TargetVersions) > 0, Rolled: it.Rolled, Made: it.TargetVersions}
			if f, ok := freed[it.Key]; ok && !f.At.Before(r.Started) {
				o.Freed = &f.At // a run that lists the name later keeps it again
			}
			i, known := at[p]
			if !sameTarget(r.Target, target) {
				if o.TakenOver || it.State == Importing || len(it.TargetVersions) > 0 {
					elsewhere[stay{p, r.Target}] = away{it, r.Target, r.Started}
				}
				if known {
					continue
				}
				o.TakenOver, o.Numbered, o.Rolled, o.Made = false, false, 0, nil
			}
			if it.takenOver() {
				taken[p] = it
			}
			if !known {
				i = len(list)
				at[p] = i
				list = append(list, o)
				continue
			}
			list[i] = o
		}
		if !sameTarget(r.Target, target) {
			continue
		}
		// The end of a run covers everything that was written before it.
		if r.State == Finished && r.Ended != nil {
			for i := range list {
				if list[i].Finished == nil {
					list[i].Finished = r.Ended
				}
			}
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(elsewhere), func(a, b stay) int {
		return strings.Compare(a.key+"\x00"+a.source+"\x00"+a.target, b.key+"\x00"+b.source+"\x00"+b.target)
	}) {
		here := list[at[p.place]]
		o := originElsewhere(elsewhere[p], here.TakenOver)
		o.Finished, o.Freed = here.Finished, here.Freed
		for _, uri := range sources {
			if file := keystoreFile(uri); file != "" && file == keystoreFile(o.Source) {
				o.Source = uri
			}
		}
		list = append(list, o)
	}
	return list, nil
}
