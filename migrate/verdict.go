package migrate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/metastore"
)

// Outcome is the result of a Verdict. Its zero value is none of them, so no verdict is granted by default.
type Outcome string

// The outcomes.
const (
	Granted   Outcome = "granted"    // no EDEK of the counted images needs the source
	Needed    Outcome = "needed"     // at least one EDEK needs the source
	NoVerdict Outcome = "no verdict" // the images do not show whether an EDEK needs it
)

// Verdict says, by a census of fsimages, whether EDEKs of HDFS need a source. Package migrate/verdict makes it.
type Verdict struct {
	Format string `json:"format"` // VerdictFormat or VersionVerdictFormat
	// Name is the name of the journal's record; "" if the verdict was not recorded.
	Name    string    `json:"name"`
	At      time.Time `json:"at"`
	Outcome Outcome   `json:"outcome"`
	Source  string    `json:"source"` // URI
	Run     string    `json:"run"`
	// Images are the counted images, one of each namespace.
	Images []VerdictImage `json:"images"`
	// Gone are the ids of namespaces of which an earlier verdict has counted an image, and which are not a part of this
	// HDFS, by the operator's word.
	Gone []uint32 `json:"gone,omitempty"`
	// Problems are the reasons why there is no verdict, each with its cure.
	Problems []string `json:"problems"`
	// Accepted are faults of images that the operator has accepted. Without the flag, each one is a problem.
	Accepted []string `json:"accepted,omitempty"`
	// Lost are EDEKs of versions that were destroyed here: nobody can read their files. They need no source.
	Lost     []string         `json:"lost,omitempty"`
	Versions []VersionVerdict `json:"versions"`
	// ToDo is what makes the source retirable, in order.
	ToDo []Step `json:"toDo"`
	// LastUse is the last request for any version of a source; nil: none is known.
	LastUse *time.Time `json:"lastUse,omitempty"`
	// UnusedKeys are keys here that neither a zone nor an EDEK of the images has.
	UnusedKeys []string `json:"unusedKeys"`
	// NotReached names places of EDEKs that are not in images.
	NotReached []string `json:"notReached"`
	// Journal is the digest of the journal's keys and versions.
	Journal string `json:"journal"`
	User    string `json:"user,omitempty"` // of the operating system
	Host    string `json:"host,omitempty"`
}

// Step is one thing to do.
type Step struct {
	Do      string `json:"do"`
	Command string `json:"command,omitempty"` // "" if no single command does it
}

// VerdictImage is an image of a verdict.
type VerdictImage struct {
	Image       string `json:"image"`  // file or URL
	Digest      string `json:"sha256"` // hexadecimal
	Bytes       int64  `json:"bytes"`
	Nameservice string `json:"nameservice,omitempty"` // "" if it is not known
	Namespace   uint32 `json:"namespaceId"`
	Transaction uint64 `json:"txid"`
	// AsOf is a time at which the image's state was not older: changes until then are in the image. nil: not known.
	AsOf *time.Time `json:"asOf,omitempty"`
	// RolledBack: the operator says that HDFS was rolled back, because an earlier verdict has counted an image of the
	// namespace with a newer transaction.
	RolledBack bool `json:"rolledBack,omitempty"`
}

// VersionVerdict says what needs one version of a source.
type VersionVerdict struct {
	// Version is "" for a key of which the source showed no version, no client requested one, and no EDEK names one.
	Version string `json:"version"`
	Key     string `json:"key"`
	// ReplacedBy is the version here that was made for it; "" if none was.
	ReplacedBy string `json:"replacedBy,omitempty"`
	// EDEKs is Live plus SnapshotOnly. InTrash and OpenForWrite are part of Live.
	EDEKs        uint64     `json:"edeks"`
	Live         uint64     `json:"live"`
	InTrash      uint64     `json:"inTrash"`
	OpenForWrite uint64     `json:"openForWrite"`
	SnapshotOnly uint64     `json:"snapshotOnly"`
	Snapshots    []string   `json:"snapshots,omitempty"` // paths
	Paths        []string   `json:"paths,omitempty"`     // of the oldest files
	LastUse      *time.Time `json:"lastUse,omitempty"`
	Retirable    bool       `json:"retirable"`
	Why          string     `json:"why"`
}

