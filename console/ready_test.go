package console_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"claviger/console"
)

// purposes is an answer of /readyz with its purposes and observations.
type purposes struct {
	Ready  bool
	Can    map[string]bool
	Checks []struct {
		Name, Error, By, Observed, Took string
		OK                              bool
		For                             []string
	}
}

// TestPurposes: each purpose has a status of its own.
func TestPurposes(t *testing.T) {
	h := console.New(console.Config{Checks: []console.Check{
		{Name: "hsm", Run: works},
		{Name: "store", For: []console.Purpose{console.Generate, console.Write}, Run: works},
		{Name: "store takes writes", For: []console.Purpose{console.Write}, Run: fails("disk full")},
		{Name: "note", Informational: true, Run: fails("certificate ends")},
	}}, otherPaths)
	for _, c := range []struct {
		query  string
		status int
		can    string
		checks int
	}{
		{"", 503, "decrypt=true generate=true write=false", 4},
		{"?for=decrypt", 200, "decrypt=true", 2},
		{"?for=generate", 200, "generate=true", 3},
		{"?for=write", 503, "write=false", 4},
		{"?for=", 400, "", 0},
		{"?for=everything", 400, "", 0},
		{"?for=decrypt&for=write", 400, "", 0},
	} {
		w := get(h, "GET", "/readyz"+c.query)
		if w.Code != c.status {
			t.Errorf("%s: %d %s", c.query, w.Code, w.Body)
		}
		if c.status == 400 {
			if !strings.Contains(w.Body.String(), "decrypt, generate or write") {
				t.Errorf("%s: %s", c.query, w.Body)
			}
			continue
		}
		var r purposes
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		var can []string
		for _, p := range []string{"decrypt", "generate", "write"} {
			if v, ok := r.Can[p]; ok {
				can = append(can, p+map[bool]string{true: "=true", false: "=false"}[v])
			}
		}
		if got := strings.Join(can, " "); got != c.can || len(r.Checks) != c.checks || r.Ready != (c.status == 200) {
			t.Errorf("%s: can %q, %d checks, ready %t", c.query, got, len(r.Checks), r.Ready)
		}
	}
}

// TestObserved: a recent observation by a request replaces a probe. A failure shows at once,
// and a probe shows when it has ended.
func TestObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen *console.Observation
		var probes atomic.Int32
		var broken atomic.Bool
		observe := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			seen = &console.Observation{At: time.Now(), Took: 3 * time.Millisecond, Err: err}
		}
		h := console.New(console.Config{Checks: []console.Check{{
			Name: "source",
			Last: func() (console.Observation, bool) {
				mu.Lock()
				defer mu.Unlock()
				if seen == nil {
					return console.Observation{}, false
				}
				return *seen, true
			},
			Run: func(context.Context) error {
				probes.Add(1)
				if broken.Load() {
					return errors.New("still no answer")
				}
				return nil
			},
		}}}, otherPaths)
		probe := func(when string, ok bool, by string, ran int32) {
			t.Helper()
			w := get(h, "GET", "/readyz")
			var r purposes
			if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || len(r.Checks) != 1 {
				t.Fatalf("%s: %v %s", when, err, w.Body)
			}
			c := r.Checks[0]
			at, err := time.Parse(time.RFC3339Nano, c.Observed)
			if c.OK != ok || c.By != by || probes.Load() != ran || err != nil || time.Since(at) > 10*time.Second ||
				by == "request" && c.Took != "3ms" {
				t.Errorf("%s: %+v after %d probes, want ok %t by %s after %d", when, c, probes.Load(), ok, by, ran)
			}
		}
		probe("nothing has used it", true, "probe", 1)
		time.Sleep(5 * time.Second)
		observe(nil)
		probe("a request was served", true, "request", 1)
		time.Sleep(9 * time.Second)
		probe("some seconds ago", true, "request", 1)
		broken.Store(true)
		observe(errors.New("connection refused"))
		probe("a request has just failed", false, "request", 1)
		time.Sleep(2 * time.Second)
		probe("and a probe fails too", false, "probe", 2)
		broken.Store(false)
		time.Sleep(2 * time.Second)
		probe("a probe goes well", true, "probe", 3)
		time.Sleep(2 * time.Second)
		observe(nil)
		probe("a request again", true, "request", 3)
		time.Sleep(11 * time.Second)
		probe("nothing has used it for long", true, "probe", 4)
	})
}
