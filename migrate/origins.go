package migrate

import (
	"context"
	"strings"
	"time"

	"claviger/metastore"
)

// Origin is what the journal says of one key at one source.
type Origin struct {
	Key    string
	Source string // URI
	// TakenOver: the key was made at the target; it may have been deleted there since.
	TakenOver bool
	// Metadata is the source's, as the key was planned; its zero where the source did
	// not let us read it.
	Metadata Fields
	// Numbered: versions were made, and the source numbers its own. Rolled is how many it
	// had when one of them was found to have the name of one that was made; 0: none had.
	Numbered bool
	Rolled   int
	// Folded: the source answers to every spelling of the name.
	Folded bool
	// Made are the full names of the versions that were made.
	Made []string
	// Finished is when the operator ended the migration; nil: it goes on.
	Finished *time.Time
	// Freed is when an administrator freed the name, by FreeNames; nil: it is kept.
	Freed *time.Time
}

// Origins reads where keys came from: the newest record of each key at each source.
func Origins(ctx context.Context, store metastore.Journal) ([]Origin, error) {
	names, err := store.Runs(ctx)
	if err != nil {
		return nil, err
	}
	type place struct{ key, source string }
	var list []Origin
	at := map[place]int{}
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
			o := Origin{Key: it.Key, Source: r.Source, TakenOver: it.State == Done || it.State == Deleted, Folded: it.Folded, Metadata: it.Source,
				Numbered: it.numbered() && len(it.TargetVersions) > 0, Rolled: it.Rolled, Made: it.TargetVersions}
			if f, ok := freed[it.Key]; ok && !f.At.Before(r.Started) {
				o.Freed = &f.At // a run that lists the name later keeps it again
			}
			p := place{it.Key, r.Source}
			i, known := at[p]
			if !known {
				i = len(list)
				at[p] = i
				list = append(list, o)
				continue
			}
			list[i] = o
		}
		// An end is of all that was written until then.
		if r.State == Finished && r.Ended != nil {
			for i := range list {
				if list[i].Finished == nil {
					list[i].Finished = r.Ended
				}
			}
		}
	}
	return list, nil
}
