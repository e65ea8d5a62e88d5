package authn

import (
	"fmt"
	"os/user"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"claviger/authz"
)

// cachedGroupsOf returns Groups with a directory, whose answers are cached for a minute.
func cachedGroupsOf(t *testing.T, d Directory) *Groups {
	t.Helper()
	g, err := NewGroups("", time.Minute, quiet)
	if err != nil {
		t.Fatal(err)
	}
	g.SetDirectory(d)
	return g
}

// TestGroupWaits: a request waits strangerWait for a directory that does not answer, or only staleWait if it knows the
// last groups of the user.
func TestGroupWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var silent chan struct{}
		g := cachedGroupsOf(t, func(string) ([]string, error) {
			if silent != nil {
				<-silent
			}
			return []string{"staff"}, nil
		})
		g.Of("alice")
		time.Sleep(time.Minute)
		silent = make(chan struct{})
		for name, c := range map[string]struct {
			groups []string
			wait   time.Duration
		}{
			"alice":    {[]string{"staff"}, staleWait},
			"stranger": {authz.GroupsUnknown, strangerWait},
		} {
			began := time.Now()
			groups := g.Of(name)
			if wait := time.Since(began); wait != c.wait || !slices.Equal(groups, c.groups) {
				t.Errorf("%s: %q after %v, want %q after %v", name, groups, wait, c.groups, c.wait)
			}
		}
		close(silent)
		synctest.Wait()
	})
}

// TestStrangersNeedSlots: the lookup of a name that the directory never knew needs one of the slots for strangers, also
// when an earlier lookup of the name has failed, or has found no such user. The lookup of a known user needs no slot.
func TestStrangersNeedSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lookups := map[string]int{}
		g := cachedGroupsOf(t, func(name string) ([]string, error) {
			lookups[name]++
			switch name {
			case "unknown":
				return nil, user.UnknownUserError(name)
			case "failed":
				return nil, errStore
			}
			return []string{"staff"}, nil
		})
		g.Limit(10, 1)
		for _, name := range []string{"unknown", "failed", "alice"} {
			g.Of(name)
		}
		time.Sleep(time.Minute)
		g.strangerSlots <- struct{}{} // another lookup of a stranger runs
		for name, want := range map[string]int{"unknown": 1, "failed": 1, "new": 0, "alice": 2} {
			if g.Of(name); lookups[name] != want {
				t.Errorf("%s: %d lookups, want %d", name, lookups[name], want)
			}
		}
		time.Sleep(strangerWait) // lookups go on after Of has returned
		synctest.Wait()
		if refused := g.Stats().Refused; refused != 3 {
			t.Errorf("%d lookups were refused, want 3", refused)
		}
	})
}

// TestGroupCacheRoom: a full cache drops the expired users first. A cache with room drops none, because their last
// groups are used while the directory fails.
func TestGroupCacheRoom(t *testing.T) {
	g := cachedGroupsOf(t, func(string) ([]string, error) { return []string{"staff"}, nil })
	now := time.Unix(0, 0)
	g.now = func() time.Time { return now }
	const limit = 20
	g.Limit(limit, 1)
	fill := func(name string, count, want int) {
		t.Helper()
		for i := range count {
			g.Of(fmt.Sprint(name, i))
		}
		if cached := g.Stats().Cached; cached != want {
			t.Errorf("%s: %d users are cached, want %d", name, cached, want)
		}
	}
	fill("old", limit/2, limit/2)
	now = now.Add(time.Minute)
	fill("new", limit/2, limit)
	fill("one more", 1, limit/2+1)
	for name := range g.cache {
		if strings.HasPrefix(name, "old") {
			t.Errorf("%s is still cached", name)
		}
	}
}
