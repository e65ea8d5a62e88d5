package kmsapi_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger/authn"
	"claviger/authz"
	"claviger/provider/memory"
	"claviger/secret"
)

// changing is a server whose rules, signer secret and clock a test changes while clients send requests. It remembers
// tokens and cookies.
type changing struct {
	t      *testing.T
	addr   string
	client *http.Client
	rules  atomic.Pointer[authz.Policy]
	secret atomic.Pointer[secret.Bytes]
	clock  atomic.Int64 // milliseconds since 1970
}

func (c *changing) Secrets() (secret.Bytes, []secret.Bytes) {
	s := *c.secret.Load()
	return s, []secret.Bytes{s}
}

func (c *changing) roll() {
	s := secret.Bytes(fmt.Sprint("secret ", c.clock.Add(1)))
	c.secret.Store(&s)
}

// allow gives the right to read names to one user.
func (c *changing) allow(user string) {
	policy, _ := authz.Parse([]authz.Property{{Name: "hadoop.kms.acl.GET_KEYS", Value: user}})
	c.rules.Store(policy)
}

func newChanging(t *testing.T) *changing {
	c := &changing{t: t, client: &http.Client{Timeout: time.Minute,
		Transport: &http.Transport{MaxIdleConnsPerHost: 16}}}
	t.Cleanup(c.client.CloseIdleConnections)
	c.clock.Store(1795442630957)
	c.roll()
	c.allow("alice")
	now := func() time.Time { return time.UnixMilli(c.clock.Load()) }
	tokens, err := authn.NewDelegations(authn.DelegationConfig{KeyUpdate: 1000 * time.Hour, MaxLife: 1000 * time.Hour,
		Renewal: time.Hour, Scan: time.Hour, Remember: time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	c.addr = start(t, stack{Primary: memory.New(memory.Config{}), Rules: c.rules.Load, Trail: &trail{off: true},
		Auth: authn.Config{Delegations: tokens, Secrets: c, Now: now}})
	return c
}

// do sends a request, and returns the status, the cookie that the answer sets, and the body.
func (c *changing) do(method, query string, header ...string) (status int, cookie, body string) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://"+c.addr+"/kms/v1/keys/names"+query, nil)
	if err != nil {
		c.t.Error(err)
		return 0, "", ""
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.client.Do(req)
	if err != nil {
		c.t.Error(err)
		return 0, "", ""
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Error(err)
	}
	return res.StatusCode, res.Header.Get("Set-Cookie"), string(b)
}

// race lets clients send requests all the time while change runs. The answer to a request that is sent before change
// begins must have the status "before". The answer to a request that is sent after change returns must have the status
// "after".
func (c *changing) race(what string, request func() int, before, after int, change func()) {
	c.t.Helper()
	const clients, each = 4, 3
	var changed atomic.Bool
	var warm, all sync.WaitGroup
	warm.Add(clients)
	for range clients {
		all.Go(func() {
			for sent, late := 0, 0; late < each; sent++ {
				was := changed.Load()
				got := request()
				if sent == 0 {
					warm.Done()
				}
				switch {
				case was && got != after:
					c.t.Errorf("%s: %d after the change, want %d", what, got, after)
				case !was && got != before && got != after:
					c.t.Errorf("%s: %d before the change, want %d", what, got, before)
				}
				if was {
					late++
				}
			}
		})
	}
	warm.Wait()
	change()
	changed.Store(true)
	all.Wait()
}

// TestChangesAgainstCaches: when a token is cancelled or renewed, a secret is rolled, a cookie or token expires, or a
// rule is changed, each later request is answered by the new state, whatever the server remembers. With CLAVIGER_SOAK
// the test runs for half a minute.
func TestChangesAgainstCaches(t *testing.T) {
	c := newChanging(t)
	const rounds = 12
	began := time.Now()
	for round := 0; !t.Failed() && (round < rounds || os.Getenv("CLAVIGER_SOAK") != "" &&
		time.Since(began) < 30*time.Second); round++ {
		c.tokens()
		c.cookies()
	}
}

func (c *changing) tokens() {
	_, _, body := c.do(http.MethodGet, "?op=GETDELEGATIONTOKEN&user.name=alice&renewer=yarn")
	_, rest, _ := strings.Cut(body, `"urlString":"`)
	token, _, ok := strings.Cut(rest, `"`)
	if !ok {
		c.t.Fatal(body)
	}
	use := func() int {
		status, _, _ := c.do(http.MethodGet, "", "X-Hadoop-Delegation-Token", token)
		return status
	}
	put := func(query string) func() {
		return func() {
			if status, _, body := c.do(http.MethodPut, query+"&token="+token); status != http.StatusOK {
				c.t.Errorf("%s: %d %s", query, status, body)
			}
		}
	}
	c.race("a token expires", use, 200, 403, func() { c.clock.Add(time.Hour.Milliseconds() + 1) })
	c.race("a token is renewed", use, 403, 200, put("?op=RENEWDELEGATIONTOKEN&user.name=yarn"))
	c.race("a rule is taken away", use, 200, 403, func() { c.allow("bob") })
	c.race("a rule is given back", use, 403, 200, func() { c.allow("alice") })
	c.race("a token is cancelled", use, 200, 403, put("?op=CANCELDELEGATIONTOKEN"))
}

func (c *changing) cookies() {
	var cookie string
	use := func() int {
		status, _, _ := c.do(http.MethodGet, "", "Cookie", cookie)
		return status
	}
	login := func() {
		var set string
		_, set, _ = c.do(http.MethodGet, "?user.name=alice")
		cookie, _, _ = strings.Cut(set, ";")
	}
	login()
	c.race("the secret rolls", use, 200, 401, c.roll)
	login()
	c.race("a cookie expires", use, 200, 401, func() { c.clock.Add(time.Hour.Milliseconds() + 1) })
}
