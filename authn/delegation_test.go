package authn

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/metastore"
	"claviger/metastore/storetest"
	"claviger/secret"
)

// Tokens of Hadoop 3.4.2's KMS: for alice, for alice through the proxy user migr, and for alice with a service.
const (
	ofAlice   = "HQAFYWxpY2UEeWFybgCKAaIIuGEtigGiLMTlLQECFOlAS4rZAeeTFQT8Liu2TP85q6qTBmttcy1kdAA"
	viaMigr   = "IQAFYWxpY2UEeWFybgRtaWdyigGiCLhhSooBoizE5UoGAhRwgJd2X4Yj926CsXR9YF7x9ZGUPgZrbXMtZHQA"
	ofService = "HQAFYWxpY2UEeWFybgCKAaIIuGEzigGiLMTlMwICFOPzLOOJ8voKruxqj_61j1_cBX4RBmttcy1kdA4xMjcuMC4wLjE6OTYwMA"
)

// TestDelegationTokensAreReadAndWrittenAsInHadoop: Hadoop's tokens are read, and written again as the same text.
func TestDelegationTokensAreReadAndWrittenAsInHadoop(t *testing.T) {
	for _, c := range []struct{ text, id, service string }{
		{ofAlice, "kms-dt owner=alice, renewer=yarn, realUser=, issueDate=1795442630957, maxDate=1796047430957, " +
			"sequenceNumber=1, masterKeyId=2", ""},
		{viaMigr, "kms-dt owner=alice, renewer=yarn, realUser=migr, issueDate=1795442630986, maxDate=1796047430986, " +
			"sequenceNumber=6, masterKeyId=2", ""},
		{ofService, "kms-dt owner=alice, renewer=yarn, realUser=, issueDate=1795442630963, maxDate=1796047430963, " +
			"sequenceNumber=2, masterKeyId=2", "127.0.0.1:9600"},
	} {
		d, id, err := parseDelegation(c.text)
		if err != nil || id.String() != c.id || d.service != c.service || d.kind != "kms-dt" || len(d.password) != 20 {
			t.Errorf("%s: %v %+v, %v", c.text, id, d, err)
			continue
		}
		d.identifier = id.bytes()
		if got := d.text(); got != c.text {
			t.Errorf("written again it is %s, want %s", got, c.text)
		}
	}
}

type oneSecret struct{}

func (oneSecret) Secrets() (secret.Bytes, []secret.Bytes) {
	s := secret.Bytes("of the test")
	return s, []secret.Bytes{s}
}

// delegating is an Authenticator whose clock the test sets.
type delegating struct {
	*Authenticator
	t      *testing.T
	tokens *Delegations
	now    time.Time
}

