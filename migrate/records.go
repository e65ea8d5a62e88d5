package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"claviger"
)

// JournalRecord is one record of the journal, as it is stored.
type JournalRecord struct {
	Run    string          `json:"run"`
	Item   string          `json:"item"` // a key; "" is the record of the run itself
	At     time.Time       `json:"at"`   // when it was last written
	Record json.RawMessage `json:"record"`
}

// Journal returns all records of the journal, runs oldest first: those of migrations into any target, verdicts, freed
// names, and keys that claviger hsm adopt has recovered.
func (e *Engine) Journal(ctx context.Context) ([]JournalRecord, error) {
	runs, err := e.cfg.Store.Runs(ctx)
	if err != nil {
		return nil, err
	}
	list := []JournalRecord{}
	for _, run := range runs {
		records, err := e.cfg.Store.Records(ctx, run)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			if !json.Valid(r.Data) {
				return nil, claviger.Errorf("migrate.Journal", claviger.Internal, r.Item,
					"the journal's record of run %s is damaged: it is no JSON; restore the metastore from a backup",
					run)
			}
			list = append(list, JournalRecord{run, r.Item, r.At.UTC(), r.Data})
		}
	}
	return list, nil
}

// UseCounter counts the EDEKs of one version of a source that clients have asked for.
type UseCounter struct {
	Source  string `json:"source"` // URI
	Version string `json:"version"`
	// Op is "decrypt" or "reencrypt"; "unserved" counts requests while the source was not configured.
	Op    string    `json:"op"`
	EDEKs int64     `json:"edeks"`
	Last  time.Time `json:"last"` // request
}

// UseCounters returns all counters, by source, version and op.
func (e *Engine) UseCounters(ctx context.Context) ([]UseCounter, error) {
	uses, err := e.cfg.Store.Uses(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]UseCounter, len(uses))
	for i, u := range uses {
		list[i] = UseCounter{u.Source, u.Version, u.Op, u.Count, u.Last.UTC()}
	}
	return list, nil
}

// CheckRecorded returns an error if the journal does not have this verdict, or has another one of its name. The paths
// of files and snapshots that need a version are not compared, because the journal does not keep them.
func (e *Engine) CheckRecorded(ctx context.Context, v *Verdict) error {
	const op = "migrate.Verdict"
	records, err := e.cfg.Store.Records(ctx, verdictsRun)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Item != v.Name {
			continue
		}
		recorded := new(Verdict)
		if err := json.Unmarshal(r.Data, recorded); err != nil {
			return damagedVerdict(r.Item, err)
		}
		if err := v.Consistent(); err != nil {
			return claviger.Errorf(op, claviger.Invalid, v.Name, "%w; make a new verdict", err)
		}
		if !bytes.Equal(v.normalForm(), recorded.normalForm()) {
			return claviger.Errorf(op, claviger.Invalid, v.Name, "the journal has another verdict of this name: the "+
				"file was changed, or is from another metastore; make a new verdict")
		}
		return nil
	}
	return claviger.Errorf(op, claviger.Invalid, v.Name, "the journal has no verdict of this name; make the report on "+
		"the KMS that made the verdict, or make a new verdict")
}

// normalForm returns the JSON of a verdict as CheckRecorded compares it: as the journal keeps it, but with empty lists
// for nil ones.
func (v *Verdict) normalForm() []byte {
	c := v.withoutPaths()
	c.Images, c.Problems, c.Versions = append([]VerdictImage{}, c.Images...), append([]string{}, c.Problems...),
		append([]VersionVerdict{}, c.Versions...)
	c.ToDo, c.UnusedKeys, c.NotReached = append([]Step{}, c.ToDo...), append([]string{}, c.UnusedKeys...),
		append([]string{}, c.NotReached...)
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // the type has no value that JSON cannot have
	}
	return text
}

// Verdict returns the verdict on a source that the record has; nil if it is another record.
func (r *JournalRecord) Verdict() *Verdict {
	v := new(Verdict)
	if r.Run != verdictsRun || json.Unmarshal(r.Record, v) != nil {
		return nil
	}
	return v
}
