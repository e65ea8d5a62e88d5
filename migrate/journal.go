package migrate

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/metastore"
)

// State is the progress of a key or a run.
type State string

// The states of a key. In a Plan, a state is the state that a run would reach.
const (
	Planned     State = "planned"     // will be imported
	Importing   State = "importing"   // was begun; the next run continues it
	Done        State = "done"        // is at the target
	Conflict    State = "conflict"    // another key of that name is at the target
	Unsupported State = "unsupported" // the target cannot hold such a key
	Refused     State = "refused"     // the source does not let us read it
	Unreadable  State = "unreadable"  // the source lists it, but cannot read it
	Failed      State = "failed"      // the import ended in an error; the next run tries again
	Deleted     State = "deleted"     // was migrated, and deleted at the target since
	Gone        State = "gone"        // was never taken over, and the source no longer lists it
	Elsewhere   State = "elsewhere"   // was taken over into another target, and is not here
	// Lost is a state in Status only: an operator has given up versions of the key on the target's token.
	Lost State = "lost"
	// NameFreed is a state in Status only: the key was deleted here, and an administrator has freed its name
	// since.
	NameFreed State = "freed"
)

// settled reports whether the key needs no more work.
func (s State) settled() bool { return s == Done || s == Deleted || s == Gone }

// The states of a run.
const (
	Running    State = "running"    // also if its process was killed meanwhile
	Complete   State = "complete"   // every key is done, or deleted since, or gone
	Incomplete State = "incomplete" // at least one key could not be imported
	Finished   State = "finished"   // the operator has ended the migration
	// Interrupted is a state in Status only: the journal has the run as running, but no process holds the lock.
	Interrupted State = "interrupted"
)

// Fields is a key's metadata in reports and the journal. Its field names are part of the JSON format.
type Fields struct {
	Cipher      string            `json:"cipher"`
	Length      int               `json:"length"` // bits
	Description *string           `json:"description"`
	Attributes  map[string]string `json:"attributes"`
	Created     time.Time         `json:"created"`
	Versions    int               `json:"versions"`
}

func fieldsOf(m *claviger.Metadata) Fields {
	f := Fields{Cipher: m.Cipher, Length: m.BitLength, Description: m.Description, Attributes: maps.Clone(m.Attributes),
		Created: m.Created.UTC().Truncate(time.Millisecond), Versions: m.Versions}
	if f.Attributes == nil {
		f.Attributes = map[string]string{}
	}
	return f
}

// Run is the journal's record of a run.
type Run struct {
	Name     string    `json:"run"`
	State    State     `json:"state"`
	Source   string    `json:"source"` // URI
	Target   string    `json:"target"`
	Versions Versions  `json:"versionsMode"`
	Host     string    `json:"host"`
	Started  time.Time `json:"started"`
	// Ended is the time at which it became complete, incomplete or finished.
	Ended *time.Time `json:"ended,omitempty"`
	// Completed is the time at which a finished run became complete; nil in records of older releases.
	Completed *time.Time `json:"completed,omitempty"`
	// EDEKs is the proof by which Finish ended it; nil if it is not finished, and in records of older releases.
	EDEKs *EDEKProof `json:"edeks,omitempty"`
	// NotUsedSince is the start of the time in which Finish demanded no use of the source (--unused-for); nil if the
	// run is not finished, and in records of older releases.
	NotUsedSince *time.Time `json:"notUsedSince,omitempty"`
	// Compared is the time at which Finish last found that every key of the source was taken over.
	Compared *time.Time `json:"compared,omitempty"`
	// Resumed counts the later processes that continued it.
	Resumed int `json:"resumed,omitempty"`
}

// Unused says for how long the source had not been used when Finish ended the run; "" if the record does not say it.
func (r *Run) Unused() string {
	if r.NotUsedSince == nil || r.Ended == nil {
		return ""
	}
	return fmt.Sprintf("no use of the source in the %v before", r.Ended.Sub(*r.NotUsedSince).Round(time.Second))
}

// Item is the journal's record of one key in a run.
type Item struct {
	Key   string `json:"key"`
	State State  `json:"state"`
	// Listed is the source's spelling of the name, if it differs.
	Listed string `json:"listed,omitempty"`
	// Folded: the source answers to every spelling of the name, and this metastore has an alias for that.
	Folded bool `json:"folded,omitempty"`
	// Source is the source's metadata at the time of planning.
	Source Fields `json:"source"`
	// SourceVersions are the full names at the source, oldest first. There are none if the source does not show
	// them; a KMS should not, because it shows them together with material.
	SourceVersions []string `json:"sourceVersions,omitempty"`
	// Count is the number of versions that the target makes. The first of TargetVersions replaces the first of
	// SourceVersions, and so on. A single version replaces the last.
	Count int `json:"count"`
	// First is the lowest number that they may have, because the source has used the lower numbers; 0 if the
	// source's versions have no numbers.
	First          int        `json:"first,omitempty"`
	TargetVersions []string   `json:"targetVersions,omitempty"`
	Started        *time.Time `json:"started,omitempty"`
	Ended          *time.Time `json:"ended,omitempty"`
	// Adopted: the target had the key already, with the same metadata.
	Adopted bool `json:"adopted,omitempty"`
	// Retaken: the key had been taken over before and its record was lost. An operator's adoption made the
	// record again, with TargetVersions.
	Retaken bool `json:"retaken,omitempty"`
	// Rolled is the source's count of versions at the time when a version of the source had the name of a version
	// here; 0 if that was never the case.
	Rolled int `json:"rolled,omitempty"`
	// Why is the reason against the import, with the cure.
	Why string `json:"why,omitempty"`
	// Run is the run that the record belongs to.
	Run string `json:"-"`
}

