package kmsapi_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger/audit"
	"claviger/authn"
	"claviger/provider/memory"
)

// earlyRefusal is a request that is refused before the operation. The audit record has user, real
// and reason; label is the label of the metric; logged are parts of the warning in the log.
type earlyRefusal struct {
	what, target, header      string
	status                    int
	user, real, reason, label string
	logged                    []string
}

func negotiate(who string) string {
	return "Authorization: Negotiate " + base64.StdEncoding.EncodeToString([]byte(who))
}

func earlyRefusals(token string) []earlyRefusal {
	const names = "/kms/v1/keys/names?"
	return []earlyRefusal{
		{"no rule at all", names + "doAs=alice", negotiate("hive@EXAMPLE.COM"), 403, "alice", "hive@EXAMPLE.COM",
			"is not allowed to impersonate alice", "impersonation",
			[]string{"property=hadoop.kms.proxyuser.hive.users", "set hadoop.kms.proxyuser.hive.hosts",
				"realUser=hive@EXAMPLE.COM user=alice"}},
		{"another user", names + "doAs=alice", negotiate("oozie@EXAMPLE.COM"), 403, "alice", "oozie@EXAMPLE.COM",
			"is not allowed to impersonate alice", "impersonation",
			[]string{"hadoop.kms.proxyuser.oozie.users does not name alice"}},
		{"wrong address", names + "doAs=alice", negotiate("far@EXAMPLE.COM"), 403, "alice", "far@EXAMPLE.COM",
			"Unauthorized connection for super-user", "impersonation",
			[]string{"hadoop.kms.proxyuser.far.hosts does not list 127.0.0.1"}},
		{"null user", names + "doAs=", negotiate("oozie@EXAMPLE.COM"), 500, "", "oozie@EXAMPLE.COM", "Null user",
			"name", []string{"parameter doAs is empty"}},
		{"doAs without a rule", names + "doAs=a%40OTHER.ORG", negotiate("oozie@EXAMPLE.COM"), 500, "a@OTHER.ORG",
			"oozie@EXAMPLE.COM", "Illegal principal name a@OTHER.ORG", "name",
			[]string{"hadoop.kms.authentication.kerberos.name.rules"}},
		{"no rule of auth_to_local", names, negotiate("x@OTHER.ORG"), 500, "x@OTHER.ORG", "",
			"No rules applied to x@OTHER.ORG", "auth_to_local",
			[]string{"hadoop.kms.authentication.kerberos.name.rules"}},
		{"bad ticket", names, negotiate("nonsense"), 403, "", "", "java.util.NoSuchElementException", "ticket",
			[]string{"no token of a recording"}},
		{"bad token", names + "delegation=nonsense", "X: y", 403, "", "", "java.io.EOFException", "delegation_token",
			[]string{"it was cut, or is of another kind"}},
		{"a token for a proxy", "/kms/v1/?op=GETDELEGATIONTOKEN&doAs=carl", negotiate("oozie@EXAMPLE.COM"), 403,
			"carl", "oozie", "is not allowed to impersonate carl", "impersonation", nil},
		{"expired token", names + "delegation=" + token, "X: y", 403, "oozie", "", "has expired", "delegation_token",
			[]string{"the delegation token of oozie, number 1, has expired"}},
	}
}

