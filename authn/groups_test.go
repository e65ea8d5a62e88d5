package authn

import (
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger"
	"claviger/authz"
)

// TestGroupsUnknown: if the directory fails at the first lookup, a blacklist with groups excludes the user. Groups
// from an earlier lookup are used for MaxStale.
func TestGroupsUnknown(t *testing.T) {
	policy, warnings := authz.Parse([]authz.Property{
		{Name: "hadoop.kms.acl.DECRYPT_EEK", Value: "*"}, {Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: " banned"},
		{Name: "hadoop.kms.acl.GENERATE_EEK", Value: "*"}, {Name: "hadoop.kms.blacklist.GENERATE_EEK", Value: "hdfs"},
		{Name: "hadoop.kms.acl.CREATE", Value: " staff"},
	})
	if len(warnings) > 0 {
		t.Fatal(warnings)
	}
	g, err := NewGroups("", time.Minute, quiet)
	if err != nil {
		t.Fatal(err)
	}
	g.MaxStale(10 * time.Minute)
	now := time.Unix(0, 0)
	g.now = func() time.Time { return now }
	var answer []string
	fault := errors.New("the directory is down")
	g.lookup = func(string) ([]string, error) { return answer, fault }
	check := func(when string, decrypt, create bool) {
		t.Helper()
		who := claviger.Principal{Name: "alice", Short: "alice"}
		if got := policy.May(authz.DecryptEEK, who, g.Of); got != decrypt {
			t.Errorf("%s: DECRYPT_EEK %v; groups %q", when, got, g.Of("alice"))
		}
		if got := policy.May(authz.Create, who, g.Of); got != create {
			t.Errorf("%s: CREATE %v; groups %q", when, got, g.Of("alice"))
		}
		if !policy.May(authz.GenerateEEK, who, g.Of) {
			t.Errorf("%s: a blacklist without groups excludes the user", when)
		}
	}
	check("the first lookup fails", false, false)
	answer, fault = []string{"staff"}, nil
	now = now.Add(time.Minute)
	check("the directory answers", true, true)
	fault = errors.New("the directory is down")
	now = now.Add(10 * time.Minute)
	check("the directory fails, and the last groups are recent enough", true, true)
	now = now.Add(time.Minute)
	check("the last groups are too old", false, false)
	answer, fault = []string{"staff", "banned"}, nil
	now = now.Add(time.Minute)
	check("the directory answers again", false, true)
	fault = user.UnknownUserError("alice")
	now = now.Add(time.Minute)
	check("the user does not exist", true, false)
	if s := g.Stats(); s.Failed != 3 || s.Err != nil || s.Cached != 0 || s.Absent != 1 {
		t.Errorf("statistics: %+v", s)
	}
}

// TestStrangersWait: names that clients invent fill neither the directory's queue nor the cache, even if the directory
// does not answer for them.
func TestStrangersWait(t *testing.T) {
	g, err := NewGroups("", time.Minute, quiet)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	g.now = func() time.Time { return now }
	g.waits.stranger, g.waits.stale = 50*time.Millisecond, 50*time.Millisecond
	release := make(chan struct{})
	g.lookup = func(name string) ([]string, error) {
		if strings.HasPrefix(name, "invented") {
			<-release
			return nil, user.UnknownUserError(name)
		}
		return []string{"staff"}, nil
	}
	if got := g.Of("alice"); !slices.Equal(got, []string{"staff"}) {
		t.Fatalf("groups %q", got)
	}
	done := make(chan struct{})
	for i := range 4 * defaultStrangers {
		go func() { g.Of(fmt.Sprint("invented", i)); done <- struct{}{} }()
	}
	for range 4 * defaultStrangers {
		<-done // each call returns, although the directory does not answer
	}
	now = now.Add(2 * time.Minute) // alice must be looked up again
	for len(g.strangerSlots) < defaultStrangers {
		time.Sleep(time.Millisecond)
	}
	if got := g.Of("alice"); !slices.Equal(got, []string{"staff"}) {
		t.Errorf("alice's groups while strangers are looked up: %q", got)
	}
	if g.Stats().Refused == 0 {
		t.Error("no lookup of a stranger was refused")
	}
	if got := g.Of("bob"); !slices.Equal(got, authz.GroupsUnknown) {
		t.Errorf("groups of a stranger without a slot: %q", got)
	}
	for g.Stats().Refused <= 3*defaultStrangers { // bob's lookup may end after Of has returned
		time.Sleep(time.Millisecond)
	}
	close(release)
	for i := range defaultMaxUsers + 100 {
		g.Of(fmt.Sprint("invented-too", i))
	}
	if s := g.Stats(); s.Cached != 1 || s.Absent > defaultMaxUsers {
		t.Errorf("%+v: invented names have displaced a user, or fill the memory", s)
	}
}

// TestGroupLimits: Limit sets the sizes of the caches and the number of lookups.
func TestGroupLimits(t *testing.T) {
	g, err := NewGroups("", time.Hour, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	g.Limit(3, 2)
	g.SetDirectory(func(string) ([]string, error) { return []string{"staff"}, nil })
	for i := range 10 {
		g.Of(fmt.Sprint("user", i))
	}
	if s := g.Stats(); s.Cached != 3 || s.Limit != 3 || cap(g.strangerSlots) != 2 {
		t.Errorf("%+v, %d slots", s, cap(g.strangerSlots))
	}
}

// TestGroupsLookup: Lookup returns the static groups of a user, and for other users what the directory returns. It
// remembers neither.
func TestGroupsLookup(t *testing.T) {
	g, err := NewGroups("ann=staff,ops", time.Minute, quiet)
	if err != nil {
		t.Fatal(err)
	}
	fault := errors.New("the directory is down")
	g.SetDirectory(func(string) ([]string, error) { return []string{"people"}, fault })
	if got, err := g.Lookup("ann"); err != nil || !slices.Equal(got, []string{"staff", "ops"}) {
		t.Errorf("a user with static groups: %q, %v", got, err)
	}
	if _, err := g.Lookup("bob"); !errors.Is(err, fault) {
		t.Errorf("the directory fails: %v", err)
	}
	fault = nil
	if got, err := g.Lookup("bob"); err != nil || !slices.Equal(got, []string{"people"}) {
		t.Errorf("the directory answers: %q, %v", got, err)
	}
	if s := g.Stats(); s.Cached != 0 || s.Absent != 0 || s.Failed != 0 {
		t.Errorf("statistics: %+v", s)
	}
}
