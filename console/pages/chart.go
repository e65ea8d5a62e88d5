package pages

import (
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"

	"claviger/console"
)

// chart is a chart of the last 15 minutes, as the server's own SVG. It has no style attribute, which the
// Content-Security-Policy forbids: console.css colours it by classes.
type chart struct {
	ID, Title, Summary string
	Lines              []line
	Top                string // of the vertical axis
	From, To           time.Time
}

type line struct {
	Name, Class string
	Points      template.HTMLAttr // of a polyline, made of numbers alone
}

// The area of a chart, in the units of its viewBox, which the template knows too.
const (
	chartWidth, chartHeight = 600, 110
	chartTop                = 10
)

// charts makes the charts of the traffic.
func charts(list []console.Interval) []chart {
	var requests, errs, half, most []float64
	var sum, failed int
	for _, i := range list {
		requests = append(requests, i.PerSecond())
		errs = append(errs, float64(i.Errors)/i.Length.Seconds())
		half = append(half, i.P50.Seconds())
		most = append(most, i.P99.Seconds())
		sum, failed = sum+i.Requests, failed+i.Errors
	}
	from, to := list[0].Begin, list[len(list)-1].Begin.Add(list[0].Length)
	top := highest(requests, errs)
	slowest := highest(half, most)
	return []chart{
		{ID: "requests", Title: "Requests a second", From: from, To: to, Top: rate(top) + "/s",
			Summary: fmt.Sprintf("%s in 15 minutes, at most %s a second; %s (answers 500 and above)",
				count(sum, "request"), rate(highest(requests)), count(failed, "error")),
			Lines: []line{{"requests", "line-a", points(requests, top)}, {"errors", "line-b", points(errs, top)}}},
		{ID: "latency", Title: "Latency", From: from, To: to, Top: took(seconds(slowest)),
			Summary: fmt.Sprintf("the slowest p50 is %s, the slowest p99 %s (each at most 19 %% too high)",
				took(seconds(highest(half))), took(seconds(slowest))),
			Lines: []line{{"p50", "line-a", points(half, slowest)}, {"p99", "line-b", points(most, slowest)}}},
	}
}

// seconds makes a duration of a number of seconds.
func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// highest returns the greatest value; 0 if there is none above 0.
func highest(lists ...[]float64) (top float64) {
	for _, values := range lists {
		for _, v := range values {
			top = max(top, v)
		}
	}
	return top
}

// points returns the points of a polyline. top is the value at the upper end of the chart.
func points(values []float64, top float64) template.HTMLAttr {
	var b strings.Builder
	b.WriteString(`points="`)
	for i, v := range values {
		x := float64(i) * chartWidth / float64(max(1, len(values)-1))
		y := float64(chartTop + chartHeight)
		if top > 0 {
			y -= v / top * chartHeight
		}
		b.WriteString(strconv.FormatFloat(x, 'f', 1, 64) + "," + strconv.FormatFloat(y, 'f', 1, 64) + " ")
	}
	return template.HTMLAttr(strings.TrimSpace(b.String()) + `"`) //nolint:gosec // digits, commas and blanks
}
