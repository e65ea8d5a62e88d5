package pages

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/migrate"
)

// Migration is what the page Migration shows.
type Migration struct {
	Status *migrate.StatusReport
	// Obstacles are the reasons against the end of the migration, see migrate.Engine.Obstacles.
	Obstacles []string
	Verdict   *migrate.Verdict // the last one; nil: none
	Sources   []Source
}

// Source is the state of a source on this node.
type Source struct {
	URI   string
	State string // in words
	Bad   bool
	Last  time.Time // of the last call
}

// migrationBody is the body of the page.
type migrationBody struct {
	Problem   string
	Filter    string
	Needed    string // "": all versions; else only versions that the source was asked for
	Runs      []runView
	Counts    []Fact
	Sources   []Source
	MayGo     bool
	Obstacles []string
	Verdict   *migrate.Verdict
	LastUse   time.Time
	Columns   []column
	Rows      []mappingRow
	Part      part
}

type runView struct {
	migrate.Run
	EndedAt time.Time
}

// mappingRow is one version of a source.
type mappingRow struct {
	Key, Source, Target    string
	State, Why             string
	Class                  string
	Used                   time.Time
	Decrypted, Reencrypted int64
	Unserved               int64
}

// migrationKept is how long a reading of the journal is shown again.
const migrationKept = 5 * time.Second

func (s *session) migration() {
	b := migrationBody{}
	status := http.StatusOK
	switch {
	case !s.Policy().May(authz.GetKeys, s.user, s.Groups):
		status = http.StatusForbidden
		b.Problem = "You may not list keys (hadoop.kms.acl.GET_KEYS), and this page names keys."
	case !s.details:
		status = http.StatusForbidden
		b.Problem = "This page names the hosts of sources. It is for administrators (hadoop.kms.http.administrators, " +
			"with hadoop.security.authorization) and for the addresses of claviger.console.details."
	default:
		m, err := s.journal.get(s.r.Context(), s.Migration)
		if err != nil {
			status = http.StatusServiceUnavailable
			s.Log.Error("the console cannot show the migration", "user", s.user.Name, "err", err)
			b.Problem = "The journal cannot be read now. The server's log says why."
		} else if m == nil {
			b.Problem = "This KMS has no metastore, and so no journal of a migration."
		} else {
			s.fillMigration(&b, m)
		}
	}
	s.show(status, "migration", "Migration", live(), b)
}

// fillMigration fills in the body.
func (s *session) fillMigration(b *migrationBody, m *Migration) {
	q := s.r.URL.Query()
	b.Filter, b.Needed = q.Get("filter"), q.Get("needed")
	b.Sources, b.Obstacles, b.Verdict = m.Sources, m.Obstacles, m.Verdict
	b.MayGo = len(m.Obstacles) == 0 && len(m.Status.Runs) > 0
	if m.Status.LastUse != nil {
		b.LastUse = *m.Status.LastUse
	}
	for _, run := range slices.Backward(m.Status.Runs) {
		v := runView{Run: run}
		if run.Ended != nil {
			v.EndedAt = *run.Ended
		}
		b.Runs = append(b.Runs, v)
	}
	c := m.Status.Counts
	for _, f := range []struct {
		name string
		n    int
		bad  bool
	}{{"Keys", c.Total, false}, {"Here", c.Done, false}, {"Still to take over", c.Planned, false},
		{"Blocked", c.Blocked, c.Blocked > 0}, {"Given up here", c.Lost, c.Lost > 0},
		{"Deleted here since", c.Deleted, false}, {"No longer at the source", c.Gone, false}} {
		if f.n > 0 || f.name == "Keys" {
			b.Counts = append(b.Counts, Fact{f.name, count(f.n, "key"), f.bad})
		}
	}
	s.fillVersions(b, m.Status)
}

// fillVersions fills in the table of the source's versions.
func (s *session) fillVersions(b *migrationBody, report *migrate.StatusReport) {
	q := s.r.URL.Query()
	o := orderOf(q, "used", "key")
	b.Columns = []column{o.column("/migration", q, "key", "Key"), o.column("/migration", q, "used", "Last use")}
	var list []mappingRow
	for _, key := range report.Keys {
		for _, row := range mappingRows(key) {
			if contains(row.Key, b.Filter) && (b.Needed == "" || !row.Used.IsZero()) {
				list = append(list, row)
			}
		}
	}
	sorted(list, o, func(x, y mappingRow) int {
		if o.by == "key" {
			return strings.Compare(x.Key, y.Key)
		}
		return cmp.Or(y.Used.Compare(x.Used), strings.Compare(x.Key, y.Key)) // the last use first
	})
	b.Part = partOf("/migration", q, len(list))
	b.Rows = rows(list, b.Part)
}

// mappingRows returns a row for each version of a key; one row if no version is known.
func mappingRows(key migrate.KeyStatus) (list []mappingRow) {
	class := "good"
	if key.State != migrate.Done && key.State != migrate.Deleted && key.State != migrate.Gone {
		class = "warn"
	}
	row := mappingRow{Key: key.Key, State: string(key.State), Why: key.Why, Class: class}
	for _, v := range key.Versions {
		r := row
		r.Source, r.Target, r.Decrypted, r.Reencrypted, r.Unserved = v.Source, v.Target, v.Decrypted, v.Reencrypted,
			v.Unserved
		if v.LastUse != nil {
			r.Used = *v.LastUse
		}
		if r.Unserved > 0 {
			r.Class = "warn"
		}
		list = append(list, r)
	}
	if len(list) == 0 {
		list = append(list, row)
	}
	return list
}

// journal keeps the last reading of the journal for all readers of the page.
type journal struct {
	slot chan struct{} // holds one value while nobody reads

	at    time.Time
	value *Migration
	err   error
}

func newJournal() *journal {
	j := &journal{slot: make(chan struct{}, 1)}
	j.slot <- struct{}{}
	return j
}

// get returns the reading, which is read again after migrationKept.
func (j *journal) get(ctx context.Context, read func(context.Context) (*Migration, error)) (*Migration, error) {
	select {
	case <-j.slot:
	case <-ctx.Done():
		return nil, claviger.E("pages.journal", claviger.Unavailable, "", ctx.Err())
	}
	defer func() { j.slot <- struct{}{} }()
	if j.at.IsZero() || time.Since(j.at) >= migrationKept {
		j.value, j.err = read(ctx)
		if j.at = time.Now(); ctx.Err() != nil {
			j.at = time.Time{} // this reader gave up, and the others did not
		}
	}
	return j.value, j.err
}