// The formats of verdicts on a source, and on one version of a key here.
const (
	VerdictFormat        = "claviger migrate verdict 1"
	VersionVerdictFormat = "claviger key version verdict 1"
)

// verdictsRun is the name under which the journal keeps verdicts. It is not a run.
const verdictsRun = "verdicts"

// versionVerdictsRun is the same for verdicts on single versions here, which Finish does not use.
const versionVerdictsRun = "version-verdicts"

// RecordVerdict writes a verdict into the journal, and gives it a name. The record does not have the paths of files and
// snapshots that need a version. Problems, accepted faults and steps keep the paths that they name.
func (e *Engine) RecordVerdict(ctx context.Context, v *Verdict) error {
	run := verdictsRun
	if v.Format != VerdictFormat {
		run = versionVerdictsRun
	}
	records, err := e.cfg.Store.Records(ctx, run)
	if err != nil {
		return err
	}
	v.Host = e.cfg.Host
	v.Name = "verdict-" + v.At.Format("20060102T150405.000Z")
	clockSetBack := slices.ContainsFunc(records, func(r metastore.Record) bool { return r.Item >= v.Name })
	if clockSetBack {
		v.Name = fmt.Sprintf("%s-%d", v.Name, len(records)+1)
	}
	return e.put(ctx, run, v.Name, v.withoutPaths())
}

// withoutPaths returns a copy without the paths of files and snapshots that need a version.
func (v *Verdict) withoutPaths() Verdict {
	c := *v
	c.Versions = slices.Clone(v.Versions)
	for i := range c.Versions {
		c.Versions[i].Snapshots, c.Versions[i].Paths = nil, nil
	}
	return c
}

// LastVerdict returns the verdict that was recorded last; nil if there is none.
func (e *Engine) LastVerdict(ctx context.Context) (*Verdict, error) {
	records, err := e.cfg.Store.Records(ctx, verdictsRun)
	if err != nil || len(records) == 0 {
		return nil, err
	}
	last := records[len(records)-1]
	v := new(Verdict)
	if err := json.Unmarshal(last.Data, v); err != nil {
		return nil, claviger.Errorf("migrate.Journal", claviger.Internal, last.Item,
			"the journal's record of a verdict is damaged: %w; run claviger migrate verdict again", err)
	}
	return v, nil
}

