package migrate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"claviger"
)

// Consistent returns an error if the outcome is Granted, and the verdict's own counts, problems or steps contradict
// that. Such a verdict was edited.
func (v *Verdict) Consistent() error {
	if v.Outcome != Granted {
		return nil
	}
	var why string
	switch {
	case len(v.Images) == 0:
		why = "it has no image"
	case len(v.Problems) > 0:
		why = "it has the problem: " + v.Problems[0]
	case len(v.ToDo) > 0:
		why = "it says what is to be done: " + v.ToDo[0].Do
	}
	for i := range v.Versions {
		of := &v.Versions[i]
		if n := max(of.EDEKs, of.Live, of.SnapshotOnly, of.InTrash, of.OpenForWrite); n > 0 {
			why = fmt.Sprintf("version %s is needed by %d EDEKs", claviger.Printable(of.Version), n)
		} else if !of.Retirable {
			why = fmt.Sprintf("version %s is not retirable", claviger.Printable(of.Version))
		}
	}
	if why == "" {
		return nil
	}
	return fmt.Errorf("the verdict says that no EDEK needs what it judged, and contradicts itself: %s", why)
}

// SeenImage is the newest image of a namespace that a verdict has counted.
type SeenImage struct {
	Transaction    uint64
	AsOf           time.Time // see VerdictImage
	Image, Verdict string    // their names
}

// seenImages returns the newest images, by the id of the namespace, of all verdicts with a result in the journal. A
// verdict on an older image would say less than what is known, and so would one without a namespace that was counted
// before. After a rollback of HDFS, only images that were counted since matter.
func (e *Engine) seenImages(ctx context.Context) (map[uint32]SeenImage, error) {
	var all []*Verdict
	for _, run := range []string{verdictsRun, versionVerdictsRun} {
		records, err := e.cfg.Store.Records(ctx, run)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			v := new(Verdict)
			if err := json.Unmarshal(r.Data, v); err != nil {
				return nil, damagedVerdict(r.Item, err)
			}
			if v.Outcome != NoVerdict { // else the image may be of another cluster
				all = append(all, v)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *Verdict) int { return a.At.Compare(b.At) })
	seen := map[uint32]SeenImage{}
	for _, v := range all {
		for _, id := range v.Gone {
			delete(seen, id)
		}
		for i := range v.Images {
			m := &v.Images[i]
			old, ok := seen[m.Namespace]
			if ok && m.Transaction <= old.Transaction && !m.RolledBack {
				continue
			}
			s := SeenImage{Transaction: m.Transaction, Image: m.Image, Verdict: v.Name}
			if m.AsOf != nil {
				s.AsOf = *m.AsOf
			}
			seen[m.Namespace] = s
		}
	}
	return seen, nil
}

// Older says that an image of a namespace is older than this one; "" if it is not.
func (s SeenImage) Older(image string, transaction uint64) string {
	if transaction >= s.Transaction {
		return ""
	}
	return fmt.Sprintf("%s shows transaction %d of its namespace, and %s has counted a newer image (%s, transaction "+
		"%d)", claviger.Printable(image), transaction, s.Verdict, claviger.Printable(s.Image), s.Transaction)
}

// Missing says that a verdict has no image of a namespace that an earlier one has counted.
func (s SeenImage) Missing(id uint32) string {
	return fmt.Sprintf("%s has counted an image of namespace %d (%s), and no image of that namespace is given now",
		s.Verdict, id, claviger.Printable(s.Image))
}

// damagedVerdict is the error for a record of a verdict that is no JSON.
func damagedVerdict(name string, err error) error {
	return claviger.Errorf("migrate.Journal", claviger.Internal, name,
		"the journal's record of a verdict is damaged: %w; restore the metastore from a backup", err)
}
