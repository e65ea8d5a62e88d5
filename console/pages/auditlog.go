package pages

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger/audit"
)

// auditBody is the body of the page Audit.
type auditBody struct {
	User, Key, Outcome, Operation string
	Outcomes                      []audit.Status
	Operations                    []string
	Columns                       []column
	Rows                          []auditRow
	Part                          part
	Chain                         Group
}

type auditRow struct {
	At, First            time.Time
	Count                int
	Outcome, Class       string
	Operation            string
	User, Real, Address  string
	Key, Version, Remark string
	EDEKs                int
	Request              string
}

// auditlog shows the last events. A user without details sees the user's own events alone.
func (s *session) auditlog() {
	q := s.r.URL.Query()
	b := auditBody{User: q.Get("user"), Key: q.Get("key"), Outcome: q.Get("outcome"), Operation: q.Get("operation"),
		Outcomes: []audit.Status{audit.OK, audit.Unauthorized, audit.Unauthenticated, audit.Error}}
	for _, op := range audit.Operations {
		b.Operations = append(b.Operations, string(op))
	}
	var list []auditRow
	for _, e := range s.Events.Events() {
		if !s.details && e.Caller.Name != s.user.Name {
			continue
		}
		if r := showEvent(&e); b.shows(&r) {
			list = append(list, r)
		}
	}
	o := orderOf(q, "time", "user", "operation", "key", "outcome")
	for _, c := range [][2]string{{"time", "Time"}, {"outcome", "Outcome"}, {"operation", "Operation"},
		{"user", "User"}, {"key", "Key"}} {
		b.Columns = append(b.Columns, o.column("/audit", q, c[0], c[1]))
	}
	sorted(list, o, func(x, y auditRow) int {
		switch o.by {
		case "user":
			return strings.Compare(x.User, y.User)
		case "operation":
			return strings.Compare(x.Operation, y.Operation)
		case "key":
			return strings.Compare(x.Key, y.Key)
		case "outcome":
			return strings.Compare(x.Outcome, y.Outcome)
		}
		return y.At.Compare(x.At) // the newest first
	})
	b.Part = partOf("/audit", q, len(list))
	b.Rows = rows(list, b.Part)
	if s.details {
		b.Chain = s.chainFacts()
	}
	s.show(http.StatusOK, "audit", "Audit", live(), b)
}

// shows reports whether the filters let a row through.
func (b *auditBody) shows(r *auditRow) bool {
	return (contains(r.User, b.User) || contains(r.Real, b.User)) &&
		(contains(r.Key, b.Key) || contains(r.Version, b.Key)) &&
		(b.Outcome == "" || r.Outcome == b.Outcome) && (b.Operation == "" || r.Operation == b.Operation)
}

func showEvent(e *audit.RecentEvent) auditRow {
	r := auditRow{At: e.Time, First: e.First, Count: e.Count, Outcome: string(e.Status), Class: "good",
		Operation: string(e.Op), User: e.Caller.Name, Address: e.Caller.RemoteAddr, Key: e.Key, Version: e.Version,
		Remark: e.Message, EDEKs: e.EDEKs, Request: e.Caller.RequestID}
	if e.KeyRight {
		r.Operation += " (right on a key)"
	}
	if e.Caller.Real != nil {
		r.Real = e.Caller.Real.Name
	}
	if e.Status != audit.OK {
		r.Class = "warn"
	}
	return r
}

// chainFacts describes the chain of records.
func (s *session) chainFacts() Group {
	g := Group{Title: "The chain of records"}
	c, ok := s.Chain()
	if !ok {
		g.Facts = []Fact{{Name: "Chain", Value: "none: set claviger.audit.json.file (docs/audit.md)"}}
		return g
	}
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	g.Facts = []Fact{
		{Name: "Node", Value: c.Node},
		{Name: "Last record", Value: "number " + number(c.Seq) + ", hash " + c.Hash},
		{Name: "Head stored", Value: "up to record " + number(c.Stored), Bad: c.Err != nil},
		{Name: "Waiting to be written", Value: strconv.Itoa(c.Waiting), Bad: c.Err != nil},
		{Name: "Lost since the start", Value: number(c.Lost), Bad: c.Lost > 0},
		{Name: "Streams", Value: strings.Join(c.Streams, ", "), Bad: c.StreamErr != nil},
	}
	if len(c.Streams) == 0 {
		g.Facts = slices.Delete(g.Facts, len(g.Facts)-1, len(g.Facts))
	}
	for _, err := range []error{c.Err, c.StreamErr} {
		if err != nil {
			g.Facts = append(g.Facts, Fact{Name: "Error", Value: err.Error(), Bad: true})
		}
	}
	return g
}
