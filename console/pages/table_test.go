package pages

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"claviger/console"
)

// TestColumns: the head of a column links to the table sorted by that column, then to the reverse order. The link keeps
// the filter.
func TestColumns(t *testing.T) {
	for _, c := range []struct{ query, sort, href string }{
		{"", "ascending", "/keys?sort=-name"},
		{"sort=-name&filter=a b", "descending", "/keys?filter=a+b&sort=name"},
		{"sort=created&from=51&user.name=eve&delegation=t&result=x", "", "/keys?sort=name"},
		{"sort=bogus", "ascending", "/keys?sort=-name"},
	} {
		q, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		got := orderOf(q, "name", "created").column("/keys", q, "name", "Key")
		if got.Sort != c.sort || got.Href != c.href {
			t.Errorf("%q: %+v, want %s to %s", c.query, got, c.sort, c.href)
		}
	}
}

// TestParts: a long table is shown in parts. A wrong parameter from shows the first part.
func TestParts(t *testing.T) {
	list := make([]int, 120)
	for i := range list {
		list[i] = i + 1
	}
	for _, c := range []struct {
		from           string
		all            int
		first, last    int
		earlier, later string
	}{
		{"", 120, 1, 50, "", "/a?from=51"}, {"51", 120, 51, 100, "/a?from=1", "/a?from=101"},
		{"101", 120, 101, 120, "/a?from=51", ""}, {"121", 120, 1, 50, "", "/a?from=51"},
		{"-3", 120, 1, 50, "", "/a?from=51"},
		{"x", 3, 1, 3, "", ""}, {"", 0, 0, 0, "", ""},
	} {
		p := partOf("/a", url.Values{"from": {c.from}}, c.all)
		shown := rows(list[:c.all], p)
		if p.Earlier != c.earlier || p.Later != c.later || len(shown) > 0 && (shown[0] != c.first ||
			shown[len(shown)-1] != c.last) || (len(shown) == 0) != (c.last == 0) {
			t.Errorf("from %q of %d: %+v, %v", c.from, c.all, p, shown)
		}
	}
}

// TestTexts: durations, rates, times and names have the form that people read.
func TestTexts(t *testing.T) {
	for got, want := range map[string]string{
		span(0): "now", span(time.Second): "1 second", span(119 * time.Minute): "1 hour",
		span(50 * time.Hour):       "2 days",
		span(800 * 24 * time.Hour): "2 years", span(-time.Hour): "in 1 hour", took(0): "-",
		took(120 * time.Microsecond): "0.12 ms", took(3400 * time.Microsecond): "3.4 ms",
		took(42 * time.Millisecond):   "42 ms",
		took(2300 * time.Millisecond): "2.3 s", rate(0): "0", rate(10): "10", rate(0.25): "0.2", rate(116.24): "116.2",
		stamp(time.Time{}): "-", stamp(time.Unix(0, 0)): "1970-01-01 00:00:00 UTC", shortName("köln"): "köln",
		shortName(strings.Repeat("ö", 61)): strings.Repeat("ö", 60) + "…",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestCharts: a chart is scaled to its highest value, and says its figures in words.
func TestCharts(t *testing.T) {
	list := []console.Interval{
		{Begin: time.Unix(0, 0), Length: 10 * time.Second},
		{Begin: time.Unix(10, 0), Length: 10 * time.Second, Requests: 50, Errors: 1, P50: time.Millisecond,
			P99: 4 * time.Millisecond},
		{Begin: time.Unix(20, 0), Length: 10 * time.Second, Requests: 100, P50: time.Millisecond,
			P99: 2 * time.Millisecond},
	}
	all := charts(list)
	if got := string(all[0].Lines[0].Points); got != `points="0.0,120.0 300.0,65.0 600.0,10.0"` {
		t.Errorf("requests: %s", got)
	}
	if got := string(all[1].Lines[1].Points); got != `points="0.0,120.0 300.0,10.0 600.0,65.0"` {
		t.Errorf("p99: %s", got)
	}
	if all[0].Top != "10/s" || all[1].Top != "4.0 ms" || !all[0].To.Equal(time.Unix(30, 0)) ||
		!strings.Contains(all[0].Summary, "150 requests in 15 minutes, at most 10 a second; 1 error ") {
		t.Errorf("%+v", all)
	}
	for _, c := range charts(list[:1]) { // no request: lines at the bottom
		if got := string(c.Lines[0].Points); got != `points="0.0,120.0"` {
			t.Errorf("%s: %s", c.Title, got)
		}
	}
}

// TestResults: the text about a change is shown once, and only to the user who made the change.
func TestResults(t *testing.T) {
	var r results
	id := r.put("done", "alice")
	if text, ok := r.take(id, "eve"); ok {
		t.Errorf("eve reads %q", text)
	}
	if text, ok := r.take(id, "alice"); !ok || text != "done" {
		t.Errorf("alice reads %q", text)
	}
	if text, ok := r.take(id, "alice"); ok {
		t.Errorf("alice reads %q twice", text)
	}
	for range 3 * maxResults {
		r.put("x", "alice")
	}
	if len(r.all) > maxResults {
		t.Errorf("%d texts are stored", len(r.all))
	}
}
