package pages

import (
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"

	"claviger"
)

// functions has the functions that templates call.
var functions = template.FuncMap{
	"name":   claviger.Printable,
	"time":   stamp,
	"age":    age,
	"digit":  strconv.Itoa,
	"joined": joined,
}

// stamp shows a time to the second, in UTC; "-" for the zero time.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// millis is the time of a number of milliseconds since 1970; 0 is the zero time.
func millis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// age shows how long ago a time is.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(now.Sub(t))
}

// span shows a duration with its largest unit, as in "3 days".
func span(d time.Duration) string {
	const day = 24 * time.Hour
	if d < 0 {
		return "in " + span(-d)
	}
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{365 * day, "year"}, {day, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := int(d / unit.length); n > 0 {
			return count(n, unit.name)
		}
	}
	return "now"
}

// count shows a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// took shows a latency.
func took(d time.Duration) string {
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// rate shows a number of requests a second.
func rate(perSecond float64) string {
	text := strconv.FormatFloat(perSecond, 'f', 1, 64)
	return strings.TrimSuffix(text, ".0")
}
