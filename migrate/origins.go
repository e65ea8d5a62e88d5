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
	// Metadata is the source's, at the time of planning; zero if the source did not let us read it.
	Metadata Fields
	// Numbered: versions were made, and the source numbers its versions. Rolled is Item.Rolled.
	Numbered bool
	Rolled   int
	// Folded: the source answers to every spelling of the name.
	Folded bool
	// Made are the full names of the versions that were made.
	Made []string
	// MadeThere are the full names of versions that a run into Source, as its target, has made, if their ids are
	// numbers. Another source's versions may have the same names.
	MadeThere []string
	// Finished is the time at which the operator ended the migration; nil: not yet.
	Finished *time.Time
	// Freed is the time at which FreeNames freed the name; nil: the journal keeps it.
	Freed *time.Time
}

// Origins returns where the keys of a target came from: the newest record of each key at each source. target is
// a URI. Another target into which a run has taken a key is a source of the key too, since versions that were
// made there open nowhere else. If that target is one of sources, which are URIs, the result has the URI from
// sources: a keystore file has several URIs.
func Origins(ctx context.Context, store metastore.Journal, target string, sources ...string) ([]Origin, error) {
	names, err := store.Runs(ctx)
	if err != nil {
		return nil, err
	}
	freed, err := freedNames(ctx, store)
	if err != nil {
		return nil, err
	}
	c := originCollector{target: target, freed: freed, index: map[place]int{}, takenOver: map[place]Item{},
		elsewhere: map[otherTarget]otherTakeover{}}
	for _, name := range names {
		if !strings.HasPrefix(name, runPrefix) {
			continue
		}
		records, err := store.Records(ctx, name)
		if err != nil {
			return nil, err
		}
		run, items, err := decodeRun(name, records)
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			c.add(run, it)
		}
		if sameTarget(run.Target, target) && run.State == Finished && run.Ended != nil {
			c.finish(run.Ended)
		}
	}
	c.addElsewhere(sources)
	return c.list, nil
}

// place is a key at a source.
type place struct{ key, source string }

// otherTarget is a target, other than ours, into which a run took a key of a source.
type otherTarget struct {
	place
	target string
}

// originCollector makes the list of Origins from the journal's runs, oldest first.
type originCollector struct {
	target    string // URI
	freed     map[string]Freed
	list      []Origin
	index     map[place]int  // in list
	takenOver map[place]Item // the newest record by which a key was taken over into target
	// elsewhere are the newest records of keys that runs took into other targets.
	elsewhere map[otherTarget]otherTakeover
}

// add adds the record of a key in a run.
func (c *originCollector) add(run Run, it Item) {
	p := place{it.Key, run.Source}
	if was, ok := c.takenOver[p]; ok && it.hides(was) {
		it = was // the key at the target is still the recorded one
	}
	o := Origin{Key: it.Key, Source: run.Source, TakenOver: it.migrated(), Folded: it.Folded, Metadata: it.Source,
		Numbered: it.numbered() && len(it.TargetVersions) > 0, Rolled: it.Rolled, Made: it.TargetVersions}
	if f, ok := c.freed[it.Key]; ok && !f.At.Before(run.Started) {
		o.Freed = &f.At // a run that lists the name later keeps it again
	}
	i, known := c.index[p]
	if !sameTarget(run.Target, c.target) {
		if o.TakenOver || it.State == Importing || len(it.TargetVersions) > 0 {
			c.elsewhere[otherTarget{p, run.Target}] = otherTakeover{it, run.Target, run.Started}
		}
		if known {
			return
		}
		o.TakenOver, o.Numbered, o.Rolled, o.Made = false, false, 0, nil
	}
	if it.takenOver() {
		c.takenOver[p] = it
	}
	if known {
		c.list[i] = o
		return
	}
	c.index[p] = len(c.list)
	c.list = append(c.list, o)
}

// finish records the end of a run. It covers everything that was written before it.
func (c *originCollector) finish(ended *time.Time) {
	for i := range c.list {
		if c.list[i].Finished == nil {
			c.list[i].Finished = ended
		}
	}
}

// addElsewhere adds the other targets as sources, sorted by key, source and target.
func (c *originCollector) addElsewhere(sources []string) {
	sorted := slices.SortedFunc(maps.Keys(c.elsewhere), func(a, b otherTarget) int {
		return strings.Compare(a.key+"\x00"+a.source+"\x00"+a.target, b.key+"\x00"+b.source+"\x00"+b.target)
	})
	for _, t := range sorted {
		here := c.list[c.index[t.place]]
		o := originElsewhere(c.elsewhere[t], here.TakenOver)
		o.Finished, o.Freed = here.Finished, here.Freed
		for _, uri := range sources {
			if file := keystoreFile(uri); file != "" && file == keystoreFile(o.Source) {
				o.Source = uri
			}
		}
		c.list = append(c.list, o)
	}
}