// TestEarlyRefusals: each refusal before the operation leaves one audit record with both users and
// the address, one warning that names the property to change, and a count.
func TestEarlyRefusals(t *testing.T) {
	proxies, _ := authn.NewProxyUsers(map[string]string{
		"oozie.users": "bob", "oozie.hosts": "*", "far.users": "*", "far.hosts": "10.0.0.0/8",
	}, nil, slog.New(slog.DiscardHandler))
	rules, err := authn.ParseRules(`RULE:[1:$1@$0](.*@EXAMPLE\.COM)s/@.*//`, authn.MechanismHadoop, "EXAMPLE.COM")
	if err != nil {
		t.Fatal(err)
	}
	now, clock := time.Now(), sync.Mutex{}
	clockNow := func() time.Time {
		clock.Lock()
		defer clock.Unlock()
		return now
	}
	tr, log := &trail{}, &logBuffer{}
	var counts sync.Map
	known := tickets{}
	for _, who := range []string{"hive@EXAMPLE.COM", "oozie@EXAMPLE.COM", "far@EXAMPLE.COM", "x@OTHER.ORG"} {
		known[who] = ticket{client: who}
	}
	addr := start(t, stack{
		Primary: memory.New(memory.Config{}), Trail: tr, Log: slog.NewTextHandler(log, nil),
		Refused: func(reason string) { n, _ := counts.LoadOrStore(reason, 0); counts.Store(reason, n.(int)+1) },
		Auth: authn.Config{Handler: kerberos(t, known), Rules: rules, ProxyUsers: proxies, Delegations: delegations(t,
			clockNow), Now: clockNow},
	})
	a := sendAs(t, addr, "GET", "/kms/v1/?op=GETDELEGATIONTOKEN&renewer=yarn", "", negotiate("oozie@EXAMPLE.COM"))
	issued := issuedToken.FindSubmatch(a.body)
	if issued == nil {
		t.Fatalf("%d %s", a.status, a.body)
	}
	tr.forget()
	for _, c := range earlyRefusals(string(issued[1])) {
		if c.what == "expired token" {
			clock.Lock()
			now = now.Add(25 * time.Hour)
			clock.Unlock()
		}
		before, _ := counts.LoadOrStore(c.label, 0)
		a := sendAs(t, addr, "GET", c.target, "", c.header)
		events := tr.all()
		tr.forget()
		if a.status != c.status || len(events) != 1 {
			t.Errorf("%s: %d %s, events %+v", c.what, a.status, a.body, events)
			continue
		}
		e := events[0]
		real := ""
		if e.Caller.Real != nil {
			real = e.Caller.Real.Name
		}
		if e.Status != audit.Unauthenticated || e.Caller.Name != c.user || real != c.real ||
			!strings.Contains(e.Message, c.reason) || e.Caller.RemoteAddr != "127.0.0.1" ||
			!strings.Contains(e.URL, "/kms/v1/") || strings.Contains(e.URL, "nonsense") {
			t.Errorf("%s: %+v, real %q", c.what, e, real)
		}
		if after, _ := counts.Load(c.label); after.(int) != before.(int)+1 {
			t.Errorf("%s: %s is counted %v times, before %v", c.what, c.label, after, before)
		}
		logged := log.take()
		if n := strings.Count(logged, "level=WARN"); n != map[bool]int{true: 1}[c.logged != nil] {
			t.Errorf("%s: %d warnings: %s", c.what, n, logged)
		}
		for _, part := range c.logged {
			if !strings.Contains(logged, part) {
				t.Errorf("%s: the log has no %q: %s", c.what, part, logged)
			}
		}
	}
}

// TestRefusalsDoNotFlood: hundreds of refusals of one kind cause one warning, and refusals of
// many made-up names cause at most 256.
func TestRefusalsDoNotFlood(t *testing.T) {
	log := &logBuffer{}
	addr := start(t, stack{Primary: memory.New(memory.Config{}), Log: slog.NewTextHandler(log, nil)})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	get := func(query string) {
		resp, err := client.Get("http://" + addr + "/kms/v1/keys/names?" + query)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Fatalf("%s: %d", query, resp.StatusCode)
		}
	}
	for i := range 300 {
		get(fmt.Sprintf("user.name=hive&doAs=user%d", i))
	}
	if text := log.take(); strings.Count(text, "level=WARN") != 1 {
		t.Errorf("300 users for one proxy: %s", text)
	}
	for i := range 600 {
		get(fmt.Sprintf("user.name=proxy%d&doAs=alice", i))
	}
	if n := strings.Count(log.take(), "level=WARN"); n < 100 || n > 256 {
		t.Errorf("%d warnings of 600 proxies", n)
	}
}
