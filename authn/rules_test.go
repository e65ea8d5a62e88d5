package authn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/user"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger"
)

var quiet = slog.New(slog.DiscardHandler)

// proxyUsers returns rules of many kinds, and the warnings about them. The user gina is in the group staff.
func proxyUsers() (*ProxyUsers, []string) {
	groups := func(u string) []string { return map[string][]string{"gina": {"staff"}}[u] }
	return NewProxyUsers(map[string]string{
		"a.b.users": "alice", "a.b.hosts": "10.0.0.0/8, 192.168.1.7\n,fe80::1",
		"byGroup.groups": "staff", "byGroup.hosts": "*",
		"both.users": "alice", "both.groups": "staff", "both.hosts": "*",
		"anyGroup.groups": "*", "anyGroup.hosts": "*",
		"any.users": "*", "any.hosts": "10.1.2.3/16",
		"noHosts.users":    "*",
		"nobody.hosts":     "*",
		"noAddress.users":  "*",
		"noAddress.hosts":  "10.0.0.0/33,*",
		"emptyHosts.users": "*", "emptyHosts.hosts": " ",
		"real.users": "~real", "real.hosts": "*",
		"typo.user": "*",
		".users":    "x",
	}, groups, quiet)
}

// TestProxyUserWarnings: a rule that lets a proxy user act for no user, and a rule that is ignored, cause a warning.
func TestProxyUserWarnings(t *testing.T) {
	_, warnings := proxyUsers()
	for _, want := range []string{
		"noHosts.hosts is not set, so noHosts may act for no user",
		"nobody.users and hadoop.kms.proxyuser.nobody.groups are not set, so nobody may act for no user",
		`noAddress.hosts: "10.0.0.0/33" is ignored`,
		"noAddress.hosts: * inside a list", "typo.user is ignored", ".users is ignored",
	} {
		if !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("no warning %q", want)
		}
	}
	if len(warnings) != 6 || !slices.IsSorted(warnings) {
		t.Errorf("warnings: %q", warnings)
	}
}

// TestProxyUsers checks which proxy user may act for which user from which address. A refusal names the property.
func TestProxyUsers(t *testing.T) {
	p, _ := proxyUsers()
	const no, far = "is not allowed to impersonate", "Unauthorized connection for super-user"
	for _, c := range []struct{ real, who, from, want string }{
		{"a.b", "alice", "10.200.3.4", ""},
		{"a.b", "alice", "192.168.1.7", ""},
		{"a.b", "alice", "fe80::1", ""},
		{"a.b", "alice", "192.168.1.8", "Unauthorized connection for super-user: a.b from IP /192.168.1.8"},
		{"a.b", "alice", "fe80::2", "Unauthorized connection for super-user: a.b from IP /fe80:0:0:0:0:0:0:2"},
		{"a.b", "bob", "10.200.3.4", "User: a.b is not allowed to impersonate bob"},
		{"a", "alice", "10.200.3.4", no},
		{"byGroup", "gina", "10.0.0.1", ""},
		{"byGroup", "alice", "10.0.0.1", no},
		{"both", "gina", "10.0.0.1", ""},
		{"both", "alice", "10.0.0.1", ""},
		{"both", "bob", "10.0.0.1", no},
		{"anyGroup", "bob", "10.0.0.1", ""},
		{"any", "bob", "10.1.255.255", ""},
		{"any", "bob", "10.1.0.0", ""},
		{"any", "bob", "10.2.0.0", far},
		{"noHosts", "bob", "10.0.0.1", far},
		{"nobody", "bob", "10.0.0.1", no},
		{"noAddress", "bob", "10.0.0.1", far},
		{"emptyHosts", "bob", "10.0.0.1", far},
		{"real", "bob", "10.0.0.1", ""},
		{"typo", "bob", "10.0.0.1", no},
		{"", "bob", "10.0.0.1", no},
	} {
		who := claviger.Principal{Name: c.who, Short: c.who, Real: &claviger.Principal{Name: c.real, Short: c.real}}
		refusal := p.refuse(t.Context(), who, netip.MustParseAddr(c.from))
		got := ""
		if refusal != nil {
			got = refusal.Reason
			property := ProxyUserPrefix + c.real +
				map[bool]string{true: ".hosts", false: ".users"}[strings.HasPrefix(got, far)]
			if refusal.Property != property || !strings.Contains(refusal.Explanation, property) ||
				refusal.Real != c.real || refusal.User != c.who {
				t.Errorf("%s for %s from %s: %+v, want property %s", c.real, c.who, c.from, refusal, property)
			}
		}
		if got == c.want || c.want != "" && strings.Contains(got, c.want) {
			continue
		}
		t.Errorf("%s for %s from %s: %q, want %q", c.real, c.who, c.from, got, c.want)
	}
	who := claviger.Principal{Name: "bob", Short: "bob", Real: &claviger.Principal{Name: "any", Short: "any"}}
	if p.refuse(t.Context(), who, netip.Addr{}) == nil {
		t.Error("allowed without an address")
	}
	if (&ProxyUsers{}).refuse(t.Context(), who, netip.MustParseAddr("10.1.0.0")) == nil {
		t.Error("allowed without a rule")
	}
}

