package kms

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/hadoopconf"
	"claviger/internal/logtest"
	"claviger/internal/pgtest"
	"claviger/kms/kmstest"
	"claviger/metastore"
	"claviger/metastore/location"
)

// TestClockOfANode: a node whose clock is two days ahead of PostgreSQL's reports that in
// /readyz and /metrics, and serves. It does not say that a token has expired, because the token
// may be valid.
func TestClockOfANode(t *testing.T) {
	uri := pgtest.Database(t)
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	exec := func(statements ...string) {
		t.Helper()
		pgtest.Shared(t).Exec(t, strings.TrimPrefix(u.Path, "/"), statements...)
	}
	exec(`CREATE SCHEMA clock`, `CREATE TABLE clock.shift (by interval)`, `INSERT INTO clock.shift VALUES ('0')`,
		`CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
			$$ SELECT pg_catalog.clock_timestamp() + by FROM clock.shift $$`,
		`ALTER DATABASE `+strings.TrimPrefix(u.Path, "/")+` SET search_path = public, clock, pg_catalog`)
	kms, _ := onHSM(t, map[string]string{hadoopconf.MetastoreURI: uri})
	_, body := kmstest.Get(t, kms, "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=a", "a")
	var issued struct{ Token struct{ URLString string } }
	if err := json.Unmarshal([]byte(body), &issued); err != nil || issued.Token.URLString == "" {
		t.Fatalf("%s: %v", body, err)
	}
	// The check of tokens compares the clocks itself, and reuses the result for a second.
	use := func(want int, says string) {
		t.Helper()
		var status int
		var body string
		for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(100 * time.Millisecond) {
			status, body = kmstest.Get(t, kms, "/kms/v1/keys/names?delegation="+issued.Token.URLString, "")
			if status == want && strings.Contains(body, says) {
				return
			}
		}
		t.Errorf("%d %s, want %d and %q", status, body, want, says)
	}
	// clocks waits until the check of /readyz has the result ok, because an answer is reused for a second. Then it
	// compares the metric with ahead.
	clocks := func(ok bool, ahead time.Duration) {
		t.Helper()
		var got kmstest.Check
		for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(100 * time.Millisecond) {
			status, r := kmstest.Readyz(t, kms)
			got = r.Checks[slices.IndexFunc(r.Checks, func(c kmstest.Check) bool { return c.Name == "clock" })]
			if status != http.StatusOK || !r.Ready || !got.Informational {
				t.Fatalf("%d, ready %t, %+v", status, r.Ready, got)
			}
			if got.OK == ok {
				break
			}
		}
		if got.OK != ok || !ok && !strings.Contains(got.Error, "48h0m0s ahead of PostgreSQL's") {
			t.Errorf("the check says %+v, want ok %t", got, ok)
		}
		_, text := kmstest.Get(t, kms, "/metrics", "")
		m := regexp.MustCompile(`(?m)^claviger_clock_ahead_seconds\{clock="metastore"\} (\S+)$`).FindStringSubmatch(
			text)
		if m == nil {
			t.Fatalf("no value in %s", text)
		}
		if s, err := strconv.ParseFloat(m[1], 64); err != nil ||
			(time.Duration(s*float64(time.Second))-ahead).Abs() > 10*time.Second {
			t.Errorf("the value is %s, want %v", m[1], ahead)
		}
	}
	clocks(true, 0)
	use(http.StatusOK, "")
	const day = 24 * time.Hour
	exec(`UPDATE clock.shift SET by = '-2 days'`, fmt.Sprintf(`UPDATE delegation SET renew = %d`,
		time.Now().Add(-time.Hour).UnixMilli()))
	clocks(false, 2*day)
	use(http.StatusServiceUnavailable, "StandbyException")
	exec(`UPDATE clock.shift SET by = '0'`)
	clocks(true, 0)
	use(http.StatusForbidden, "has expired")
}

// setClock is a clock that a test sets ahead, or that does not answer.
type setClock struct {
	ahead time.Duration
	err   error
}

func (c *setClock) Clocks(context.Context) (metastore.Clocks, error) {
	now := time.Now()
	return metastore.Compare(now.Add(c.ahead), now, now.Add(c.ahead), "PostgreSQL's"), c.err
}

// TestClockIsLogged: the log says once that a clock is wrong, and once that the clocks agree
// again. It does not say so while one of two clocks does not answer.
func TestClockIsLogged(t *testing.T) {
	var log logtest.Buffer
	one, two := &setClock{}, &setClock{}
	w := &clockWatch{log: slog.New(slog.NewTextHandler(&log, nil)), clocks: map[string]metastore.Clock{"metastore": one,
		"zookeeper": two}}
	for i, step := range []struct {
		one, two     setClock
		wrong        bool
		begun, ended int // lines so far
	}{
		{setClock{}, setClock{}, false, 0, 0},
		{setClock{ahead: metastore.ClockMargin}, setClock{}, false, 0, 0},
		{setClock{}, setClock{ahead: -time.Hour}, true, 1, 0},
		{setClock{}, setClock{ahead: -time.Hour}, true, 1, 0},
		{setClock{}, setClock{err: location.ErrNone}, false, 1, 0},
		{setClock{}, setClock{}, false, 1, 1},
		{setClock{ahead: time.Hour}, setClock{}, true, 2, 1},
	} {
		*one, *two = step.one, step.two
		err := w.check(t.Context())
		if (err != nil) != step.wrong {
			t.Errorf("step %d: %v", i, err)
		}
		begun, ended := strings.Count(log.String(), "a clock is wrong"), strings.Count(log.String(),
			"the clocks agree again")
		if begun != step.begun || ended != step.ended {
			t.Errorf("step %d: %s", i, log.String())
		}
	}
}
