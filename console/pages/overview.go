package pages

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"claviger/console"
)

// overview is the body of the page.
type overview struct {
	Ready    bool
	Purposes []purpose
	Failed   int // checks
	Checks   []check
	Charts   []chart
	Minutes  []minute // newest first
	Groups   []Group
}

type purpose struct {
	Name string
	Can  bool
}

type check struct {
	console.Result
	Purposes string
	At       time.Time
	State    string // in words
	Class    string
	Cure     *cure
}

// minute is a row of the table beside the charts.
type minute struct {
	Begin                    time.Time
	Rate, Errors, Half, Most string
}

func (s *session) overview() {
	report := s.Report(s.r.Context(), s.details)
	o := overview{Ready: report.Ready, Groups: s.Facts(s.r.Context(), s.details)}
	for _, p := range console.Purposes {
		o.Purposes = append(o.Purposes, purpose{string(p), report.Can[p]})
	}
	for _, r := range report.Checks {
		c := showCheck(r)
		if !c.OK {
			o.Failed++
		}
		o.Checks = append(o.Checks, c)
	}
	// What fails comes first, and what takes the node out of service before that.
	slices.SortStableFunc(o.Checks, func(a, b check) int {
		if d := severity(b) - severity(a); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	o.Charts = charts(s.Traffic.Intervals(10 * time.Second))
	for _, i := range slices.Backward(s.Traffic.Intervals(time.Minute)) {
		o.Minutes = append(o.Minutes, minute{i.Begin, rate(i.PerSecond()), count(i.Errors, "error"), took(i.P50),
			took(i.P99)})
	}
	s.show(http.StatusOK, "overview", "Overview", live(), o)
}

func showCheck(r console.Result) check {
	c := check{Result: r, State: "passed", Class: "good", Purposes: "all requests"}
	if len(r.For) > 0 {
		var names []string
		for _, p := range r.For {
			names = append(names, string(p))
		}
		c.Purposes = strings.Join(names, ", ")
	}
	if r.Informational {
		c.Purposes = "information"
	}
	c.At, _ = time.Parse(time.RFC3339Nano, r.Observed) // "" is the zero time: the first probe still runs
	if !r.OK {
		c.State, c.Class, c.Cure = "failed", "bad", cureOf(r.Name)
		if r.Informational {
			c.State, c.Class = "warning", "warn"
		}
	}
	return c
}

func severity(c check) int {
	switch {
	case c.OK:
		return 0
	case c.Informational:
		return 1
	}
	return 2
}