// TestProxyUsersReplaced: Replace puts other rules in force.
func TestProxyUsersReplaced(t *testing.T) {
	rules := func(user string) *ProxyUsers {
		p, warnings := NewProxyUsers(map[string]string{"oozie.users": user, "oozie.hosts": "*"}, nil, quiet)
		if len(warnings) > 0 {
			t.Fatal(warnings)
		}
		return p
	}
	p := rules("alice")
	p.Replace(rules("bob"))
	for user, want := range map[string]bool{"alice": false, "bob": true} {
		who := claviger.Principal{Name: user, Short: user, Real: &claviger.Principal{Name: "oozie", Short: "oozie"}}
		if refusal := p.refuse(t.Context(), who, netip.MustParseAddr("10.0.0.1")); (refusal == nil) != want {
			t.Errorf("%s: %+v", user, refusal)
		}
	}
}

// TestHostNames: a host name in a list is looked up when no address of the list matches. The addresses are used for
// resolveTTL, and for longer while the name server is down.
func TestHostNames(t *testing.T) {
	h, _ := parseHosts("gw.example.com,10.0.0.1,other.example.com", quiet)
	now := time.Unix(0, 0)
	h.names.now = func() time.Time { return now }
	answers := map[string][]netip.Addr{"gw.example.com": {netip.MustParseAddr("::ffff:10.0.0.2"),
		netip.MustParseAddr("10.0.0.3")}}
	lookups := 0
	h.names.lookup = func(ctx context.Context, _, host string) ([]netip.Addr, error) {
		lookups++
		if _, ok := ctx.Deadline(); !ok {
			t.Error("a lookup without a deadline")
		}
		if a, ok := answers[host]; ok {
			return slices.Clone(a), nil
		}
		return nil, errors.New("no such host")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the lookup must not fail because this caller has disconnected
	check := func(ip string, want bool) {
		t.Helper()
		if got := h.includes(ctx, netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s included: %v", ip, got)
		}
	}
	check("10.0.0.1", true)
	if lookups != 0 {
		t.Error("looked up although an address of the list matches")
	}
	check("10.0.0.2", true)
	check("10.0.0.3", true)
	check("10.0.0.4", false)
	if lookups != 2 {
		t.Errorf("%d lookups, want one a name", lookups)
	}
	now = now.Add(resolveTTL)
	delete(answers, "gw.example.com") // the name server is down
	check("10.0.0.2", true)
	now = now.Add(resolveTTL)
	answers["gw.example.com"] = []netip.Addr{netip.MustParseAddr("10.0.0.4")} // the host has a new address
	check("10.0.0.2", false)
	check("10.0.0.4", true)
}

// TestGroups: static groups come first; groups of the system are cached, and used for longer if a lookup fails.
func TestGroups(t *testing.T) {
	var logged bytes.Buffer
	g, err := NewGroups("dr.who=; root = wheel , admin;x=y", 5*time.Minute, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	g.now = func() time.Time { return now }
	lookups, answer, fault := 0, []string{"staff"}, error(nil)
	g.lookup = func(string) ([]string, error) { lookups++; return answer, fault }
	check := func(name string, wantLookups int, want ...string) {
		t.Helper()
		if got := g.Of(name); !slices.Equal(got, want) || lookups != wantLookups {
			t.Errorf("%s: %q after %d lookups, want %q after %d", name, got, lookups, want, wantLookups)
		}
	}
	check("dr.who", 0)
	check("root", 0, "wheel", "admin")
	check("x", 0, "y")
	check("alice", 1, "staff")
	check("alice", 1, "staff")
	answer = []string{"staff", "ops"}
	now = now.Add(5*time.Minute - 1)
	check("alice", 1, "staff")
	now = now.Add(1)
	check("alice", 2, "staff", "ops")
	fault = errors.New("the directory is down")
	now = now.Add(5 * time.Minute)
	check("alice", 3, "staff", "ops")
	check("alice", 3, "staff", "ops") // a failed lookup is not repeated at once
	if !strings.Contains(logged.String(), "directory is down") {
		t.Errorf("log: %s", &logged)
	}
	fault = fmt.Errorf("wrapped: %w", user.UnknownUserError("alice"))
	now = now.Add(unknownUserTTL)
	check("alice", 4)
	fault = nil
	now = now.Add(unknownUserTTL)
	check("alice", 5, "staff", "ops")

	for i := range defaultMaxUsers + 10 {
		g.Of(fmt.Sprint("user", i))
	}
	if len(g.cache) > defaultMaxUsers {
		t.Errorf("%d users cached", len(g.cache))
	}
	for _, bad := range []string{"=g", "a=b=c", "a=g; =h"} {
		if _, err := NewGroups(bad, time.Minute, quiet); err == nil ||
			!strings.Contains(err.Error(), StaticMappingProperty) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestConcurrentLookups: concurrent requests for the same user cause one lookup.
func TestConcurrentLookups(t *testing.T) {
	g, err := NewGroups("", time.Minute, quiet)
	if err != nil {
		t.Fatal(err)
	}
	var lookups atomic.Int32
	release := make(chan struct{})
	g.lookup = func(string) ([]string, error) { lookups.Add(1); <-release; return []string{"staff"}, nil }
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := g.Of("alice"); !slices.Equal(got, []string{"staff"}) {
				t.Errorf("groups %q", got)
			}
		})
	}
	for lookups.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	if n := lookups.Load(); n != 1 {
		t.Errorf("%d lookups, want 1", n)
	}
}

// TestSystemGroups: the groups of the user that runs the test include the user's primary group.
func TestSystemGroups(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Skipf("this system has no entry for the user that runs the test: %v", err)
	}
	primary, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Skipf("this user's group has no name: %v", err)
	}
	groups, err := SystemGroups(me.Username)
	if err != nil || !slices.Contains(groups, primary.Name) {
		t.Errorf("groups of %s: %q, %v; want %s among them", me.Username, groups, err, primary.Name)
	}
	var unknown user.UnknownUserError
	if _, err := SystemGroups("no-such-user-at-all"); !errors.As(err, &unknown) {
		t.Errorf("an unknown user: %v", err)
	}
}

// TestNoGroups: as in Hadoop's NullGroupsMapping, the user that runs the test has no groups.
func TestNoGroups(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	groups, err := NewGroups("alice=staff,ops", time.Minute, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	groups.SetDirectory(NoGroups)
	if got := groups.Of(me.Username); len(got) != 0 {
		t.Errorf("groups of %s: %q", me.Username, got)
	}
	if got := groups.Of("alice"); !slices.Equal(got, []string{"staff", "ops"}) {
		t.Errorf("groups of alice: %q", got)
	}
}
