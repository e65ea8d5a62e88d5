package authn

import (
	"fmt"
	"log/slog"
	"net/http"
	"os/user"
	"runtime"
	"strings"
	"testing"
	"time"
)

// heapBytes returns the size of what is reachable on the heap.
func heapBytes() int {
	runtime.GC()
	runtime.GC() // the first one empties pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc) //nolint:gosec // far below the limit
}

// TestNamesOfLongRequests: after a request, only the names in it stay in memory, and not the whole request, which may
// be a hundred times as long.
func TestNamesOfLongRequests(t *testing.T) {
	tokens, err := NewDelegations(DelegationConfig{KeyUpdate: time.Hour, MaxLife: time.Hour, Renewal: time.Hour,
		Scan: time.Hour, Remember: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Validity: time.Hour, Secrets: oneSecret{}, Delegations: tokens})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := NewGroups("", time.Hour, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	groups.SetDirectory(func(name string) ([]string, error) {
		if strings.HasPrefix(name, "stranger") {
			return nil, user.UnknownUserError(name)
		}
		return []string{"users"}, nil
	})
	const length = 60 << 10
	query := func(text string) string { return "pad=" + strings.Repeat("x", length) + "&" + text }
	groupsOf := func(name string) []string {
		return groups.Of(a.Authenticate(t.Context(), Request{RawQuery: query("user.name=" + name)}).Principal.Short)
	}
	for what, request := range map[string]func(i int) bool{
		"a cookie": func(i int) bool {
			set := a.Authenticate(t.Context(), Request{RawQuery: fmt.Sprint("user.name=cookie", i)}).SetCookie
			cookie, _, _ := strings.Cut(set, ";")
			r := Request{Header: http.Header{"Cookie": {query(";" + cookie)}}}
			return a.Authenticate(t.Context(), r).Principal != nil
		},
		"a token": func(i int) bool {
			r := Request{RawQuery: fmt.Sprint("op=GETDELEGATIONTOKEN&user.name=token", i)}
			res, _ := a.Delegation(t.Context(), http.MethodGet, r)
			return a.Authenticate(t.Context(), Request{RawQuery: query("delegation=" + res.Token)}).Principal != nil
		},
		"an owner of tokens": func(i int) bool {
			r := Request{RawQuery: query(fmt.Sprint("op=GETDELEGATIONTOKEN&user.name=owner", i))}
			res, _ := a.Delegation(t.Context(), http.MethodGet, r)
			return res.Token != ""
		},
		"a user":     func(i int) bool { return len(groupsOf(fmt.Sprint("user", i))) == 1 },
		"a stranger": func(i int) bool { return len(groupsOf(fmt.Sprint("stranger", i))) == 0 },
	} {
		const requests = 100
		before := heapBytes()
		for i := range requests {
			if !request(i) {
				t.Fatalf("%s %d is not accepted", what, i)
			}
		}
		if grown := heapBytes() - before; grown > requests*length/10 {
			t.Errorf("%d requests of %d bytes with %s left %d bytes in memory", requests, length, what, grown)
		}
	}
	runtime.KeepAlive(a)
	runtime.KeepAlive(groups)
}