// history is the content of the journal: runs oldest first, and the newest record of each key.
type history struct {
	runs  []Run
	items map[string]Item
	order []string // keys by first appearance
	// takenOver has, for each key that was taken over, the newest record that says so. Later records may differ.
	takenOver map[string]Item
	// otherRuns are the runs into other targets, oldest first. elsewhere is the newest record of each key that such a
	// run has taken over, or has begun to take over. The fields above are of runs into our target only.
	otherRuns []Run
	elsewhere map[string]otherTakeover
}

// runPrefix distinguishes a migration's runs from other records of the journal.
const runPrefix = "migration-"

// read returns the runs from one source, or from all sources if source is "".
func (e *Engine) read(ctx context.Context, source string) (*history, error) {
	h := &history{items: make(map[string]Item), takenOver: make(map[string]Item),
		elsewhere: make(map[string]otherTakeover)}
	names, err := e.cfg.Store.Runs(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, runPrefix) {
			continue
		}
		records, err := e.cfg.Store.Records(ctx, name)
		if err != nil {
			return nil, err
		}
		run, items, err := decodeRun(name, records)
		if err != nil {
			return nil, err
		}
		if source != "" && run.Source != source {
			continue
		}
		if !sameTarget(run.Target, e.cfg.Target.URI()) {
			h.otherRuns = append(h.otherRuns, run)
			for _, it := range items {
				if it.State == Done || it.State == Importing || len(it.TargetVersions) > 0 {
					h.elsewhere[it.Key] = otherTakeover{it, run.Target, run.Started}
				}
			}
			continue
		}
		h.runs = append(h.runs, run)
		for _, it := range items {
			if _, seen := h.items[it.Key]; !seen {
				h.order = append(h.order, it.Key)
			}
			h.items[it.Key] = it
			if it.takenOver() {
				h.takenOver[it.Key] = it
			}
		}
	}
	return h, nil
}

// migrated reports whether the key is at the target, or was there and was deleted since.
func (it *Item) migrated() bool { return it.State == Done || it.State == Deleted }

// takenOver reports whether the key was made at the target. It may have been deleted there since.
func (it *Item) takenOver() bool {
	return it.migrated() && len(it.TargetVersions) > 0
}

// hides reports whether the record is about a second key that the source made under the name of a key that was taken
// over, and hides was, the record of the first key. Older versions of claviger recorded the second key as a conflict,
// and later as gone.
func (it *Item) hides(was Item) bool {
	return (it.State == Conflict || it.State == Gone) && !was.Source.Created.Equal(it.Source.Created)
}

func decodeRun(name string, records []metastore.Record) (run Run, items []Item, err error) {
	for _, r := range records {
		if r.Item == "" {
			err = json.Unmarshal(r.Data, &run)
		} else {
			it := Item{Run: name}
			err = json.Unmarshal(r.Data, &it)
			items = append(items, it)
		}
		if err != nil {
			return run, nil, claviger.Errorf("migrate.Journal", claviger.Internal, r.Item,
				"the journal's record of run %s is damaged: %w; restore the metastore from a backup", name, err)
		}
	}
	return run, items, nil
}

// last returns the newest run, or nil.
func (h *history) last() *Run {
	if len(h.runs) == 0 {
		return nil
	}
	return &h.runs[len(h.runs)-1]
}

// open returns the run that a new process continues, or nil if a new run must begin.
func (h *history) open() *Run {
	if r := h.last(); r != nil && (r.State == Running || r.State == Incomplete) {
		return r
	}
	return nil
}

func (e *Engine) putRun(ctx context.Context, r Run) error {
	return e.put(ctx, r.Name, "", r)
}

func (e *Engine) putItem(ctx context.Context, run string, it Item) error {
	return e.put(ctx, run, it.Key, it)
}

func (e *Engine) put(ctx context.Context, run, item string, record any) error {
	data, err := json.Marshal(record)
	if err != nil {
		return claviger.E("migrate.Journal", claviger.Internal, item, err)
	}
	return e.cfg.Store.Put(ctx, run, item, data)
}

// newRun makes a run whose name is its start time. Two runs cannot start at the same time, because the lock is held.
func (e *Engine) newRun(h *history) Run {
	started := e.now()
	name := runPrefix + started.Format("20060102T150405.000Z")
	runs := slices.Concat(h.runs, h.otherRuns)
	if slices.ContainsFunc(runs, func(r Run) bool { return r.Name >= name }) { // the clock was set back
		name = fmt.Sprintf("%s-%d", name, len(runs)+1)
	}
	return Run{Name: name, State: Running, Source: e.cfg.Source.URI(), Target: e.cfg.Target.URI(),
		Versions: e.cfg.Versions, Host: e.cfg.Host, Started: started}
}