// digest returns a digest of the keys and versions that the journal has, and of the operator's decisions about versions
// that are one key here and another one at a source. A verdict on others does not count.
func (e *Engine) digest(h *history) string {
	type entry struct {
		Key    string
		State  State
		Run    string
		Counts [3]int
		Source []string
		Target []string
	}
	var entries []entry
	for _, key := range slices.Sorted(slices.Values(h.order)) {
		it := h.items[key]
		entries = append(entries, entry{key, it.State, it.Run, [3]int{it.Source.Versions, it.First, it.Count},
			it.SourceVersions, it.TargetVersions})
	}
	var all any = entries
	if len(e.cfg.Ours)+len(e.cfg.Theirs) > 0 {
		all = [3]any{entries, slices.Sorted(maps.Keys(e.cfg.Ours)), slices.Sorted(maps.Keys(e.cfg.Theirs))}
	}
	text, err := json.Marshal(all)
	if err != nil {
		panic(err) // the type has no value that JSON cannot have
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// EDEKProof says by what Finish knows that no EDEK needs the source.
type EDEKProof struct {
	// By is "operator" for the statement EDEKsDone, or "verdict".
	By string `json:"by"`
	// Verdict is the name of the verdict, and Images are its images.
	Verdict string         `json:"verdict,omitempty"`
	Images  []VerdictImage `json:"images,omitempty"`
	// Accepted is that of the verdict.
	Accepted []string `json:"accepted,omitempty"`
}

// The values of EDEKProof.By.
const (
	ByOperator = "operator"
	ByVerdict  = "verdict"
)

// again is the cure of a verdict that does not count.
const again = "run claviger migrate verdict again, with new images"

// refuseEDEKs adds a reason if nothing shows that all EDEKs are re-encrypted. Otherwise it sets f.EDEKs.
func (e *Engine) refuseEDEKs(ctx context.Context, f *Ending, h *history, o FinishOptions) error {
	switch {
	case o.Verdict:
		return e.refuseVerdict(ctx, f, h)
	case o.EDEKsDone:
		if f.EDEKs = h.last().EDEKs; f.EDEKs == nil {
			f.EDEKs = &EDEKProof{By: ByOperator}
		} else if f.EDEKs.By == ByVerdict {
			f.NotReached = NotReached
		}
	default:
		f.refuse("it is not shown that all EDEKs are re-encrypted: re-encrypt every zone (hdfs crypto " +
			"-reencryptZone -start -path ZONE), delete snapshots from before it, run claviger migrate verdict, and " +
			"call finish with --verdict. Or confirm it yourself by --edeks-done. Neither covers ORC's footers, " +
			"Ozone, or copies outside of HDFS")
	}
	return nil
}

// refuseVerdict adds a reason if the last verdict does not count.
func (e *Engine) refuseVerdict(ctx context.Context, f *Ending, h *history) error {
	v, err := e.LastVerdict(ctx)
	if err != nil {
		return err
	}
	if v == nil {
		f.refuse("there is no verdict: run claviger migrate verdict with an image of each namespace")
		return nil
	}
	refused := len(f.Refusals)
	if err := v.Consistent(); err != nil {
		f.refuse("%s: %v; %s", v.Name, err, again)
	}
	seen, err := e.seenImages(ctx)
	if err != nil {
		return err
	}
	for i := range v.Images {
		m := &v.Images[i]
		if why := seen[m.Namespace].Older(m.Image, m.Transaction); why != "" {
			f.refuse("%s: %s: give that image, or a newer one", v.Name, why)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(seen)) {
		if !slices.ContainsFunc(v.Images, func(m VerdictImage) bool { return m.Namespace == id }) {
			f.refuse("%s: %s: %s of each namespace", v.Name, seen[id].Missing(id), again)
		}
	}
	switch v.Outcome {
	case Granted:
	case Needed:
		var steps []string
		for _, s := range v.ToDo {
			steps = append(steps, s.Do)
		}
		f.refuse("by %s, EDEKs need the source: %s", v.Name, strings.Join(steps, "; "))
	default:
		f.refuse("%s has no result: %s; then %s", v.Name, strings.Join(v.Problems, "; "), again)
	}
	clocks, err := e.cfg.Store.Clocks(ctx)
	if err != nil {
		return err
	}
	if v.At.After(clocks.Latest().Add(metastore.ClockMargin)) {
		f.refuse("%s was made at %s, which is in the future, so a clock was ahead then: %s", v.Name,
			v.At.Format(time.RFC3339), again)
	}
	if v.Journal != e.digest(h) {
		f.refuse("keys or versions in the journal have changed since %s: %s", v.Name, again)
	}
	if err := e.refuseUsedSince(ctx, f, v); err != nil {
		return err
	}
	if len(f.Refusals) == refused {
		f.EDEKs = &EDEKProof{By: ByVerdict, Verdict: v.Name, Images: v.Images, Accepted: v.Accepted}
		f.NotReached = NotReached
	}
	return nil
}

// refuseUsedSince adds a reason if a version of a source was requested after the state of an image of the verdict.
func (e *Engine) refuseUsedSince(ctx context.Context, f *Ending, v *Verdict) error {
	uses, err := e.cfg.Store.Uses(ctx)
	if err != nil || len(uses) == 0 {
		return err
	}
	last := lastUse(uses)
	for _, image := range v.Images {
		if image.AsOf == nil || last.Last.After(*image.AsOf) {
			f.refuse("%s was requested at %s, after the state that the image %s of %s shows: %s",
				claviger.Printable(last.Version), last.Last.UTC().Format(time.RFC3339), claviger.Printable(image.Image),
				v.Name, again)
			return nil
		}
	}
	return nil
}