func newDelegating(t *testing.T) *delegating {
	d := &delegating{t: t, now: time.UnixMilli(1795442630957)}
	clock := func() time.Time { return d.now }
	tokens, err := NewDelegations(DelegationConfig{KeyUpdate: 24 * time.Hour, MaxLife: 7 * 24 * time.Hour,
		Renewal: 24 * time.Hour, Scan: time.Hour, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	d.tokens = tokens
	proxies, warnings := NewProxyUsers(map[string]string{"migr.users": "alice", "migr.hosts": "127.0.0.1"}, nil, nil)
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	if d.Authenticator, err = New(Config{Validity: time.Hour, Secrets: oneSecret{}, Delegations: tokens,
		ProxyUsers: proxies, Now: clock}); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *delegating) request(query string) Request {
	return Request{Header: http.Header{}, RawQuery: query, RemoteIP: netip.MustParseAddr("127.0.0.1")}
}

func (d *delegating) do(method, query string) DelegationResult {
	d.t.Helper()
	res, ok := d.Delegation(d.t.Context(), method, d.request(query))
	if !ok {
		d.t.Fatalf("%s %s is not an operation on delegation tokens", method, query)
	}
	return res
}

func (d *delegating) get(query string) string {
	d.t.Helper()
	res := d.do(http.MethodGet, "op=GETDELEGATIONTOKEN&"+query)
	if res.Token == "" {
		d.t.Fatalf("%s: %+v", query, res.Refusal)
	}
	return res.Token
}

// use sends a request with the token, and returns the user and the real user, or the refusal.
func (d *delegating) use(token string) string {
	res := d.Authenticate(d.t.Context(), d.request("doAs=bob&user.name=bob&delegation="+url.QueryEscape(token)))
	switch {
	case res.SetCookie != "":
		return "a cookie is set"
	case res.Refusal != nil:
		return fmt.Sprintf("%d %s", res.Refusal.Kind, res.Refusal.Reason)
	case res.Principal.Real != nil:
		return res.Principal.Name + " via " + res.Principal.Real.Name
	}
	return res.Principal.Name
}

// TestDelegationTokenRenewals: a token is valid until its last renewal ends, also after a new master key was made. Only
// its renewer can renew it, and never past maxDate.
func TestDelegationTokenRenewals(t *testing.T) {
	d := newDelegating(t)
	token := d.get("renewer=yarn/rm@R&user.name=alice")
	via := d.get("renewer=yarn&user.name=migr&doAs=alice&service=h:1")
	if got := d.use(token); got != "alice" {
		t.Errorf("the token is %s's", got)
	}
	if got := d.use(via); got != "alice via migr" {
		t.Errorf("the token is %s's", got)
	}
	_, id, _ := parseDelegation(token)
	if id.renewer != "yarn" || id.sequence != 1 || id.keyID != 1 {
		t.Errorf("identifier %v", id)
	}

	renew := func(user string) DelegationResult {
		return d.do(http.MethodPut, "op=renewdelegationtoken&user.name="+user+"&token="+token)
	}
	want := fmt.Sprintf("org.apache.hadoop.security.AccessControlException: alice tries to renew a token (%v) with "+
		"non-matching renewer yarn", id)
	if res := renew("alice"); res.Refusal == nil || res.Refusal.Kind != BadDelegation || res.Refusal.Reason != want {
		t.Errorf("renewed by its owner: %+v", res.Refusal)
	}
	d.now = d.now.Add(20 * time.Hour)
	if res := renew("yarn"); !res.Expires.Equal(d.now.Add(24 * time.Hour)) {
		t.Errorf("renewed until %v, %+v", res.Expires, res.Refusal)
	}
	d.now = d.now.Add(20 * time.Hour)
	if got := d.use(token); got != "alice" {
		t.Errorf("after its renewal the token is %s's", got)
	}
	if got := d.use(via); !strings.Contains(got, "has expired") {
		t.Errorf("the other token has expired, and is %s's", got)
	}
	// After a scan and a new key, a token by the old key is still valid.
	if err := d.tokens.scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, later, _ := parseDelegation(d.get("user.name=bob"))
	if later.keyID != 2 || later.renewer != "bob" || d.use(token) != "alice" {
		t.Errorf("after the key's change: %v; %s", later, d.use(token))
	}
	if got := d.use(via); !strings.Contains(got, "Token for real user: migr, can't be found in cache") {
		t.Errorf("the scan did not remove the expired token: %s", got)
	}
	// A renewal ends at maxDate at the latest.
	d.now = time.UnixMilli(id.maxDate).Add(-time.Hour)
	if res := renew("yarn"); !res.Expires.Equal(time.UnixMilli(id.maxDate)) {
		t.Errorf("renewed until %v, want %v", res.Expires, time.UnixMilli(id.maxDate))
	}
	d.now = d.now.Add(2 * time.Hour)
	if res := renew("yarn"); res.Refusal == nil ||
		!strings.Contains(res.Refusal.Reason, "tried to renew an expired token") {
		t.Errorf("renewed beyond its life: %+v", res)
	}
}

// TestDelegationExpiresOnTime: a token is valid until the end of the interval for which it was issued or renewed, and
// not a millisecond longer.
func TestDelegationExpiresOnTime(t *testing.T) {
	d := newDelegating(t)
	token := d.get("renewer=yarn&user.name=alice")
	until := d.now.Add(24 * time.Hour) // renew-interval.sec of newDelegating
	for _, when := range []string{"issued", "renewed"} {
		d.now = until
		if got := d.use(token); got != "alice" {
			t.Errorf("%s, at the end of the interval: %s", when, got)
		}
		d.now = until.Add(time.Millisecond)
		if got := d.use(token); !strings.Contains(got, "has expired") {
			t.Errorf("%s, a millisecond after the interval: %s", when, got)
		}
		d.now = until.Add(-time.Hour)
		res := d.do(http.MethodPut, "op=renewdelegationtoken&user.name=yarn&token="+token)
		if until = d.now.Add(24 * time.Hour); !res.Expires.Equal(until) {
			t.Fatalf("renewed until %v, %+v", res.Expires, res.Refusal)
		}
	}
}

// TestMemoryTokensAreADelegationStore: memoryTokens passes the tests of each metastore.Delegations.
func TestMemoryTokensAreADelegationStore(t *testing.T) {
	storetest.Delegations(t, func(*testing.T) (metastore.Delegations, metastore.Delegations) {
		m := newMemoryTokens(time.Now)
		return m, m
	})
}

// TestDelegationNodes: two nodes share a store, and each accepts the tokens that the other issued, and none that the
// other cancelled. The store has the tokens' passwords, or only their digests.
func TestDelegationNodes(t *testing.T) {
	for name, digests := range map[string]bool{"passwords": false, "digests": true} {
		t.Run(name, func(t *testing.T) { testDelegationNodes(t, digests) })
	}
}

func testDelegationNodes(t *testing.T, digests bool) {
	ctx := t.Context()
	store := newMemoryTokens(time.Now)
	node := func() *Delegations {
		d, err := NewDelegations(DelegationConfig{KeyUpdate: time.Hour, MaxLife: time.Hour, Renewal: time.Minute,
			Scan: time.Hour, Store: store, Batch: 3, Digests: digests})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, b := node(), node()
	issued := make(map[int32]bool) // the sequence numbers
	var text string
	for range 4 {
		for _, d := range []*Delegations{a, b} {
			var err error
			if text, err = d.issue(ctx, "alice", "yarn", "", ""); err != nil {
				t.Fatal(err)
			}
			id, _, err := a.verify(ctx, text)
			if err != nil || issued[id.sequence] {
				t.Fatalf("token %v was issued twice, or is not valid: %v", id, err)
			}
			issued[id.sequence] = true
		}
	}
	want := 2 // each node has made one
	if digests {
		want = 0 // no key is in the store
	}
	if keys, err := store.MasterKeys(ctx); err != nil || len(keys) != want {
		t.Errorf("the store has keys %v (%v), want %d", keys, err, want)
	}
	token, id, err := parseDelegation(text)
	if err != nil {
		t.Fatal(err)
	}
	if k, ok, err := store.Delegation(ctx, id.sequence); err != nil || !ok ||
		bytes.Equal(k.Password, token.password) == digests {
		t.Errorf("the store has %x (%v, %v) of the password %x", []byte(k.Password), ok, err, token.password)
	} else if token.password = k.Password; digests { // who can read the store may try this
		if _, _, err := a.verify(ctx, token.text()); err == nil ||
			!strings.Contains(err.Error(), "password doesn't match") {
			t.Errorf("the digest in the store is accepted as a password: %v", err)
		}
	}
	if _, err := a.renew(ctx, text, "yarn"); err != nil {
		t.Error(err)
	}
	if err := a.cancel(ctx, text, nil); err != nil {
		t.Error(err)
	}
	if id, _, err := b.verify(ctx, text); err == nil {
		t.Errorf("b accepts %v, which a has cancelled", id)
	}
	if _, err := b.renew(ctx, text, "yarn"); err == nil ||
		!strings.Contains(err.Error(), "Renewal request for unknown token") {
		t.Errorf("b renews it: %v", err)
	}
}

// downTokens is a store that does not answer.
type downTokens struct{ metastore.Delegations }

var errDown = claviger.Errorf("test", claviger.Unavailable, "", "the store is down")

func (downTokens) Delegation(context.Context, int32) (metastore.Delegation, bool, error) {
	return metastore.Delegation{}, false, errDown
}
func (downTokens) NextKeyID(context.Context) (int32, error) { return 0, errDown }

// TestDelegationStoreDown: while the store does not answer, each operation on tokens is refused with StoreUnavailable.
func TestDelegationStoreDown(t *testing.T) {
	d := newDelegating(t)
	token := d.get("user.name=alice")
	d.tokens.conf.Store = downTokens{}
	d.tokens.nextKey = time.Time{}
	if got, want := d.use(token), fmt.Sprintf("%d the store of delegation tokens does not answer",
		StoreUnavailable); got != want {
		t.Errorf("used: %s", got)
	}
	for _, c := range []struct{ method, query string }{
		{http.MethodGet, "op=GETDELEGATIONTOKEN&user.name=alice"},
		{http.MethodPut, "op=RENEWDELEGATIONTOKEN&user.name=alice&token=" + token},
		{http.MethodPut, "op=CANCELDELEGATIONTOKEN&token=" + token},
	} {
		if res := d.do(c.method, c.query); res.Refusal == nil || res.Refusal.Kind != StoreUnavailable ||
			!strings.Contains(res.Refusal.Explanation, "the store is down") || res.SetCookie != "" {
			t.Errorf("%s: %+v", c.query, res)
		}
	}
}

// TestDelegationCancel: a token is cancelled by its owner, by its renewer, or by a caller without a name who has it.
func TestDelegationCancel(t *testing.T) {
	d := newDelegating(t)
	for _, c := range []struct{ who, query string }{{"its owner", "user.name=alice&"},
		{"its renewer", "user.name=yarn&"}, {"an anonymous caller with the token", ""}} {
		token := d.get("renewer=yarn&user.name=alice")
		cookie := ""
		if c.query != "" {
			cookie = d.Authenticate(t.Context(), d.request(c.query)).SetCookie
		}
		cancel := func(cookie, token string) *Refusal {
			r := d.request("op=CANCELDELEGATIONTOKEN&token=" + token)
			r.Header.Set("Cookie", strings.TrimSuffix(cookie, "; HttpOnly"))
			res, _ := d.Delegation(t.Context(), http.MethodPut, r)
			return res.Refusal
		}
		bob := d.Authenticate(t.Context(), d.request("user.name=bob")).SetCookie
		if r := cancel(bob, token); r == nil || r.Kind != UnknownDelegation {
			t.Errorf("cancelled by another user: %+v", r)
		}
		parsed, _, _ := parseDelegation(token)
		parsed.password = make([]byte, 20)
		if r := cancel(cookie, parsed.text()); r == nil {
			t.Error("cancelled with another password")
		}
		if got := d.use(token); got != "alice" {
			t.Fatalf("before it is cancelled: %s", got)
		}
		if r := cancel(cookie, token); r != nil {
			t.Errorf("cancelled by %s: %+v", c.who, r)
		}
		if got := d.use(token); !strings.Contains(got, "can't be found in cache") {
			t.Errorf("cancelled by %s it is still %s's", c.who, got)
		}
	}
}

// TestDelegationRefused: forged and foreign tokens are refused, and operations on tokens that lack a credential or a
// parameter, or have the wrong method.
func TestDelegationRefused(t *testing.T) {
	d := newDelegating(t)
	token := d.get("user.name=alice")
	forged, id, _ := parseDelegation(token)
	forged.password[3] ^= 1
	other := forged
	id.owner = "hdfs"
	other.identifier = id.bytes()
	for _, c := range []struct{ token, want string }{
		{forged.text(), "is invalid, password doesn't match"},
		{other.text(), "can't be found in cache"},
		{ofAlice, "can't be found in cache"},
		{"AAAA", "java.io.EOFException"}, {"!!", "java.io.EOFException"},
		{strings.Repeat("A", maxDelegation+1), "java.io.EOFException"},
	} {
		if got := d.use(c.token); !strings.HasSuffix(got, c.want) ||
			!strings.HasPrefix(got, fmt.Sprint(int(BadDelegation))) {
			t.Errorf("%.60s: %s, want %s", c.token, got, c.want)
		}
	}
	for _, c := range []struct {
		method, query string
		kind          RefusalKind
	}{
		{"GET", "op=GETDELEGATIONTOKEN&renewer=yarn", NoDelegator},
		{"GET", "op=GETDELEGATIONTOKEN&delegation=" + token, NoDelegator}, // a token is no credential for a token
		{"GET", "op=GETDELEGATIONTOKEN&user.name=", Malformed},
		{"GET", "op=GETDELEGATIONTOKEN&user.name=migr&doAs=mallory", NotAllowed},
		{"GET", "op=GETDELEGATIONTOKEN&user.name=alice&renewer=" + strings.Repeat("x", 513), BadOperation},
		{"GET", "op=GETDELEGATIONTOKEN&user.name=alice&service=%0a", BadOperation},
		{"PUT", "op=GETDELEGATIONTOKEN&user.name=alice", BadOperation},
		{"GET", "op=RENEWDELEGATIONTOKEN&user.name=alice&token=" + token, BadOperation},
		{"PUT", "op=RENEWDELEGATIONTOKEN&user.name=alice", BadOperation},
		{"PUT", "op=RENEWDELEGATIONTOKEN&token=" + token, NoDelegator},
		{"PUT", "op=CANCELDELEGATIONTOKEN", BadOperation},
		{"PUT", "op=CANCELDELEGATIONTOKEN&token=AAAA", UnknownDelegation},
	} {
		if res := d.do(c.method, c.query); res.Refusal == nil || res.Refusal.Kind != c.kind || res.Token != "" {
			t.Errorf("%s %.60s: %+v", c.method, c.query, res)
		}
	}
	for _, c := range []struct{ method, query string }{{"GET", "op=FOO"}, {"GET", "op"},
		{"OPTIONS", "op=GETDELEGATIONTOKEN"}} {
		if _, ok := d.Delegation(t.Context(), c.method, d.request(c.query)); ok {
			t.Errorf("%s %s is treated as an operation on delegation tokens", c.method, c.query)
		}
	}
	if _, err := NewDelegations(DelegationConfig{KeyUpdate: 1, MaxLife: 1, Renewal: 1}); err == nil ||
		!strings.Contains(err.Error(), "removal-scan-interval.sec") {
		t.Errorf("an interval of 0: %v", err)
	}
}

// FuzzDelegation: a token that can be read means the same after it is written and read again.
func FuzzDelegation(f *testing.F) {
	if seeds, err := os.ReadDir("testdata/fuzz/FuzzDelegation"); err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, id, err := parseDelegation(text)
		if err != nil {
			return
		}
		d.identifier = id.bytes()
		again, sameID, err := parseDelegation(d.text())
		if err != nil || sameID != id || again.service != d.service || string(again.password) != string(d.password) {
			t.Errorf("%v becomes %v after writing and reading; %v", id, sameID, err)
		}
	})
}
