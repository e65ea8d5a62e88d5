package kmsapi

import (
	"math"
	"strings"
	"testing"
	"time"
)

// TestMeter has the values of com.codahale.metrics' own test (EWMATest): after 3 events and one
// tick the rates are 0.6, and then decay.
func TestMeter(t *testing.T) {
	now := time.Unix(1000, 0)
	m := newMeter(now)
	for range 3 {
		m.mark(now)
	}
	for _, c := range []struct {
		after                time.Duration
		one, five, fifteen   float64
		count, meanPerSecond float64
	}{
		{5 * time.Second, 0.6, 0.6, 0.6, 3, 0.6},
		{time.Minute, 0.22072766, 0.49123845, 0.56130419, 3, 3. / 65},
		{time.Minute, 0.08120117, 0.40219203, 0.52510399, 3, 3. / 125},
		{13 * time.Minute, 0.00000018, 0.02987224, 0.22072766, 3, 3. / 905},
	} {
		now = now.Add(c.after)
		got := map[string]float64{}
		for _, a := range m.bean("x", now).attributes {
			switch v := a.value.(type) {
			case float64:
				got[a.name] = v
			case int64:
				got[a.name] = float64(v)
			}
		}
		for name, want := range map[string]float64{"OneMinuteRate": c.one, "FiveMinuteRate": c.five,
			"FifteenMinuteRate": c.fifteen, "Count": c.count, "MeanRate": c.meanPerSecond} {
			if math.Abs(got[name]-want) > 1e-7 {
				t.Errorf("after %v: %s %.8f, want %.8f", c.after, name, got[name], want)
			}
		}
	}
	m.mark(now.Add(1000 * time.Hour)) // a long pause takes no more time than a short one
	if r := m.rates[2]; r != 0 && r > 1e-9 {
		t.Errorf("after six weeks the rate is %g", r)
	}
}

// TestObjectNames: a pattern matches names as javax.management.ObjectName does.
func TestObjectNames(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "a:b=c", true},
		{"*:*", "a:b=c", true},
		{"a:*", "a:b=c,d=e", true},
		{"a:b=c", "a:b=c,d=e", false},
		{"a:d=e,b=c", "a:b=c,d=e", true},
		{"a:b=c,*", "a:b=c,d=e", true},
		{"a:b=*", "a:b=c", true},
		{"?:b=c", "ab:b=c", false},
		{"metrics:name=hadoop.kms.*.meter", "metrics:name=hadoop.kms.key.calls.meter", true},
		{"m*s:name=*key*", "metrics:name=hadoop.kms.key.calls.meter", true},
		{"m*s:name=*yek*", "metrics:name=hadoop.kms.key.calls.meter", false},
	} {
		p, ok := parseObjectName(c.pattern)
		if got := ok && p.matches(c.name); got != c.want {
			t.Errorf("%s covers %s: %v", c.pattern, c.name, got)
		}
	}
	for _, bad := range []string{"a", "a:", ":", "a:b", "a:b=c,", "a:=c", "a:b=c,b=d", "a:*,*"} {
		if _, ok := parseObjectName(bad); ok {
			t.Errorf("%q is accepted as an object name", bad)
		}
	}
	if wildcard(strings.Repeat("*a", 200), strings.Repeat("a", 199)) {
		t.Error("a pattern with more letters than the name matches")
	}
}
